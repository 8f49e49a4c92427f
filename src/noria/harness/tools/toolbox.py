"""What a tool is, and how a batch of calls is run: in the sandbox a warm fork each, equal calls on equal files once
where the tool is deterministic."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, TypeVar

from noria.sandbox import Candidate, Outcome, Sandbox

J = TypeVar("J")

# What a result begins with when the call was invalid (never run), or ran and failed. A tool's own text that begins so
# gets a leading space, so that a recorded result says by itself what it was.
INVALID, ERROR = "invalid: ", "error: "
TIMED_OUT = ERROR + "timeout"
MOST_LOST = 5  # files that a command left and that can't be kept (links, pipes), of which it is told

JSON_TYPES: dict[str, type | tuple[type, ...]] = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "array": list,
    "object": dict,
    "any": object,  # the tool itself checks it
}


@dataclass(frozen=True)
class Parameter:
    name: str
    description: str = ""
    type: Literal["string", "integer", "number", "boolean", "array", "object", "any"] = "string"
    required: bool = True


@dataclass(frozen=True)
class Described:
    """What a model is told of a tool. `deterministic` is False where an equal call may give another result; its results
    are then recorded so."""

    name: str
    description: str
    parameters: tuple[Parameter, ...]


@dataclass(frozen=True)
class Tool(Described):
    """`source` defines run(*values) -> str. It runs inside the sandbox, in a folder with the workspace's files."""

    source: str
    deterministic: bool = True


@dataclass(frozen=True)
class CommandTool(Described):
    """A program run inside the sandbox, in the workspace: `argv(arguments)`, e.g. ["sh", "-c", command]."""

    argv: Callable[[Mapping[str, Any]], Sequence[str]]
    deterministic: bool = True


@dataclass(frozen=True)
class HostTool(Described):
    """Our own code, outside the sandbox: a function of the call alone unless it says that it is not deterministic.

    It never runs what a model wrote. What it raises as ToolError is the call's result; a SandboxFailed says that a
    sandbox of its own has failed; anything else is a fault of the tool's own, which the result says too.
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
    sandbox: str = ""  # the label of what it ran in

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


class WrongTools(ValueError):
    """What was given as tools is none; the message says what to give."""


class Tools(Protocol):
    """What a rollout needs of tools; a tape of recorded results is one too."""

    @property
    def described(self) -> Mapping[str, Described]:
        """The tools by name."""
        ...

    def bind(self, tool: str, argument: str | Mapping[str, Any]) -> Mapping[str, Any]:
        """The named arguments of a call, from plain text or JSON. Raises InvalidCall."""
        ...

    def run(self, calls: Sequence[ToolCall]) -> list[ToolResult | SandboxFailed]:
        """One result a call, in order; the calls know nothing of each other."""
        ...


class Toolbox:
    """Runs calls of `tools`; those of sandboxed tools in `box`."""

    def __init__(self, box: Sandbox, tools: Sequence[AnyTool]) -> None:
        if wrong := wrong_in_tools(tools):
            raise WrongTools(f"tools: {wrong}")
        self.box = box
        self.tools = {tool.name: tool for tool in tools}
        self.sandbox = box.label

    @property
    def described(self) -> Mapping[str, Described]:
        return self.tools

    def bind(self, tool: str, argument: str | Mapping[str, Any]) -> Mapping[str, Any]:
        known = self.tools.get(tool)
        if known is None:
            raise InvalidCall(f"no tool {tool}")
        return bind(known, argument)

    def run(self, calls: Sequence[ToolCall]) -> list[ToolResult | SandboxFailed]:
        """All at once: the calls of a batch are of different conversations, each with its own files. A reply's further
        calls act on what its earlier ones left, so they come in later batches."""
        results: dict[int, ToolResult | SandboxFailed] = {}
        functions: dict[int, Candidate] = {}
        commands: dict[int, Sequence[str]] = {}
        for place, call in enumerate(calls):
            tool = self.tools[call.tool]
            if isinstance(tool, Tool):
                values = [call.arguments.get(parameter.name) for parameter in tool.parameters]
                functions[place] = Candidate(tool.source, "run", [values])
            elif isinstance(tool, CommandTool):
                try:
                    commands[place] = tool.argv(call.arguments)
                except Exception as error:  # noqa: BLE001 - a tool of anybody's: its fault ends no other trace
                    results[place] = _at_fault(call, error, tool.deterministic)
            else:
                results[place] = _host_result(tool, call)
        results.update(self._boxed(calls, functions, self.box.run_functions_in, _function_result))
        results.update(self._boxed(calls, commands, self.box.run_commands, _command_result))
        return [results[place] for place in range(len(calls))]

    def _boxed(
        self,
        calls: Sequence[ToolCall],
        jobs: Mapping[int, J],
        run: Callable[[Sequence[tuple[J, Mapping[str, bytes]]], bool], list[Outcome]],
        told: Callable[[ToolCall, Outcome, bool], ToolResult | SandboxFailed],
    ) -> Iterator[tuple[int, ToolResult | SandboxFailed]]:
        """(place, result) of each job. Equal ones share a run only where they would give an equal result."""
        for steady in (True, False):
            places = [place for place in jobs if self.tools[calls[place].tool].deterministic == steady]
            ran = run([(jobs[place], _as_bytes(calls[place].files)) for place in places], steady) if places else []
            for place, outcome in zip(places, ran, strict=True):
                yield place, self._labelled(told(calls[place], outcome, steady))

    def _labelled(self, result: ToolResult | SandboxFailed) -> ToolResult | SandboxFailed:
        return result if isinstance(result, SandboxFailed) else replace(result, sandbox=self.sandbox)


def wrong_in_tools(tools: object) -> str:
    """What is wrong with `tools` as the tools of a Toolbox; "" where nothing is."""
    if not isinstance(tools, Sequence) or isinstance(tools, str):
        return f"must be a tuple of tools, not {tools!r:.60} ({type(tools).__name__})"
    for tool in tools:
        if isinstance(tool, str):
            return f"{tool!r} is a name where a tool must stand: give the Tool itself, e.g. noria.harness.tools.READ"
        if not isinstance(tool, AnyTool):
            return f"{tool!r:.60} ({type(tool).__name__}) is no Tool, CommandTool or HostTool"
    names = [tool.name for tool in tools]
    return "" if len(set(names)) == len(names) else f"two tools of one name among {', '.join(names)}"


def bind(tool: Described, argument: str | Mapping[str, Any]) -> Mapping[str, Any]:
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
            if not _fits(value, parameter.type):
                raise InvalidCall(f"{tool.name}: {parameter.name} must be of type {parameter.type}")
    return dict(argument)


def parameters_schema(tool: Described) -> dict[str, Any]:
    """The JSON schema of the tool's arguments, as chat endpoints and MCP want it."""
    properties = {
        p.name: {"type": p.type, "description": p.description} if p.type != "any" else {"description": p.description}
        for p in tool.parameters
    }
    required = [parameter.name for parameter in tool.parameters if parameter.required]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _wanted(tool: Described, parameter: Parameter, given: Mapping[str, Any]) -> bool:
    if parameter.name not in given and parameter.required:
        raise InvalidCall(f"{tool.name} needs {parameter.name}")
    return parameter.name in given


def _typed(tool: Described, parameter: Parameter, word: str) -> Any:
    import json

    if parameter.type == "string":
        return word
    try:
        value = json.loads(word)
    except ValueError:
        value = word if parameter.type == "any" else None
    if not _fits(value, parameter.type):
        raise InvalidCall(f"{tool.name}: {parameter.name} must be of type {parameter.type}")
    return value


def _fits(value: Any, kind: str) -> bool:
    """Python's True is an int, JSON's is not."""
    return isinstance(value, JSON_TYPES[kind]) and (not isinstance(value, bool) or kind in ("boolean", "any"))


def _as_bytes(files: Mapping[str, str]) -> dict[str, bytes]:
    return {path: _bytes(text) for path, text in files.items()}


def _bytes(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # surrogates that stand for no byte
        return text.encode("utf-8", "replace")


def _as_text(files: Mapping[str, bytes]) -> dict[str, str]:
    return {path: raw.decode("utf-8", "surrogateescape") for path, raw in files.items()}


def own_text(text: str) -> str:
    """`text` such that it can't pass for an invalid or failed call."""
    return " " + text if text.startswith((INVALID, ERROR)) else text


def _host_result(tool: HostTool, call: ToolCall) -> ToolResult | SandboxFailed:
    try:
        result = tool.run(call)
        if not isinstance(result, ToolResult):
            raise TypeError(f"run must return a ToolResult, not {type(result).__name__}")
    except ToolError as error:
        return ToolResult(f"{ERROR}{error}", call.files, call.notes, tool.deterministic)
    except SandboxFailed as failure:  # of a tool that has a sandbox of its own
        return failure
    except Exception as error:  # noqa: BLE001 - a tool of anybody's: its fault ends no other trace
        return _at_fault(call, error, tool.deterministic)
    # Only a call that was never run is invalid; what ran and failed raises ToolError or says "error: " itself.
    return replace(result, text=own_text(result.text)) if result.text.startswith(INVALID) else result


def _at_fault(call: ToolCall, error: Exception, deterministic: bool) -> ToolResult:
    said = f"{ERROR}the tool {call.tool} is at fault: {type(error).__name__}: {error}"
    return ToolResult(said[:500], call.files, call.notes, deterministic)


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
    """Output and, where it is not 0, the exit code; then what was lost of the output and of the files.

    A command that is stopped or dies leaves the files as they were.
    """
    if outcome.status == "sandbox":
        return SandboxFailed(outcome.error)
    if outcome.status == "timeout":
        return ToolResult(TIMED_OUT, call.files, call.notes, deterministic)
    if outcome.status != "ok":
        return ToolResult(f"{ERROR}{outcome.error or outcome.status}", call.files, call.notes, deterministic)
    text = outcome.output if outcome.exit_code == 0 else f"{outcome.output}\nexit code {outcome.exit_code}".lstrip("\n")
    lost = ["(more was printed than is shown)"] if outcome.output_cut else []
    lost += [f"(not kept: {path}: {reason})" for path, reason in sorted(outcome.skipped.items())[:MOST_LOST]]
    text = "\n".join([text.rstrip("\n"), *lost]) if lost else text
    return ToolResult(own_text(text), _as_text(outcome.files), call.notes, deterministic)
