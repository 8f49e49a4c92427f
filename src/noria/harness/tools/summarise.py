"""Summaries: by the model itself of what it has seen (`SUMMARISE`), or by another policy of a text (`summarise_with`).

`SUMMARISE` puts the model's own words in place of earlier messages. The tokens of the summary are the model's, sampled
in its reply like any call, and so is the training signal; the program shows `since_summary(state.messages,
state.notes)`, made of the very messages of the trace. Nothing is lost from the trace.

    notes["summary"] = {"text": "the key is in b.txt", "keep": 2}
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from noria.harness.editing import SUMMARY
from noria.harness.tools.toolbox import HostTool, Parameter, ToolCall, ToolError, ToolResult, own_text
from noria.types import Message, seed_of

NOTES = "summary"
MOST_CHARACTERS = 4096
INSTRUCTION = "Summarise the text that the user gives you. Keep names, numbers and whatever is still to be done."


def _keep_summary(call: ToolCall) -> ToolResult:
    keep, text = call.arguments["keep"], " ".join(call.arguments["summary"].split())
    if not text or len(text) > MOST_CHARACTERS:
        raise ToolError(f"a summary has 1 to {MOST_CHARACTERS} characters, not {len(text)}")
    if keep < 0:
        raise ToolError("keep is the number of messages that stay: 0 or more")
    return ToolResult(SUMMARY + text, call.files, {**call.notes, NOTES: {"text": text, "keep": keep}})


SUMMARISE = HostTool(
    "summarise",
    "summarise KEEP SUMMARY: put SUMMARY, in your own words, in place of all messages but the task and the last KEEP",
    (
        Parameter("keep", "how many of the latest messages stay as they are", "integer"),
        Parameter("summary", "all that you will still need"),
    ),
    _keep_summary,
)


def summarise_with(
    policy: Callable[[Sequence[Message], int], str], deterministic: bool = False, instruction: str = INSTRUCTION
) -> HostTool:
    """`summarise_text TEXT`, done by `policy` (messages, seed) -> reply; the seed follows from the text.

    Say `deterministic` where equal messages and seeds give equal replies: of a script, or of an engine of one's own.
    """

    def run(call: ToolCall) -> ToolResult:
        text = call.arguments["text"].strip()
        if not text:
            raise ToolError("the text is empty")
        reply = policy((Message("system", instruction), Message("user", text)), seed_of("summarise", text)).strip()
        if not reply:
            raise ToolError("there is no summary")
        shown = reply if len(reply) <= MOST_CHARACTERS else reply[:MOST_CHARACTERS] + " (cut)"
        return ToolResult(own_text(shown), call.files, call.notes, deterministic)

    text = Parameter("text", "what to summarise")
    return HostTool("summarise_text", "summarise_text TEXT: a short summary of TEXT", (text,), run, deterministic)
