"""Tools that a model may call: inside the sandbox (`Tool`, `CommandTool`), or our own code outside it (`HostTool`)."""

from noria.harness.tools.archive import Archive
from noria.harness.tools.browser import Browser, browser_tools
from noria.harness.tools.files import FILE_TOOLS, LIST, READ, WORKSPACE_TOOLS
from noria.harness.tools.memory import memory_tools
from noria.harness.tools.python import PYTHON
from noria.harness.tools.search import search_tools
from noria.harness.tools.summarise import SUMMARISE, summarise_with
from noria.harness.tools.terminal import TERMINAL
from noria.harness.tools.toolbox import (
    AnyTool,
    CommandTool,
    Described,
    HostTool,
    InvalidCall,
    Parameter,
    SandboxFailed,
    Tool,
    Toolbox,
    ToolCall,
    ToolError,
    ToolResult,
    Tools,
    WrongTools,
    parameters_schema,
)

__all__ = [
    "FILE_TOOLS",
    "LIST",
    "PYTHON",
    "READ",
    "SUMMARISE",
    "TERMINAL",
    "WORKSPACE_TOOLS",
    "AnyTool",
    "Archive",
    "Browser",
    "CommandTool",
    "Described",
    "HostTool",
    "InvalidCall",
    "Parameter",
    "SandboxFailed",
    "Tool",
    "ToolCall",
    "ToolError",
    "ToolResult",
    "Toolbox",
    "Tools",
    "WrongTools",
    "browser_tools",
    "memory_tools",
    "parameters_schema",
    "search_tools",
    "summarise_with",
]
