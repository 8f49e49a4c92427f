"""What a tool is, and how a batch of calls is run: a warm fork each in the sandbox, equal calls on equal files once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from noria.sandbox import Candidate, Outcome, Sandbox

# What a result begins with when the call was invalid (never run), or ran and failed. A tool's own text that begins so
# gets a leading space, so that a recorded result says by itself what it was.
INVALID, ERROR = "invalid: ", "error: "
TIMED_OUT = ERROR + "timeout"


@dataclass(frozen=True)
class Tool:
    """`source` defines run(argument) -> str. It runs inside the sandbox, in a folder with the workspace's files."""

    name: str
    description: str
    argument: Literal["required", "none"]
    source: str


@dataclass(frozen=True)
class ToolCall:
    tool: str
    argument: str
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ToolResult:
    """What the tool returned, or "error: " and why it could not. `files` are the workspace's afterwards."""

    text: str
    files: Mapping[str, str]

    @property
    def failed(self) -> bool:
        return self.text.startswith(ERROR)

    @property
    def timed_out(self) -> bool:
        return self.text == TIMED_OUT


class SandboxFailed(RuntimeError):
    """The sandbox, not the call, failed. The trace has no outcome that could be judged."""


class Tools(Protocol):
    """What a rollout needs of tools; a tape of recorded results is one too."""

    def refuse(self, tool: str, argument: str) -> str:
        """Why this call is invalid; empty if it is not."""
        ...

    def run(self, calls: Sequence[ToolCall]) -> list[ToolResult | SandboxFailed]: ...


class SandboxTools:
    """Runs calls of `tools` in `box`."""

    def __init__(self, box: Sandbox, tools: Sequence[Tool]) -> None:
        self.box = box
        self.tools = {tool.name: tool for tool in tools}

    def refuse(self, tool: str, argument: str) -> str:
        known = self.tools.get(tool)
        if known is None:
            return f"no tool {tool}"
        if known.argument == "required" and not argument:
            return f"{tool} needs an argument"
        if known.argument == "none" and argument:
            return f"{tool} takes no argument"
        return ""

    def run(self, calls: Sequence[ToolCall]) -> list[ToolResult | SandboxFailed]:
        jobs = [
            (
                Candidate(self.tools[call.tool].source, "run", [[call.argument]]),
                {path: text.encode("utf-8", "surrogateescape") for path, text in call.files.items()},
            )
            for call in calls
        ]
        outcomes = self.box.run_functions_in(jobs)
        return [_result(call, outcome) for call, outcome in zip(calls, outcomes, strict=True)]


def _result(call: ToolCall, outcome: Outcome) -> ToolResult | SandboxFailed:
    if outcome.status == "sandbox":
        return SandboxFailed(outcome.error)
    if outcome.status == "ok" and outcome.values is not None:
        files = {path: raw.decode("utf-8", "surrogateescape") for path, raw in outcome.files.items()}
        text = str(outcome.values[0])
        return ToolResult(" " + text if text.startswith((INVALID, ERROR)) else text, files)
    if outcome.status == "timeout":
        return ToolResult(TIMED_OUT, call.files)
    reason = outcome.error.removeprefix("ValueError: ") or outcome.status
    return ToolResult(ERROR + reason, call.files)
