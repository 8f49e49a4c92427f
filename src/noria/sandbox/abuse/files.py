"""Attempts on files: to read the host's, to change what is shown, to reach beyond the root."""

from __future__ import annotations

from noria.sandbox.abuse.attempt import Attempt

UNSEEN = ("ENOENT", "EACCES")  # not there at all, or refused by Landlock
UNCHANGEABLE = ("EROFS", "EACCES", "EPERM")

FILES = (
    Attempt("read the secret", "return 'escaped' if open(secret).read() else ''", UNSEEN, harmless=True),
    Attempt(
        "read the secret by a path with dots",
        "return 'escaped' if open('../' * 40 + secret.lstrip('/')).read() else ''",
        UNSEEN,
        harmless=True,
    ),
    Attempt(
        "read the secret under another spelling",
        "return 'escaped' if open('/./' + secret.replace('/', '//')).read() else ''",
        UNSEEN,
        harmless=True,
    ),
    Attempt("read the passwords", "return 'escaped' if open('/etc/passwd').read() else ''", UNSEEN, harmless=True),
    Attempt("list the home of root", "return 'escaped' if '.bashrc' in os.listdir('/root') else ''", ("", *UNSEEN)),
    Attempt(
        "list the folder of the secret", "os.listdir(os.path.dirname(secret))\nreturn 'escaped'", UNSEEN, harmless=True
    ),
    Attempt(
        "learn that the secret exists",
        "os.stat(secret)\nreturn 'escaped'",
        UNSEEN,
        weaker="Landlock does not hide that a path exists",
        harmless=True,
    ),
    Attempt(
        "look for other sandboxes",
        "return 'escaped' if any('noria' in name for name in os.listdir('..')) else ''",
        ("", *UNSEEN),
    ),
    Attempt("write into /usr", "open('/usr/planted', 'w')\nreturn 'escaped'", UNCHANGEABLE),
    Attempt("write into the root", "open('/planted', 'w')\nreturn 'escaped'", UNCHANGEABLE),
    Attempt("write beside the secret", "open(secret + '.planted', 'w')\nreturn 'escaped'", UNSEEN, harmless=True),
    Attempt("delete the secret", "os.unlink(secret)\nreturn 'escaped'", UNSEEN),
    Attempt("rename the secret", "os.rename(secret, secret + '.moved')\nreturn 'escaped'", (*UNSEEN, "EXDEV")),
    Attempt("truncate the secret", "os.truncate(secret, 0)\nreturn 'escaped'", UNSEEN),
    Attempt(
        "change a module", "open(os.path.dirname(os.__file__) + '/planted.py', 'w')\nreturn 'escaped'", UNCHANGEABLE
    ),
    Attempt("change a program", "open('/usr/bin/env', 'r+b')\nreturn 'escaped'", (*UNCHANGEABLE, "ETXTBSY")),
    Attempt(
        "move a file out",
        "open('a', 'w').close()\nos.rename('a', '/usr/a')\nreturn 'escaped'",
        (*UNCHANGEABLE, "EXDEV"),
    ),
    Attempt("link a program in", "os.link('/usr/bin/env', 'env')\nreturn 'escaped'", (*UNCHANGEABLE, "EXDEV")),
    Attempt("change a program's permissions", "os.chmod('/usr/bin/env', 0o777)\nreturn 'escaped'", UNCHANGEABLE),
    Attempt("change a program's owner", "os.chown('/usr/bin/env', 65534, 65534)\nreturn 'escaped'", UNCHANGEABLE),
    Attempt("change a program's times", "os.utime('/usr/bin/env')\nreturn 'escaped'", UNCHANGEABLE),
    Attempt(
        "hide an attribute on a program",
        "os.setxattr('/usr/bin/env', 'user.planted', b'1')\nreturn 'escaped'",
        (*UNCHANGEABLE, "EOPNOTSUPP"),
    ),
    Attempt("change the null device", "os.chmod('/dev/null', 0o600)\nreturn 'escaped'", UNCHANGEABLE),
    Attempt("make a device", "os.mknod('memory', 0o20666, os.makedev(1, 1))\nreturn 'escaped'", UNCHANGEABLE),
    Attempt("read the memory device", "open('/dev/mem', 'rb')\nreturn 'escaped'", (*UNSEEN, "EPERM")),
    Attempt("read the kernel's log device", "open('/dev/kmsg', 'rb')\nreturn 'escaped'", (*UNSEEN, "EPERM")),
    Attempt("open the terminal", "open('/dev/tty', 'r+b', 0)\nreturn 'escaped'", (*UNSEEN, "ENXIO")),
    Attempt("change the root", "os.chroot('.')\nreturn 'escaped'", ("EPERM",)),
    Attempt("read /sys", "return 'escaped' if os.listdir('/sys') else ''", UNSEEN, harmless=True),
    Attempt("read /proc", "return 'escaped' if os.listdir('/proc') else ''", UNSEEN, opened_by="proc", harmless=True),
    Attempt("reach the root by /proc", "return 'escaped' if os.listdir('/proc/1/root') else ''", UNSEEN),
    Attempt(
        "open the secret by its handle",
        "handle = ctypes.create_string_buffer(136)\nkernel(304, 265, -100, handle, 0)\nreturn 'escaped'",
        ("EPERM",),
    ),
)
