"""What a tool is, and how a batch of calls is run: in the sandbox a warm fork each, equal calls on equal files once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from noria.sandbox import Candidate, Outcome, Sandbox

# What a result begins with when the call was invalid (never run), or ran and failed. A tool's own text that begins so
# gets a leading space, so that a recorded result says by itself what it was.
INVALID, ERROR = "invalid: ", "error: "
TIMED_OUT = ERROR + "timeout"

JSON_TYPES: dict[str, type | tuple[type, ...]] = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "array": list,
    "object": dict,
}


@dataclass(frozen=True)
class Parameter:
    name: str
    description: str = ""
    type: Literal["string", "integer", "number", "array", "object"] = "string"
    required: bool = True


@dataclass(frozen=True)
class _Described:
    """`deterministic` is False where an equal call may give another result; its results are then recorded so."""

    name: str
    description: str
    parameters: tuple[Parameter, ...]


@dataclass(frozen=True)
class Tool(_Described):
    """`source` defines run(*values) -> str. It runs inside the sandbox, in a folder with the workspace's files."""

    source: str
    deterministic: bool = True


@dataclass(frozen=True)
class CommandTool(_Described):
    """A program run inside the sandbox, in the workspace: `argv(arguments)`, e.g. ["sh", "-c", command]."""

    argv: Callable[[Mapping[str, Any]], Sequence[str]]
    deterministic: bool = True


@dataclass(frozen=True)
class HostTool(_Described):
    """Our own code, outside the sandbox: a function of the call alone unless it says that it is not deterministic.

    It never runs what a model wrote. What it raises as ToolError is the call's result.
    """

    run: Callable[[ToolCall], ToolResult]
    deterministic: bool = True


AnyTool = Tool | CommandTool | HostTool


@dataclass(frozen=True)
class ToolCall:
    """A valid call with what it acts on: the workspace's `files`, and the `notes` that tools keep for one trace."""

    tool: str
    arguments: Mapping[str, Any]
    files: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ToolResult:
    """What the tool returned, or "error: " and why it could not. `files` and `notes` are those afterwards."""

    text: str
    files: Mapping[str, str]
    notes: Mapping[str, Any] = field(default_factory=dict)
    deterministic: bool = True

    @property
    def failed(self) -> bool:
        return self.text.startswith(ERROR)

    @property
    def timed_out(self) -> bool:
        return self.text == TIMED_OUT


class ToolError(ValueError):
    """A tool could not do what it was asked; the message is for the model."""


class InvalidCall(ValueError):
    """A call that can't be run: unknown tool or wrong arguments. The message is for the model."""


class SandboxFailed(RuntimeError):
    """The sandbox, not the call, failed. The trace has no outcome that could be judged."""


class Tools(Protocol):
    """What a rollout needs of tools; a tape of recorded results is one too."""

    def bind(self, tool: str, argument: str | Mapping[str, Any]) -> Mapping[str, Any]:
        """The named arguments of a call, from plain text or JSON. Raises InvalidCall."""
        ...

    def run(self, calls: Sequence[ToolCall]) -> list[ToolResult | SandboxFailed]:
        """One result a call, in order; the calls know nothing of each other."""
        ...


class Toolbox:
    """Runs calls of `tools`; those of sandboxed tools in `box`."""

    def __init__(self, box: Sandbox, tools: Sequence[AnyTool]) -> None:
        self.box = box
        self.tools = {tool.name: tool for tool in tools}
        if len(self.tools) != len(tools):
            raise ValueError(f"two tools of one name among {', '.join(tool.name for tool in tools)}")

    def bind(self, tool: str, argument: str | Mapping[str, Any]) -> Mapping[str, Any]:
        known = self.tools.get(tool)
        if known is None:
            raise InvalidCall(f"no tool {tool}")
        return bind(known, argument)

    def run(self, calls: Sequence[ToolCall]) -> list[ToolResult | SandboxFailed]:
        results: dict[int, ToolResult | SandboxFailed] = {}
        functions = []
        for place, call in enumerate(calls):
            tool = self.tools[call.tool]
            if isinstance(tool, Tool):
                values = [call.arguments.get(parameter.name) for parameter in tool.parameters]
                functions.append((place, Candidate(tool.source, "run", [values])))
            elif isinstance(tool, CommandTool):
                outcome = self.box.run_command(tool.argv(call.arguments), _as_bytes(call.files))
                results[place] = _command_result(call, outcome, tool.deterministic)
            else:
                results[place] = _host_result(tool, call)
        jobs = [(candidate, _as_bytes(calls[place].files)) for place, candidate in functions]
        for (place, _), outcome in zip(functions, self.box.run_functions_in(jobs), strict=True):
            call = calls[place]
            results[place] = _function_result(call, outcome, self.tools[call.tool].deterministic)
        return [results[place] for place in range(len(calls))]


def bind(tool: AnyTool, argument: str | Mapping[str, Any]) -> Mapping[str, Any]:
    """Named arguments. Plain text is split at blanks, the last parameter takes the rest. Raises InvalidCall."""
    if isinstance(argument, str):
        words = argument.split(None, max(0, len(tool.parameters) - 1))
        if not tool.parameters and words:
            raise InvalidCall(f"{tool.name} takes no argument")
        given: dict[str, Any] = {p.name: word for p, word in zip(tool.parameters, words, strict=False)}
        return {p.name: _typed(tool, p, given[p.name]) for p in tool.parameters if _wanted(tool, p, given)}
    unknown = sorted(set(argument) - {parameter.name for parameter in tool.parameters})
    if unknown:
        raise InvalidCall(f"{tool.name} has no argument {', '.join(unknown)}")
    for parameter in tool.parameters:
        if _wanted(tool, parameter, argument):
            value = argument[parameter.name]
            if not isinstance(value, JSON_TYPES[parameter.type]) or isinstance(value, bool):
                raise InvalidCall(f"{tool.name}: {parameter.name} must be of type {parameter.type}")
    return dict(argument)


def parameters_schema(tool: AnyTool) -> dict[str, Any]:
    """The JSON schema of the tool's arguments, as chat endpoints and MCP want it."""
    properties = {p.name: {"type": p.type, "description": p.description} for p in tool.parameters}
    required = [parameter.name for parameter in tool.parameters if parameter.required]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _wanted(tool: AnyTool, parameter: Parameter, given: Mapping[str, Any]) -> bool:
    if parameter.name not in given and parameter.required:
        raise InvalidCall(f"{tool.name} needs {parameter.name}")
    return parameter.name in given


def _typed(tool: AnyTool, parameter: Parameter, word: str) -> Any:
    import json

    if parameter.type == "string":
        return word
    try:
        value = json.loads(word)
    except ValueError:
        value = None
    if not isinstance(value, JSON_TYPES[parameter.type]) or isinstance(value, bool):
        raise InvalidCall(f"{tool.name}: {parameter.name} must be of type {parameter.type}")
    return value


def _as_bytes(files: Mapping[str, str]) -> dict[str, bytes]:
    return {path: text.encode("utf-8", "surrogateescape") for path, text in files.items()}


def _as_text(files: Mapping[str, bytes]) -> dict[str, str]:
    return {path: raw.decode("utf-8", "surrogateescape") for path, raw in files.items()}


def own_text(text: str) -> str:
    """`text` such that it can't pass for an invalid or failed call."""
    return " " + text if text.startswith((INVALID, ERROR)) else text


def _host_result(tool: HostTool, call: ToolCall) -> ToolResult:
    try:
        return tool.run(call)
    except ToolError as error:
        return ToolResult(f"{ERROR}{error}", call.files, call.notes, tool.deterministic)


def _function_result(call: ToolCall, outcome: Outcome, deterministic: bool) -> ToolResult | SandboxFailed:
    if outcome.status == "sandbox":
        return SandboxFailed(outcome.error)
    if outcome.status == "ok" and outcome.values is not None:
        return ToolResult(own_text(str(outcome.values[0])), _as_text(outcome.files), call.notes, deterministic)
    if outcome.status == "timeout":
        return ToolResult(TIMED_OUT, call.files, call.notes, deterministic)
    reason = outcome.error.removeprefix("ValueError: ") or outcome.status
    return ToolResult(ERROR + reason, call.files, call.notes, deterministic)


def _command_result(call: ToolCall, outcome: Outcome, deterministic: bool) -> ToolResult | SandboxFailed:
    """Output and, where it is not 0, the exit code. A command that is stopped or dies leaves the files as they were."""
    if outcome.status == "sandbox":
        return SandboxFailed(outcome.error)
    if outcome.status == "timeout":
        return ToolResult(TIMED_OUT, call.files, call.notes, deterministic)
    if outcome.status != "ok":
        return ToolResult(f"{ERROR}{outcome.error or outcome.status}", call.files, call.notes, deterministic)
    text = outcome.output if outcome.exit_code == 0 else f"{outcome.output}\nexit code {outcome.exit_code}".lstrip("\n")
    return ToolResult(own_text(text), _as_text(outcome.files), call.notes, deterministic)
