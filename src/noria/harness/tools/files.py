"""Tools over a workspace of files: read, write, append, edit, list, grep. All run inside the sandbox.

`FILE_TOOLS` are the two that a model of a million parameters can call (`read NAME`, `list`); `WORKSPACE_TOOLS` are for
models that write code.
"""

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

# Before the source of each tool below: paths are of the workspace alone, and what the system says of them is said in
# words that are the same on every machine.
_PATHS = """
import os, re

MOST = 1 << 15

def inside(path):
    if not path or path.startswith("/") or ".." in path.split("/") or "\\0" in path:
        raise ValueError("%r is no path inside the workspace" % path)
    return os.path.normpath(path)

def content_of(path):
    path = inside(path)
    if os.path.isdir(path):
        raise ValueError("%s is a folder" % path)
    if not os.path.isfile(path) or os.path.islink(path):
        raise ValueError("no such file: %s" % path)
    with open(path, "rb") as stream:
        return stream.read()

def text_of(path):
    try:
        return content_of(path).decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("%s is not UTF-8 text" % path) from None

def put(path, text, mode="wb"):
    path = inside(path)
    if os.path.isdir(path):
        raise ValueError("%s is a folder" % path)
    raw = text.encode("utf-8", "surrogateescape")
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        with open(path, mode) as stream:
            stream.write(raw)
    except OSError as error:
        raise ValueError("%s can't be written: %s" % (path, error.strerror)) from None
    return len(raw)

def paths_under(folder):
    folder = inside(folder or ".")
    if not os.path.exists(folder):
        raise ValueError("no such folder: %s" % folder)
    if os.path.isfile(folder):
        return [folder]
    found = [os.path.relpath(os.path.join(at, name)) for at, _, names in os.walk(folder) for name in names]
    return sorted(path for path in found if not os.path.islink(path))
"""

READ_FILE = Tool(
    name="read_file",
    description="read_file PATH FIRST LAST: the file's lines FIRST to LAST, counted from 1; without them all of it",
    parameters=(
        Parameter("path", "a path in the workspace"),
        Parameter("first", "number of the first line, from 1", "integer", required=False),
        Parameter("last", "number of the last line", "integer", required=False),
    ),
    source=_PATHS
    + """
def run(path, first, last):
    lines = content_of(path).decode("utf-8", "replace").splitlines(True)
    begin, end = first or 1, last or len(lines)
    if begin < 1 or end < begin - 1 or begin > max(1, len(lines)):
        raise ValueError("%s has %d lines; asked for %d to %d" % (path, len(lines), begin, end))
    shown, size = [], 0
    for line in lines[begin - 1 : end]:
        size += len(line)
        if size > MOST:
            break
        shown.append(line)
    text = "".join(shown)
    if size > MOST and not shown:
        return lines[begin - 1][:MOST] + "\\n(line %d is longer than %d characters)" % (begin, MOST)
    return text + "(cut before line %d of %d)" % (begin + len(shown), len(lines)) if size > MOST else text
""",
)

WRITE_FILE = Tool(
    name="write_file",
    description="write_file PATH TEXT: make the file PATH, or replace it, with TEXT",
    parameters=(Parameter("path", "a path in the workspace"), Parameter("text", "the whole content")),
    source=_PATHS
    + """
def run(path, text):
    return "wrote %d bytes to %s" % (put(path, text), path)
""",
)

APPEND_FILE = Tool(
    name="append_file",
    description="append_file PATH TEXT: add TEXT to the end of the file PATH, which is made if missing",
    parameters=(Parameter("path", "a path in the workspace"), Parameter("text", "what to add")),
    source=_PATHS
    + """
def run(path, text):
    return "added %d bytes to %s" % (put(path, text, "ab"), path)
""",
)

EDIT_FILE = Tool(
    name="edit_file",
    description="edit_file PATH OLD NEW: replace OLD, which must occur exactly once in the file, by NEW",
    parameters=(
        Parameter("path", "a path in the workspace"),
        Parameter("old", "text of the file, exactly as it is there"),
        Parameter("new", "what to put in its place; empty to delete"),
    ),
    source=_PATHS
    + """
def run(path, old, new):
    text = text_of(path)
    if not old:
        raise ValueError("old is empty")
    places, at = [], text.find(old)
    while at >= 0:
        places.append(text.count("\\n", 0, at) + 1)
        at = text.find(old, at + 1)
    if not places:
        raise ValueError("old does not occur in %s" % path)
    if len(places) > 1:
        raise ValueError("old occurs %d times in %s, on lines %s: give more of the text around it"
                         % (len(places), path, ", ".join(map(str, places[:10]))))
    put(path, text.replace(old, new))
    return "edited %s at line %d" % (path, places[0])
""",
)

LIST_FILES = Tool(
    name="list_files",
    description="list_files FOLDER: paths and sizes in bytes of all files under FOLDER, sorted; without it all files",
    parameters=(Parameter("folder", "a folder of the workspace", required=False),),
    source=_PATHS
    + """
def run(folder):
    paths = paths_under(folder)
    lines = ["%s %d" % (path, os.path.getsize(path)) for path in paths[:1000]]
    return "\\n".join(lines + ["(%d more)" % (len(paths) - 1000)] * (len(paths) > 1000)) or "no files"
""",
)

GREP_FILES = Tool(
    name="grep_files",
    description="grep_files PATTERN FOLDER: lines that match a regular expression, as PATH:LINE: TEXT, at most 100",
    parameters=(
        Parameter("pattern", "a regular expression of Python"),
        Parameter("folder", "a file or folder of the workspace", required=False),
    ),
    source=_PATHS
    + """
def run(pattern, folder):
    try:
        wanted = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError("the pattern can't be read: %s" % error) from None
    found, most = [], 100
    for path in paths_under(folder):
        for number, line in enumerate(content_of(path).decode("utf-8", "replace").splitlines(), 1):
            if wanted.search(line):
                found.append("%s:%d: %s" % (path, number, line[:200]))
                if len(found) > most:
                    return "\\n".join(found[:most]) + "\\n(more lines match)"
    return "\\n".join(found) or "no line matches"
""",
)

WORKSPACE_TOOLS = (READ_FILE, WRITE_FILE, APPEND_FILE, EDIT_FILE, LIST_FILES, GREP_FILES)
