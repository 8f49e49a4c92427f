"""Attempts on doors of the kernel that no candidate needs. A refusal must be the filter's: another errno means that the
call was let through and failed on its arguments, which is no protection."""

from __future__ import annotations

from noria.sandbox.abuse.attempt import Attempt

NO = ("EPERM",)


def _call(name: str, x86_64: int, aarch64: int, arguments: str = "0, 0, 0, 0, 0, 0") -> Attempt:
    return Attempt(name, f"kernel({x86_64}, {aarch64}, {arguments})\nreturn 'escaped'", NO)


KERNEL = (
    _call("io_uring", 425, 425, "1, ctypes.create_string_buffer(120)"),
    _call("performance events", 298, 241, "ctypes.create_string_buffer(120), 0, -1, -1, 0"),
    _call("programs for the kernel", 321, 280, "0, ctypes.create_string_buffer(120), 120"),
    _call("handle page faults", 323, 282, "1"),
    _call("add a key", 248, 217, "b'user', b'n', b'v', 1, -3"),
    _call("ask for a key", 249, 218, "b'user', b'n', None, -3"),
    _call("the key ring", 250, 219, "0, -3, 0"),
    _call("shared memory that stays", 29, 194, "7, 4096, 0o1666"),
    _call("a message queue that stays", 68, 186, "7, 0o1666"),
    _call("a semaphore that stays", 64, 190, "7, 1, 0o1666"),
    _call("a queue of POSIX", 240, 180, "b'q', 0o102, 0o600, None"),
    _call("mount", 165, 40, "b'x', b'.', b'tmpfs', 0, 0"),
    _call("unmount", 166, 39, "b'/usr', 2"),
    _call("swap the root", 155, 41, "b'.', b'.'"),
    _call("open a file system", 430, 430, "b'tmpfs', 0"),
    _call("copy a tree of mounts", 428, 428, "-100, b'/', 1"),
    _call("move a mount", 429, 429, "-100, b'/', -100, b'.', 0"),
    _call("change a mount", 442, 442, "-100, b'/', 0, None, 0"),
    _call("load a kernel", 246, 104, "0, 0, None, 0"),
    _call("load a module", 175, 105, "None, 0, b''"),
    _call("load a module from a file", 313, 273, "0, b'', 0"),
    _call("remove a module", 176, 106, "b'none', 0o4000"),
    _call("restart the machine", 169, 142, "0, 0, 0, None"),  # with numbers that would not do it
    _call("swap to a file", 167, 224, "b'none', 0"),
    _call("disk quotas", 179, 60, "0, None, 0, None"),
    _call("account for processes", 163, 89, "b'none'"),
    _call("read the kernel's log", 103, 116, "3, ctypes.create_string_buffer(64), 64"),
    _call("another personality", 135, 92, "0x0040000"),
    _call("make a file's handle", 303, 264, "-100, b'.', ctypes.create_string_buffer(136), None, 0"),
    _call("watch a file system", 300, 262, "0, 0"),
    _call("rename the machine", 170, 161, "b'x', 1"),
    Attempt(
        "a call of another table",
        "kernel(0x40000000 | 39, 172)\nreturn '' if os.uname().machine != 'x86_64' else 'escaped'",
        ("EPERM", ""),
    ),
    Attempt(
        "a call as a 32-bit program",
        "if os.uname().machine != 'x86_64': os.kill(os.getpid(), 31)\n"
        "import mmap\npage = mmap.mmap(-1, 4096, prot=7)\npage.write(bytes.fromhex('b814000000cd80c3'))\n"
        "ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()\nreturn 'escaped'",
        ("signal 31", "EPERM"),
    ),
    Attempt("switch the filter off", "c('prctl', 22, 0, 0, 0, 0)\nreturn 'escaped'", ("EINVAL",)),
    Attempt("set the clock", "time.clock_settime(time.CLOCK_REALTIME, time.time())\nreturn 'escaped'", NO),
    Attempt("bend the clock", "c('adjtimex', (ctypes.c_long * 32)(1))\nreturn 'escaped'", NO),
    Attempt(
        "write a setting of the kernel",
        "open('/proc/sys/kernel/hostname', 'w')\nreturn 'escaped'",
        ("ENOENT", "EACCES", "EROFS"),
    ),
)
