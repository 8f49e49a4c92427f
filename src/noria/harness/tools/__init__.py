"""Tools that a model may call: inside the sandbox (`Tool`, `CommandTool`), or our own code outside it (`HostTool`)."""

from noria.harness.tools.files import FILE_TOOLS, LIST, READ
from noria.harness.tools.toolbox import (
    AnyTool,
    CommandTool,
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
    parameters_schema,
)

__all__ = [
    "FILE_TOOLS",
    "LIST",
    "READ",
    "AnyTool",
    "CommandTool",
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
    "parameters_schema",
]
