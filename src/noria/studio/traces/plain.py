"""One trace on a terminal."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from noria.harness.traces import Entry
from noria.harness.traces.story import is_failed, is_invalid, is_retold, tokens_read, tokens_sampled
from noria.types import Trace

if TYPE_CHECKING:
    from rich.console import Console

    from noria.data.chat_tokenizer import ChatTokenizer


def print_trace(screen: Console, entry: Entry, tokenizer: ChatTokenizer | None, tokens: bool) -> None:
    """Texts are printed as they are, but for control characters, which could move the cursor."""
    trace, score = entry.trace, entry.score
    _line(screen, f"trace {trace.id}  task {trace.task_id}  {trace.harness}  {trace.outcome}", "bold")
    if score is not None:
        parts = ", ".join(f"{name} {value:.3f}" for name, value in score.components.items())
        value = f"score {score.value:.3f}" if score.value is not None else f"grading failed: {score.reason}"
        _line(screen, f"{value}{f'  ({parts})' if parts else ''}  {score.evidence}")
    facts = ", ".join(f"{name} {value:g}" for name, value in trace.facts.items())
    _line(screen, f"{facts}; {tokens_sampled(trace)} tokens sampled, {tokens_read(trace)} read", "dim")
    for name, value in entry.labels.items():
        _line(screen, f"{name}: {json.dumps(value)}", "dim")
    for place, node in enumerate(trace.nodes):
        _line(
            screen,
            f"\nmessage {place}: {_heading(trace, place)}",
            "red" if is_invalid(node) or is_failed(node) else "cyan",
        )
        _line(screen, node.message.content)
        if node.use and node.use.files:
            _line(screen, f"changed files: {', '.join(node.use.files)}", "dim")
        if tokens and node.call:
            for token, logprob in zip(node.call.token_ids, node.call.logprobs, strict=False):
                text = tokenizer.decode([token]) if tokenizer else ""
                _line(screen, f"  {token:>8} {logprob:9.4f} {text!r}", "dim")


def _heading(trace: Trace, place: int) -> str:
    node = trace.nodes[place]
    agent = f" of {node.agent}" if node.agent else ""
    if node.use is None:
        retold = ", as the program showed it" if is_retold(trace, place) else ""
        return f"{'reply' if node.call else node.message.role}{agent}{retold}"
    varies = "" if node.use.deterministic else " (not deterministic)"
    return f"result of {node.use.tool} {json.dumps(dict(node.use.arguments), ensure_ascii=False)}{agent}{varies}"


def _line(screen: Console, text: str, style: str = "") -> None:
    seen = "".join(letter if letter.isprintable() or letter in "\n\t" else f"\\x{ord(letter):02x}" for letter in text)
    screen.print(seen, style=style or None, markup=False, highlight=False, soft_wrap=True)
