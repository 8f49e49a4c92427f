"""A Python snippet in the workspace. Nothing lives from one snippet to the next but files."""

from noria.harness.tools.toolbox import Parameter, Tool

# In the warm fork an answer takes milliseconds, and the snippet can't start other programs: `terminal` is for that.
# Only the snippet's own lines are shown of a traceback. Not deterministic: a snippet can read the clock.
PYTHON = Tool(
    name="python",
    description=(
        "python CODE: run CODE in a new Python interpreter in the workspace. Shows what it prints, or its traceback. "
        "Only files are kept. The standard library is there; network and other programs are not."
    ),
    parameters=(Parameter("code", "Python source text"),),
    source="""
import contextlib, io, linecache, traceback

MOST = 8192

class Printed(io.StringIO):
    def write(self, text):
        room = MOST - self.tell()
        self.cut = getattr(self, "cut", 0) + max(0, len(text) - room)
        super().write(text[: max(0, room)])
        return len(text)

def run(code):
    printed = Printed()
    linecache.cache["snippet"] = (len(code), None, code.splitlines(True), "snippet")
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        ending = outcome_of(code)
    text = printed.getvalue()
    if getattr(printed, "cut", 0):
        text += "\\n(%d more characters were printed)" % printed.cut
    return "\\n".join(part.rstrip("\\n") for part in (text, ending) if part)

def outcome_of(code):
    try:
        exec(compile(code, "snippet", "exec"), {"__name__": "__main__"})
    except SystemExit as stop:
        return "" if stop.code in (None, 0) else "exit code %s" % (stop.code,)
    except BaseException as error:
        at = error.__traceback__
        while at is not None and at.tb_frame.f_code.co_filename != "snippet":
            at = at.tb_next
        return "".join(traceback.format_exception(type(error), error, at, limit=20))[-2048:]
    return ""
""",
    deterministic=False,
)
