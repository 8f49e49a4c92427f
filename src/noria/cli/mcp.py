"""The Model Context Protocol: noria mcp serve | tools | call."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from noria.cli.app import FAILED, OK, JsonOption, app, json_object
from noria.studio.output import console, print_json

if TYPE_CHECKING:
    from noria.harness.mcp.client import McpClient

mcp = typer.Typer(help="MCP: offer noria's tools to other programs, use the tools of others.", no_args_is_help=True)
app.add_typer(mcp, name="mcp")

ServerArgument = Annotated[
    str, typer.Argument(metavar="SERVER", help="A URL, or a command in quotes that speaks MCP over stdio.")
]
ConfineOption = Annotated[bool, typer.Option("--confine", help="Run the command in bubblewrap: no network, no files.")]
TimeoutOption = Annotated[float, typer.Option(min=0.1, help="Seconds for a start and for a call.")]


@mcp.command(
    epilog="Examples: noria mcp serve --tools files --workspace project    "
    "noria mcp serve --tools files,my_tools.py --http 8765"
)
def serve(
    tools: Annotated[str, typer.Option(help="Sets of tools, by comma: names, or .py files that define some.")],
    workspace: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="The folder that tools work on; empty if left out."),
    ] = None,
    http: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Listen at this port of 127.0.0.1 instead of stdio.")
    ] = None,
) -> int:
    """Offer tools to an MCP client. They run in the sandbox; what they change is written to the workspace."""
    from noria.harness.mcp.server import OfferedTools, UnknownTools, serve_http, serve_stdio, tools_named
    from noria.harness.mcp.workspace import WorkspaceError
    from noria.sandbox import Sandbox

    try:
        chosen = tools_named([name.strip() for name in tools.split(",") if name.strip()])
        with Sandbox(workers=1) as box:
            offered = OfferedTools(box, chosen, workspace)
            if http is None:
                serve_stdio(offered)
            else:
                typer.echo(f"http://127.0.0.1:{http}/mcp offers {', '.join(tool.name for tool in chosen)}", err=True)
                serve_http(offered, http)
    except (UnknownTools, WorkspaceError) as error:
        raise typer.BadParameter(str(error)) from error
    return OK


@mcp.command(name="tools", epilog="Example: noria mcp tools 'mcp-server-time --local-timezone UTC'")
def list_tools(
    server: ServerArgument, confine: ConfineOption = False, timeout: TimeoutOption = 30.0, json_: JsonOption = False
) -> int:
    """List the tools of an MCP server, as a model is told of them."""
    from noria.harness.tools import parameters_schema

    with _client(server, confine, timeout) as client:
        if json_:
            found: list[dict[str, Any]] = [
                {"name": tool.name, "description": tool.description, "parameters": parameters_schema(tool)}
                for tool in client.tools
            ]
            return print_json(found)
        for tool in client.tools:
            names = " ".join(one.name if one.required else f"[{one.name}]" for one in tool.parameters)
            console().print(f"{tool.name} {names}", markup=False, highlight=False)
            console().print(f"    {tool.description.splitlines()[0] if tool.description else ''}", markup=False)
    return OK


@mcp.command(
    epilog="Example: noria mcp call 'mcp-server-time' get_current_time '{\"timezone\": \"UTC\"}'. Exit codes: 0 done, "
    "1 the call failed."
)
def call(
    server: ServerArgument,
    tool: Annotated[str, typer.Argument(metavar="TOOL")],
    arguments: Annotated[str, typer.Argument(metavar="JSON", help="The arguments, a JSON object.")] = "{}",
    confine: ConfineOption = False,
    timeout: TimeoutOption = 30.0,
) -> int:
    """Call a tool of an MCP server and print what a model would be told."""
    from noria.harness.tools import InvalidCall, ToolCall, ToolError
    from noria.harness.tools.toolbox import bind

    given = json_object(arguments, "the argument JSON")
    with _client(server, confine, timeout) as client:
        chosen = next((one for one in client.tools if one.name == tool), None)
        if chosen is None:
            raise typer.BadParameter(f"no tool {tool!r}; there are {', '.join(one.name for one in client.tools)}")
        try:
            typer.echo(chosen.run(ToolCall(tool, bind(chosen, given))).text)
        except InvalidCall as error:
            raise typer.BadParameter(str(error)) from error
        except ToolError as error:
            typer.echo(f"error: {error}", err=True)
            return FAILED
    return OK


def _client(server: str, confine: bool, timeout_seconds: float) -> McpClient:
    from noria.harness.mcp.client import McpClient, require_sdk

    require_sdk()
    from noria.harness.mcp.stdio import Command

    if server.startswith(("http://", "https://")):
        return McpClient(server, timeout_seconds=timeout_seconds)
    try:
        argv = tuple(shlex.split(server))
    except ValueError as error:
        raise typer.BadParameter(f"SERVER {server!r}: {error}") from error
    if not argv:
        raise typer.BadParameter("SERVER is empty: give a URL or a command")
    return McpClient(Command(argv, confine=confine), timeout_seconds=timeout_seconds)
