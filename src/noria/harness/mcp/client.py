"""Any MCP server's tools as tools of ours.

A server is a command that is started here (stdio) or a URL (streamable HTTP). It runs outside our sandbox, with all
that its user may do, unless its `Command` says `confine`. One server serves all traces: what it remembers, it remembers
of all of them. Its results are recorded as not deterministic: a replay takes them from the trace.

Whatever a server does in the middle of a call is that call's result: an error, a death, silence, a flood, bytes. One
that ended is started anew by the next call.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from noria.harness.tools.toolbox import HostTool, Parameter, ToolCall, ToolError, ToolResult, own_text

if TYPE_CHECKING:
    from anyio.from_thread import BlockingPortal
    from mcp import Client
    from mcp.types import CallToolResult

    from noria.harness.mcp.stdio import Command, Ending

MESSAGE_BYTES = 4 << 20  # of one message of a server
RESULT_CHARACTERS = 1 << 16  # of one result; a rollout shows a model its budget's `result_bytes` of them
MOST_TOOLS = 512
SIMPLE_TYPES = ("string", "integer", "number", "boolean", "array", "object")
TOLD_KEYWORDS = ("enum", "const", "anyOf", "items", "properties", "format", "pattern", "minimum", "maximum", "default")


class McpMissing(RuntimeError):
    """The MCP SDK is not installed; the message says how to get it."""


class McpFailed(RuntimeError):
    """The server can't be started or reached, or gives no list of tools."""


class McpClient:
    """A connection to one server, a context manager; `tools` are its tools.

    `server` is a URL, or a Command, or its argv. `prefix` goes before every tool's name, for servers whose names
    clash. `timeout_seconds` bounds a start and a call. Raises McpMissing, McpFailed.
    """

    def __init__(
        self, server: str | Command | Sequence[str], *, timeout_seconds: float = 30.0, prefix: str = ""
    ) -> None:
        require_sdk()
        from anyio.from_thread import start_blocking_portal

        from noria.harness.mcp.stdio import Command, Ending

        self.server = server if isinstance(server, str | Command) else Command(tuple(server))
        self.timeout_seconds, self.prefix = timeout_seconds, prefix
        self._lock = threading.Lock()
        self._live: _Live | None = None
        self._ending: Ending = Ending()
        self._open = contextlib.ExitStack()
        self._portal = self._open.enter_context(start_blocking_portal())
        try:
            self.tools = self._listed()
        except ToolError as error:
            self.close()
            raise McpFailed(str(error)) from error

    def __enter__(self) -> McpClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the connection, and the server where it was started here."""
        self._drop()
        self._open.close()

    # -- inside --

    def _listed(self) -> tuple[HostTool, ...]:
        async def walk(client: Client) -> list[Any]:
            found: list[Any] = []
            cursor = None
            while True:
                page = await client.list_tools(cursor=cursor)
                found += page.tools
                cursor = page.next_cursor
                if not cursor or len(found) > MOST_TOOLS:
                    return found

        listed = self._ask(walk)
        if len(listed) > MOST_TOOLS:
            raise ToolError(f"the MCP server lists more than {MOST_TOOLS} tools")
        return tuple(
            HostTool(
                name=self.prefix + tool.name,
                description=(tool.description or tool.title or "").strip(),
                parameters=parameters_of(tool.input_schema),
                run=self._caller(tool.name),
                deterministic=False,
            )
            for tool in listed
        )

    def _caller(self, name: str) -> Callable[[ToolCall], ToolResult]:
        def run(call: ToolCall) -> ToolResult:
            result = self._ask(lambda client: client.call_tool(name, dict(call.arguments)))
            text = text_of(result)
            if result.is_error:
                raise ToolError(text or "the tool failed and said nothing")
            return ToolResult(own_text(text), call.files, call.notes, deterministic=False)

        return run

    def _ask(self, question: Callable[[Client], Any]) -> Any:
        """The answer of a connected client. Raises ToolError with what the model is told."""
        import anyio
        from mcp import MCPError
        from mcp.types import CONNECTION_CLOSED

        client = self._client()

        async def bounded() -> Any:
            with anyio.fail_after(self.timeout_seconds):
                return await question(client)

        try:
            return self._portal.call(bounded)
        except TimeoutError:
            self._drop()  # it may hang for good
            raise ToolError("timeout") from None
        except MCPError as error:
            if error.code != CONNECTION_CLOSED:
                raise ToolError(error.message) from error
            self._drop()
            raise ToolError(f"the MCP server ended: {self._ending}") from error
        except Exception as error:  # the SDK raises many kinds for what a server may do wrong
            self._drop()
            raise ToolError(f"the MCP server failed: {type(error).__name__}: {error}"[:500]) from error

    def _client(self) -> Client:
        with self._lock:
            if self._live is None:
                try:
                    self._live, self._ending = _start(self._portal, self.server, self.timeout_seconds)
                except _NotStarted as error:
                    raise ToolError(str(error)) from error
            return self._live.client

    def _drop(self) -> None:
        with self._lock:
            live, self._live = self._live, None
        if live is not None:
            live.end()


class _NotStarted(RuntimeError):
    pass


class _Live:
    """A connected client with the task that holds its connection open."""

    def __init__(self, client: Client, end: Callable[[], None]) -> None:
        self.client, self.end = client, end


def _start(portal: BlockingPortal, server: str | Command, timeout_seconds: float) -> tuple[_Live, Ending]:
    """The connection lives in one task, as its cancel scopes want it: started here, told to end by an event."""
    import anyio
    from mcp import Client

    from noria.harness.mcp.http import bounded_http
    from noria.harness.mcp.stdio import Ending, bounded_stdio

    ending = Ending()

    async def hold(*, task_status: Any) -> None:
        leave = anyio.Event()
        if isinstance(server, str):
            transport: Any = bounded_http(server, MESSAGE_BYTES)
        else:
            transport = bounded_stdio(server, MESSAGE_BYTES, ending)
        with anyio.CancelScope() as starting:
            starting.deadline = anyio.current_time() + timeout_seconds
            async with Client(transport, read_timeout_seconds=timeout_seconds, cache=None) as client:
                starting.deadline = float("inf")
                task_status.started((client, leave))
                await leave.wait()
        if starting.cancelled_caught:
            raise TimeoutError(f"no answer in {timeout_seconds:g} s")

    name = (server if isinstance(server, str) else " ".join(server.argv))[:200]
    try:
        task, (client, leave) = portal.start_task(hold)
    except BaseException as error:  # a group of errors, where several tasks of the transport failed
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise _NotStarted(f"the MCP server {name!r} can't be used: {_first(error)} ({ending})") from error

    def end() -> None:
        with contextlib.suppress(Exception):  # the connection broke before; that was told when it did
            portal.call(leave.set)
            task.result()

    return _Live(client, end), ending


def require_sdk() -> None:
    try:
        import mcp  # noqa: F401
    except ImportError as error:
        raise McpMissing("MCP needs its SDK: pip install 'noria[mcp]'") from error


def parameters_of(schema: Mapping[str, Any]) -> tuple[Parameter, ...]:
    """The parameters of a tool's JSON schema; required ones first, since a plain-text call fills them in order.

    What our types can't say (enumerations, unions, the shape of objects) is told in the description, as JSON, and
    checked by the server.
    """
    required = schema.get("required") or []
    properties = schema.get("properties") or {}
    made = []
    for name, given in properties.items():
        wanted = given if isinstance(given, dict) else {}
        kind = wanted.get("type") if wanted.get("type") in SIMPLE_TYPES else "any"
        more = {key: wanted[key] for key in TOLD_KEYWORDS if wanted.get(key) is not None}
        described = [str(wanted.get("description", "")), json.dumps(more, ensure_ascii=False) if more else ""]
        made.append(Parameter(name, " ".join(filter(None, described)), kind, name in required))  # type: ignore[arg-type]
    return tuple(sorted(made, key=lambda parameter: not parameter.required))


def text_of(result: CallToolResult) -> str:
    """What a model is shown of a result: its text; of images, sounds and other bytes only that they were there."""
    parts = [_block_text(block) for block in result.content]
    if not parts and result.structured_content is not None:
        parts = [json.dumps(result.structured_content, ensure_ascii=False)]
    text = "\n".join(parts)
    if len(text) > RESULT_CHARACTERS:
        text = f"{text[:RESULT_CHARACTERS]}\n[cut: {len(text)} characters in all]"
    return text


def _block_text(block: Any) -> str:
    if block.type == "text":
        return block.text
    if block.type == "resource_link":
        return f"[a link: {block.uri}]"
    inner = block.resource if block.type == "resource" else block
    if getattr(inner, "text", None) is not None:
        return inner.text
    raw = str(getattr(inner, "data", "") or getattr(inner, "blob", ""))
    return f"[{inner.mime_type or block.type}, {len(raw) * 3 // 4} bytes: not text]"


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
