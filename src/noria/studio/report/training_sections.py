"""The system recipe with its ladder, pretraining beside what was predicted, and the mixture."""

from __future__ import annotations

from typing import Any

from noria.studio.report.finished import Run, thinned

LAW_POINTS = 24  # points of a drawn law curve


def system(run: Run) -> dict[str, Any]:
    """The plan, the ladder it rests on, the law drawn through it, and the forecast of time."""
    plan, ladder = run.read("plan", "plan.json"), run.read("ladder", "ladder.json")
    law = plan["law"]
    longest = max(plan["train_tokens"], *(point["tokens"] for point in ladder["points"]))
    shortest = min(point["tokens"] for point in ladder["points"])
    sizes = sorted({point["matmul_parameters"] for point in ladder["points"]} | {plan["matmul_parameters"]})
    return {
        "plan": plan,
        "ladder": ladder,
        "sizes": [
            {
                "matmul_parameters": size,
                "law": _law_curve(law, size, shortest, longest),
                "measured": [
                    [point["tokens"], point["loss"]]
                    for point in ladder["points"]
                    if point["matmul_parameters"] == size and point["loss"] is not None
                ],
            }
            for size in sizes
        ],
        "forecast": run.read("plan", "forecast.json", observed=True),
        "heldout_rows_per_source": run.artifact("ladder").manifest.config.get("heldout_rows"),
    }


def _law_curve(law: dict[str, Any], size: float, first: float, last: float) -> list[list[float]]:
    """[tokens, loss] from L(N, D) = E + A / N^alpha + B / D^beta, evenly spaced in log D."""
    tokens = [first * (last / first) ** (index / (LAW_POINTS - 1)) for index in range(LAW_POINTS)]
    return [[d, law["E"] + law["A"] * size ** -law["alpha"] + law["B"] * d ** -law["beta"]] for d in tokens]


def pretraining(run: Run) -> dict[str, Any]:
    """The loss over steps, the outcome beside its prediction, bits per byte by source."""
    measured, history = run.read("base_model", "heldout.json"), run.history("base_model")
    batch = run.read("plan", "plan.json")["batch_tokens"]
    curve = [[(step + 1) * batch, row["loss_ce"]] for step, row in enumerate(history) if row.get("loss_ce") is not None]
    predicted, window = measured["predicted"], max(1, len(curve) // 20)
    sources = run.read("shards", "shards.json")["sources"]
    rows = []
    for name in sorted(measured["bits_per_byte"], key=lambda name: (sources.get(name, {}).get("kind", ""), name)):
        rows.append(
            {
                "source": name,
                "kind": sources.get(name, {}).get("kind", ""),
                "bits_per_byte": measured["bits_per_byte"][name],
                "loss": measured["loss_by_source"][name],
                "n": measured["tokens_by_source"][name],
            }
        )
    return {
        "parameters": run.artifact("base_model").metrics["parameters"],
        "tokens": run.artifact("base_model").metrics["tokens"],
        "steps": len(history),
        "curve": thinned(curve),
        "window": window,
        "smoothed": thinned(_smoothed(curve, window)),
        "loss": measured["loss"],
        "n": sum(measured["tokens_by_source"].values()),
        "predicted": predicted,
        "within_interval": predicted["low"] <= measured["loss"] <= predicted["high"],
        "skipped": sum(row.get("skipped") or 0 for row in history),
        "sources": rows,
        "seconds": run.store.runs.seconds_of_key(run.artifact("base_model").key),
    }


def _smoothed(curve: list[list[float]], window: int) -> list[list[float]]:
    """The mean of the last `window` values at each place that has so many."""
    values = [value for _, value in curve]
    return [[curve[end - 1][0], sum(values[end - window : end]) / window] for end in range(window, len(values) + 1)]


def mixture(run: Run) -> list[dict[str, Any]]:
    """Weight, tokens, licence and passes of every source."""
    shards = run.read("shards", "shards.json")
    epochs = run.read("base_model", "heldout.json")["epochs"] if run.has("base_model") else {}
    return [
        {
            "source": name,
            "kind": source.get("kind", ""),
            "licence": source["licence"],
            "weight": shards["weights"].get(name, 0.0),
            "train_tokens": source["train_tokens"],
            "heldout_tokens": source["heldout_tokens"],
            "epochs": epochs.get(name),
        }
        for name, source in sorted(shards["sources"].items(), key=lambda item: (item[1].get("kind", ""), item[0]))
    ]
