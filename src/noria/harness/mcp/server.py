"""Our tools offered to any MCP client: listed with their schemas, run in our sandbox on one workspace.

Over stdio the client starts us and is the only one; over HTTP we listen on this machine alone, for every program on it.
Calls run one after another: they share the workspace and the notes that tools keep.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noria.harness import tools as our_tools
from noria.harness.mcp.client import require_sdk
from noria.harness.mcp.workspace import WorkspaceError, WorkspaceFolder
from noria.harness.tools import AnyTool, CommandTool, HostTool, InvalidCall, SandboxFailed, Tool, Toolbox, ToolCall
from noria.harness.tools.toolbox import ERROR, INVALID, parameters_schema
from noria.sandbox import Sandbox

if TYPE_CHECKING:
    from mcp.server.lowlevel import Server


class UnknownTools(ValueError):
    """No such set of tools; the message lists those there are."""


class OfferedTools:
    """`tools` with the workspace and notes that their calls act on. Without a folder the workspace begins empty."""

    def __init__(self, box: Sandbox, tools: Sequence[AnyTool], folder: Path | None = None) -> None:
        self.tools = tuple(tools)
        self._toolbox = Toolbox(box, tools)
        self._folder = WorkspaceFolder(folder, box.limits) if folder is not None else None
        self._files: Mapping[str, str] = self._folder.read() if self._folder else {}
        self._notes: Mapping[str, Any] = {}
        self._lock = threading.Lock()

    def call(self, name: str, arguments: Mapping[str, Any]) -> tuple[str, bool]:
        """(the result's text, whether the call failed). Raises SandboxFailed."""
        with self._lock:
            try:
                bound = self._toolbox.bind(name, arguments)
                files = self._folder.read() if self._folder else self._files
                (result,) = self._toolbox.run([ToolCall(name, bound, files, self._notes)])
                if isinstance(result, SandboxFailed):
                    raise result
                if self._folder:
                    self._folder.write(_changes(files, result.files))
            except InvalidCall as refusal:
                return f"{INVALID}{refusal}", True
            except WorkspaceError as error:
                return str(error), True
            self._files, self._notes = result.files, result.notes
            return result.text.removeprefix(ERROR) if result.failed else result.text, result.failed


def mcp_server(offered: OfferedTools, name: str = "noria") -> Server[Any]:
    """The protocol's side of `offered`. Raises McpMissing where the SDK is not installed."""
    require_sdk()
    import anyio.to_thread
    from mcp import types
    from mcp.server.lowlevel import Server

    listed = [
        types.Tool(name=tool.name, description=tool.description, input_schema=parameters_schema(tool))
        for tool in offered.tools
    ]

    async def list_tools(context: Any, params: Any) -> types.ListToolsResult:
        return types.ListToolsResult(tools=listed)

    async def call_tool(context: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
        text, failed = await anyio.to_thread.run_sync(offered.call, params.name, params.arguments or {})
        shown = text.encode("utf-8", "replace").decode()  # bytes that are no text can't be sent
        return types.CallToolResult(content=[types.TextContent(type="text", text=shown)], is_error=failed)

    return Server(name, on_list_tools=list_tools, on_call_tool=call_tool)


def serve_stdio(offered: OfferedTools) -> None:
    """Answers the client that started this process, until it closes our stdin."""
    server = mcp_server(offered)
    import anyio
    from mcp.server.stdio import stdio_server

    async def serve() -> None:
        async with stdio_server() as (incoming, outgoing):
            await server.run(incoming, outgoing, server.create_initialization_options())

    anyio.run(serve)


def serve_http(offered: OfferedTools, port: int) -> None:
    """Answers every program of this machine at http://127.0.0.1:PORT/mcp, until Ctrl-C."""
    server = mcp_server(offered)
    import uvicorn

    uvicorn.run(server.streamable_http_app(), host="127.0.0.1", port=port, log_level="warning")


def tools_named(names: Sequence[str]) -> tuple[AnyTool, ...]:
    """The tools of the sets `names`: a module of `harness/tools` each, or a .py file of one's own (which is run).

    Raises UnknownTools.
    """
    found: dict[str, AnyTool] = {}
    for name in names:
        if name.endswith(".py"):
            defined = _tools_of_file(Path(name))
        else:
            known = {module.name for module in pkgutil.iter_modules(our_tools.__path__)}
            defined = _tools_of_set(name) if name in known else []
        if not defined:
            raise UnknownTools(
                f"no tools {name!r}; there are {', '.join(tool_sets())}, and any .py file that defines some"
            )
        found |= {tool.name: tool for tool in defined}
    return tuple(found.values())


def tool_sets() -> list[str]:
    """The sets of tools that need no more than a workspace."""
    names = sorted(module.name for module in pkgutil.iter_modules(our_tools.__path__))
    return [name for name in names if _tools_of_set(name)]


def _tools_of_set(name: str) -> list[AnyTool]:
    """The tools that a module defines, or that its function NAME_tools makes where that needs nothing."""
    module = importlib.import_module(f"{our_tools.__name__}.{name}")
    make = getattr(module, f"{name}_tools", None)
    if make is not None and all(p.default is not p.empty for p in inspect.signature(make).parameters.values()):
        return list(make())
    return _tools_in(vars(module))


def _tools_of_file(path: Path) -> list[AnyTool]:
    try:
        source = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UnknownTools(f"{path}: {error}") from error
    names: dict[str, Any] = {"__name__": "noria_tools_file", "__file__": str(path)}
    try:
        exec(compile(source, str(path), "exec"), names)
    except Exception as error:  # a user's file may raise anything
        raise UnknownTools(f"{path}: {type(error).__name__}: {error}") from error
    return _tools_in(names)


def _tools_in(names: Mapping[str, Any]) -> list[AnyTool]:
    return [value for value in names.values() if isinstance(value, Tool | CommandTool | HostTool)]


def _changes(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, str | None]:
    changed: dict[str, str | None] = {path: text for path, text in after.items() if before.get(path) != text}
    return changed | {path: None for path in before if path not in after}
