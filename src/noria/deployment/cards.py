"""Model card and system card, generated from what was measured: pure functions from JSON values to Markdown.

After Mitchell et al. (arXiv 1810.03993) for the model; the system card is about the served whole: log, consent, limits.
Nothing is written that was not measured or configured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

OWN_USE = (
    "Answers the task families listed below, in chat form. It was trained and measured on these alone; it is no "
    "conversationalist, knows little, and must not be relied on for advice."
)
IMPORTED_USE = (
    "An open model that was trained further on the task families listed below, and measured on these, on the form of "
    "replies and on ordinary text alone. For all else the card of the model that it came from holds, and may no longer."
)
OWN_LIMITS = (
    "Refusals are learnt from templates with rule-made labels (synthetic) and say nothing about requests outside "
    "them. Personal data is found by rules: names and postal addresses are not."
)
IMPORTED_LIMITS = "Safety and refusals were not measured: training on other tasks can change them."


def model_card(
    release: Mapping[str, Any], verdict: Mapping[str, Any], architecture: Mapping[str, Any], imported: bool = False
) -> str:
    """`release` is release.json, `verdict` verdict.json, `architecture` the shape from config.json; `imported`: the
    model came from outside and was not pretrained here."""
    name = release["candidate"]
    chosen = next((row for row in verdict["assessments"] if row["name"] == name), None)
    lines = [
        f"# Model card: {name}",
        "",
        f"Decision: **{release['decision']}**. {_status(release)}",
        "",
        "## Model",
        "",
        *_table(("", ""), [(key, architecture[key]) for key in sorted(architecture)]),
        "",
        "## Intended use",
        "",
        IMPORTED_USE if imported else OWN_USE,
        "",
        "## Measured results",
        "",
    ]
    if chosen:
        lines += _table(
            ("check", "against", "estimate", "95% interval", "n", "outcome"), map(_check_row, chosen["checks"])
        )
        lines += ["", "By family (share of right answers, Wilson 95%):", ""]
        lines += _table(("family", "right", "n", "interval"), map(_family_row, sorted(verdict["families"].items())))
        lines += ["", "Cost:", "", *_table(("cost", "value"), sorted(chosen["costs"].items()))]
    else:
        lines.append("The incumbent was kept; its own card holds its results.")
    lines += [
        "",
        "## Limits",
        "",
        IMPORTED_LIMITS if imported else OWN_LIMITS,
        "",
    ]
    return "\n".join(lines)


def system_card(release: Mapping[str, Any], verdict: Mapping[str, Any], retention_days: float, max_bytes: int) -> str:
    """How the model is served, what is kept, and why it was or was not released."""
    lines = [
        "# System card",
        "",
        "## What is served",
        "",
        f"`{release['candidate']}` behind an OpenAI-compatible gateway, on loopback unless told otherwise. "
        "Browsers may write only from the gateway's own pages.",
        "",
        "## Release decision",
        "",
        f"**{verdict['decision']}**",
        "",
        *[f"- {reason}" for reason in verdict["reasons"]],
        "",
        *_table(("candidate", "decision", "primary", "interval"), map(_assessment_row, verdict["assessments"])),
        "",
        "## What is logged",
        "",
        "| consent | kept |",
        "|---|---|",
        "| none (default) | counts, timings, sampling settings; no text |",
        "| store | redacted text; never used for training |",
        "| train | redacted text that may become training data |",
        "",
        f"Rows are deleted after {retention_days:g} days, and the oldest earlier if the log exceeds {max_bytes} bytes. "
        "All rows of a user can be deleted. Feedback is noisy and is used to choose data, never as the only reward.",
        "",
        "## Known risks",
        "",
        "Poisoned traffic: rows are capped per user, scanned for triggers that one user repeats, and held against the "
        "evaluation tasks before they become data. A patient attacker with many identities passes these.",
        "",
    ]
    return "\n".join(lines)


def _status(release: Mapping[str, Any]) -> str:
    if release["decision"] == "release":
        return "It may take production traffic."
    if release["kept_incumbent"]:
        return "No candidate was released: this is the incumbent, kept."
    return "No candidate was released and there is no incumbent: this one is served for preview only, not promoted."


def _check_row(check: Mapping[str, Any]) -> tuple[Any, ...]:
    interval = check["interval"]
    return (
        check["metric"],
        check["against"],
        f"{interval['estimate']:.3f}",
        _span(interval),
        interval["n"],
        check["outcome"],
    )


def _family_row(item: tuple[str, Mapping[str, Any]]) -> tuple[Any, ...]:
    name, row = item
    return name, row["right"], row["n"], f"[{row['low']:.3f}, {row['high']:.3f}]"


def _assessment_row(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["name"], row["decision"], f"{row['primary']['estimate']:.3f}", _span(row["primary"])


def _span(interval: Mapping[str, Any]) -> str:
    return f"[{interval['low']:.3f}, {interval['high']:.3f}]"


def _table(head: Sequence[Any], rows: Any) -> list[str]:
    def line(cells: Sequence[Any]) -> str:
        spelled = (f"{cell:.6g}" if isinstance(cell, float) else str(cell) for cell in cells)
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in spelled) + " |"

    return [line(head), "|" + "---|" * len(head), *map(line, rows)]
