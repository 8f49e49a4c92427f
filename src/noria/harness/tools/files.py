"""Tools over a workspace of files: `read NAME` and `list`."""

from noria.harness.tools.toolbox import Parameter, Tool

READ = Tool(
    name="read",
    description="read NAME: the content of the file NAME",
    parameters=(Parameter("name", "the file's name"),),
    source="""
import os
def run(name):
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        raise ValueError("no such file") from None
    with open(descriptor, "rb") as stream:
        return stream.read(1 << 16).decode("utf-8", "replace")
""",
)

LIST = Tool(
    name="list",
    description="list: the names of all files, sorted",
    parameters=(),
    source="""
import os
def run():
    return "\\n".join(sorted(os.listdir(".")))
""",
)

FILE_TOOLS = (READ, LIST)
