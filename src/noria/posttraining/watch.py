"""What a run of reinforcement learning on an open model is watched by, beside its reward."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from noria.grading.monitors import distinct_n, kl
from noria.inference import score
from noria.model import Transformer
from noria.posttraining.grpo import Monitor
from noria.types import Score, Task, Trace

SCORED_TRACES = 16  # for the KL and for drift: a sample of each step's traces, of which one forward pass is affordable
Tell = Callable[[int, Sequence[Task], Sequence[Trace], Sequence[Score]], None]


def watcher(
    model: Transformer,
    reference: Transformer,
    probe: Callable[[], float],
    probe_every: int,
    tell: Tell = lambda step, tasks, traces, scores: None,
) -> Monitor:
    """A monitor: reward of each family, share of exact answers, KL to `reference`, drift between engine and trainer,
    distinct bigrams; and every `probe_every` steps `heldout`, the accuracy that `probe` measures with the weights as
    they then are. `tell` is shown each step's traces."""

    def monitor(
        step: int, tasks: Sequence[Task], traces: Sequence[Trace], scores: Sequence[Score]
    ) -> Mapping[str, float]:
        tell(step, tasks, traces, scores)
        measured = {
            "exact": _mean([None if found.value is None else float(found.value >= 1.0) for found in scores]),
            "distinct_2": distinct_n([_sampled(trace) for trace in traces], 2),
            **{
                f"reward_{family}": _mean(
                    [found.value for found, task in zip(scores, tasks, strict=True) if task.family == family]
                )
                for family in sorted({task.family for task in tasks})
            },
            **_distances(model, reference, traces),
        }
        if probe_every and step % probe_every == 0:
            model.eval()
            measured["heldout"] = probe()
            model.train()
        return measured

    return monitor


def _distances(model: Transformer, reference: Transformer, traces: Sequence[Trace]) -> dict[str, float]:
    """`kl` (k3, nats a token) of the policy to the reference, and `drift`: the mean distance of the log-probabilities
    as sampled from those of the trainer's own forward pass."""
    calls = [node.call for trace in traces for node in trace.nodes if node.call and node.call.token_ids]
    chosen = calls[:: max(1, len(calls) // SCORED_TRACES)][:SCORED_TRACES]
    if not chosen:
        return {}
    whole = [[*call.prompt_ids, *call.token_ids] for call in chosen]
    sampled = [row[-len(call.token_ids) :] for row, call in zip(score(reference, whole, rows=8), chosen, strict=True)]
    own = [row[-len(call.token_ids) :] for row, call in zip(score(model, whole, rows=8), chosen, strict=True)]
    policy, before = np.concatenate([np.array(row) for row in own]), np.concatenate([np.array(row) for row in sampled])
    engine = np.concatenate([np.array(call.logprobs) for call in chosen])
    return {"kl": kl(policy, before)["k3"], "drift": float(np.abs(policy - engine).mean())}


def _sampled(trace: Trace) -> list[int]:
    return [token for node in trace.nodes if node.call for token in node.call.token_ids]


def _mean(values: Sequence[float | None]) -> float:
    graded = [value for value in values if value is not None]
    return statistics.fmean(graded) if graded else float("nan")
