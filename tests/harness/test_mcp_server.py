"""Our tools in the hands of an MCP client from PyPI, the official SDK's: in memory, over stdio and over HTTP."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
import uvicorn
from mcp import Client, StdioServerParameters

import noria
from noria.harness.mcp.client import McpClient
from noria.harness.mcp.server import OfferedTools, UnknownTools, mcp_server, tool_sets, tools_named
from noria.harness.mcp.workspace import WorkspaceError, WorkspaceFolder
from noria.harness.tools import FILE_TOOLS, HostTool, Parameter, Tool, ToolCall, ToolResult
from noria.sandbox import Limits, Sandbox

T = TypeVar("T")
MOVE = Tool(
    name="move",
    description="move FROM TO",
    parameters=(Parameter("old"), Parameter("new")),
    source="""
import os
def run(old, new):
    os.makedirs(os.path.dirname(new), exist_ok=True)
    os.rename(old, new)
""",
)
SPY = Tool(
    name="spy",
    description="spy PATH",
    parameters=(Parameter("path"), Parameter("port", type="integer")),
    source="""
import os, socket
def run(path, port):
    try:
        socket.create_connection(("127.0.0.1", port), 1)
        return "connected"
    except OSError:
        return f"{os.path.exists(path)} {os.path.exists('/etc/passwd')}"
""",
)


def _count(call: ToolCall) -> ToolResult:
    return ToolResult(str(call.notes.get("count", 0)), call.files, {"count": call.notes.get("count", 0) + 1})


COUNT = HostTool("count", "count", (), run=_count)


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    with Sandbox(workers=1) as made:
        yield made


def with_client(server: Any, use: Callable[[Client], Awaitable[T]]) -> T:
    async def run() -> T:
        async with Client(server) as client:
            return await use(client)

    return asyncio.run(run())


async def said(client: Client, tool: str, **arguments: Any) -> tuple[str, bool]:
    result = await client.call_tool(tool, arguments)
    return result.content[0].text, bool(result.is_error)  # type: ignore[union-attr]


def test_tools_are_listed_with_their_schemas_and_run_on_the_folder(box: Sandbox, tmp_path: Path):
    (tmp_path / "apple").write_text("see pear")
    offered = OfferedTools(box, [*FILE_TOOLS, MOVE], tmp_path)

    async def use(client: Client) -> None:
        listed = {tool.name: tool.input_schema for tool in (await client.list_tools()).tools}
        assert listed["read"]["required"] == ["name"] and listed["list"]["properties"] == {}
        assert await said(client, "read", name="apple") == ("see pear", False)
        await said(client, "move", old="apple", new="new/pear")
        assert await said(client, "read", name="apple") == ("no such file", True)

    with_client(mcp_server(offered), use)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    assert (tmp_path / "new" / "pear").read_text() == "see pear"


def test_what_goes_wrong_is_an_error_result_and_the_server_goes_on(box: Sandbox):
    async def use(client: Client) -> None:
        assert await said(client, "nosuch") == ("invalid: no tool nosuch", True)
        assert await said(client, "read", nome="x") == ("invalid: read has no argument nome", True)
        assert await said(client, "count") == ("0", False)
        assert await said(client, "count") == ("1", False)  # notes last as long as the server

    with_client(mcp_server(OfferedTools(box, [*FILE_TOOLS, COUNT])), use)


def test_tools_run_in_the_sandbox_without_network_or_files_of_ours(box: Sandbox, tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        async def use(client: Client) -> tuple[str, bool]:
            return await said(client, "spy", path=str(tmp_path), port=port)

        assert with_client(mcp_server(OfferedTools(box, [SPY])), use) == ("False False", False)


def test_over_http_on_this_machine(box: Sandbox):
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    app = mcp_server(OfferedTools(box, FILE_TOOLS)).streamable_http_app()
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/mcp"
    try:
        with McpClient(url, prefix="remote_", timeout_seconds=20) as client:
            assert [tool.name for tool in client.tools] == ["remote_read", "remote_list"]
            assert client.tools[1].run(ToolCall("remote_list", {})).text == ""
        # A page of another site that resolves to this machine is turned away.
        assert httpx.post(url, json={}, headers={"Host": "evil.example"}).status_code == 421
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()


@pytest.mark.slow
def test_a_client_from_pypi_starts_ours_by_its_command(tmp_path: Path):
    (tmp_path / "apple").write_text("value 42")
    environment = {"PYTHONPATH": str(Path(noria.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    arguments = ["-m", "noria", "mcp", "serve", "--tools", "files", "--workspace", str(tmp_path)]
    parameters = StdioServerParameters(command=sys.executable, args=arguments, env=environment)

    async def use(client: Client) -> tuple[str, bool]:
        return await said(client, "read", name="apple")

    assert with_client(parameters, use) == ("value 42", False)


def test_sets_of_tools_are_found_by_name_or_in_a_file(tmp_path: Path):
    assert {"files", "memory", "terminal"} <= set(tool_sets())
    assert [tool.name for tool in tools_named(["memory"])] == ["remember", "recall", "forget"]
    mine = tmp_path / "mine.py"
    mine.write_text("from noria.harness.tools import Tool\nT = Tool('add', 'add', (), source='def run(): return 1')")
    names = [tool.name for tool in tools_named(["files", str(mine)])]
    assert {"read_file", "list", "add"} <= set(names) and len(set(names)) == len(names)
    broken = tmp_path / "broken.py"
    broken.write_text("import nothing_of_this_name")
    for wrong, why in (
        ("nosuch", "there are files"),
        (str(broken), "nothing_of_this_name"),
        ("gone.py", "No such file"),
    ):
        with pytest.raises(UnknownTools, match=why):
            tools_named([wrong])


def test_a_workspace_neither_reads_nor_writes_through_links(tmp_path: Path):
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.mkdir()
    inside.mkdir()
    (outside / "secret").write_text("hidden")
    (inside / "link").symlink_to(outside / "secret")
    (inside / "door").symlink_to(outside)
    folder = WorkspaceFolder(inside, Limits())
    assert folder.read() == {}
    with pytest.raises(WorkspaceError, match="can't be changed"):
        folder.write({"door/new": "x"})
    with pytest.raises(WorkspaceError, match="no path"):
        folder.write({"../new": "x"})
    folder.write({"link": "mine"})
    assert (inside / "link").read_text() == "mine" and (outside / "secret").read_text() == "hidden"
    assert os.listdir(outside) == ["secret"]


def test_a_workspace_keeps_bytes_and_refuses_what_a_sandbox_could_not_hold(tmp_path: Path):
    limits = Limits(file_bytes=1000, workspace_bytes=3000)
    folder = WorkspaceFolder(tmp_path, limits)
    (tmp_path / "raw").write_bytes(b"\xff\x00\xfe")
    folder.write({"copy": folder.read()["raw"]})
    assert (tmp_path / "copy").read_bytes() == b"\xff\x00\xfe"
    (tmp_path / "big").write_bytes(b"x" * 1001)
    with pytest.raises(WorkspaceError, match="more than 1000 bytes"):
        folder.read()
    (tmp_path / "big").write_bytes(b"x" * 900)
    (tmp_path / "more").write_bytes(b"x" * 900)
    with pytest.raises(WorkspaceError, match="more than 1500 bytes"):
        folder.read()
