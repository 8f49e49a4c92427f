"""Attempts by what is left in the workspace: to make a reader outside follow, wait, choke or write elsewhere."""

from __future__ import annotations

from noria.sandbox.abuse.attempt import Attempt

LEFT = ("",)  # it may leave it there; whoever collects must not be fooled

LINKS = (
    Attempt("a link to the secret", "os.symlink(secret, 'answer')\nreturn ''", LEFT),
    Attempt(
        "a link to the secret instead of a file it was given",
        "os.unlink('given')\nos.symlink(secret, 'given')\nreturn ''",
        LEFT,
    ),
    Attempt("a link to the secret's folder", "os.symlink(os.path.dirname(secret), 'folder')\nreturn ''", LEFT),
    Attempt(
        "a folder replaced by a link",
        "os.mkdir('folder')\nos.rmdir('folder')\nos.symlink('/', 'folder')\nreturn ''",
        LEFT,
    ),
    Attempt("a link with dots", "os.symlink('../' * 40 + secret.lstrip('/'), 'answer')\nreturn ''", LEFT),
    Attempt("a link to the passwords", "os.symlink('/etc/passwd', 'answer')\nreturn ''", LEFT),
    Attempt(
        "a link to a descriptor",
        "os.symlink('/proc/self/fd/0', 'answer')\nos.symlink('/dev/stdin', 'again')\nreturn ''",
        LEFT,
    ),
    Attempt(
        "links in a ring",
        "os.symlink('b', 'a')\nos.symlink('a', 'b')\nos.mkdir('d')\nos.symlink('..', 'd/up')\nreturn ''",
        LEFT,
    ),
    Attempt("a pipe that nobody writes", "os.mkfifo('answer')\nreturn ''", LEFT),
    Attempt("a device that never ends", "os.symlink('/dev/zero', 'answer')\nreturn ''", LEFT),
    Attempt(
        "a file that can't be read", "open('answer', 'w').close()\nos.chmod('answer', 0)\nreturn ''", ("", "EPERM")
    ),
    Attempt(
        "a folder that can't be read",
        "os.mkdir('d')\nopen('d/answer', 'w').close()\nos.chmod('d', 0)\nreturn ''",
        ("", "EPERM"),
    ),
    Attempt("a workspace that can't be read", "os.chmod('.', 0)\nreturn ''", ("", "EPERM")),
    Attempt(
        "a workspace moved away",
        "os.rename(os.getcwd(), os.getcwd() + '2')\nreturn 'escaped'",
        ("EROFS", "EBUSY", "EACCES", "EPERM", "EXDEV"),
    ),
    Attempt(
        "a workspace deleted",
        "os.rmdir(os.getcwd())\nreturn 'escaped'",
        ("EROFS", "EBUSY", "EACCES", "EPERM", "ENOTEMPTY"),
    ),
    Attempt(
        "folders too deep for any path",
        "for _ in range(3000):\n  os.mkdir('d')\n  os.chdir('d')\nopen('end', 'w').close()\nreturn ''",
        ("", "timeout", "ENAMETOOLONG"),
    ),
    Attempt(
        "folders too deep, and closed",
        "for _ in range(500):\n  os.mkdir('d')\n  os.chdir('d')\n  os.chmod('..', 0)\nreturn ''",
        ("", "EPERM", "EACCES"),
    ),
    Attempt(
        "names that are no text",
        "for name in (b'\\xff\\xfe', b'a\\nb', b'\\x1b[2J', b'-rf', b'.. '): open(name, 'w').close()\nreturn ''",
        LEFT,
    ),
    Attempt(
        "names that are too long",
        "os.mkdir('n' * 255)\nopen('n' * 255 + '/' + 'm' * 255, 'w').close()\nreturn ''",
        LEFT,
    ),
    Attempt(
        "ten thousand files", "for number in range(10_000): open(str(number), 'w').close()\nreturn ''", ("", "timeout")
    ),
    Attempt(
        "files with holes",
        "for number in range(12):\n  with open(str(number), 'wb') as file: file.truncate(1 << 20)\nreturn ''",
        ("", "EFBIG"),
    ),
    Attempt("a file with two names", "open('a', 'w').write('x')\nos.link('a', 'b')\nreturn ''", LEFT),
    Attempt(
        "the interpreter's settings",
        "for name in ('sitecustomize.py', 'usercustomize.py', 'json.py', 'os.py', 'base64.py'):\n"
        "    open(name, 'w').write('raise SystemExit(0)')\n"
        "return ''",
        LEFT,
    ),
)
