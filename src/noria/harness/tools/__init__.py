"""Tools that a model may call. Each is run for real, inside the sandbox."""

from noria.harness.tools.files import FILE_TOOLS, LIST, READ
from noria.harness.tools.toolbox import SandboxFailed, SandboxTools, Tool, ToolCall, ToolResult, Tools

__all__ = [
    "FILE_TOOLS",
    "LIST",
    "READ",
    "SandboxFailed",
    "SandboxTools",
    "Tool",
    "ToolCall",
    "ToolResult",
    "Tools",
]
