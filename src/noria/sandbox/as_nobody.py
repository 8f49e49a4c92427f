"""Run by root as source text, with JSON {place, paths, command}: becomes nobody and then the command.

What only root can reach (an interpreter in its home) is first shown beneath `place`, under its number in `paths`, in a
mount namespace of this process's own: nothing changes for anyone else.
"""

import ctypes
import json
import os
import sys

NOBODY, CLONE_NEWNS = 65534, 0x00020000
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18

libc = ctypes.CDLL(None, use_errno=True)


def main():
    order = json.loads(sys.argv[1])
    if libc.unshare(CLONE_NEWNS) != 0:
        fail("unshare")
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    sources = [os.open(path, os.O_PATH) for path in order["paths"]]  # before anything is laid over them
    mount("tmpfs", order["place"], "tmpfs", MS_NOSUID | MS_NODEV)
    os.chmod(order["place"], 0o755)
    for number, source in enumerate(sources):
        target = os.path.join(order["place"], str(number))
        shown = f"/proc/self/fd/{source}"
        os.mkdir(target) if os.path.isdir(shown) else open(target, "w").close()
        mount(shown, target, None, MS_BIND | MS_REC)
        os.close(source)
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    os.execv(order["command"][0], order["command"])


def mount(source, target, kind, flags):
    if libc.mount(source.encode(), target.encode(), kind and kind.encode(), flags, None) != 0:
        fail("mount " + target)


def fail(what):
    sys.exit(what + ": " + os.strerror(ctypes.get_errno()))


main()
