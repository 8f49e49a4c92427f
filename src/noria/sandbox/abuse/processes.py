"""Attempts to start, watch, change or end processes, and to gain another identity.

Signals are harmless ones throughout: the kernel asks the same permission for each.
"""

from __future__ import annotations

from noria.sandbox.abuse.attempt import COMMAND, FUNCTION, Attempt

NO = ("EPERM",)
SERVER = "server = os.getppid()\n"

PROCESSES = (
    Attempt("fork", "if os.fork() == 0: os._exit(0)\nreturn 'escaped'", NO, FUNCTION, harmless=True),
    Attempt("run a program", "os.execv('/usr/bin/id', ['id'])", NO, FUNCTION),
    Attempt(
        "run a program from memory",
        "fd = os.memfd_create('program')\nos.write(fd, open('/usr/bin/true', 'rb').read(1 << 16))\n"
        "kernel(322, 281, fd, b'', None, None, 0x1000)",
        NO,
        FUNCTION,
    ),
    Attempt(
        "run a shell",
        "import subprocess\nsubprocess.run(['sh', '-c', 'exit 0'])\nreturn 'escaped'",
        ("EPERM", "BlockingIOError"),
        FUNCTION,
        harmless=True,
    ),
    Attempt("spawn", "os.posix_spawn('/usr/bin/true', ['true'], {})\nreturn 'escaped'", NO, FUNCTION, harmless=True),
    Attempt(
        "more processes than allowed",
        "for number in range(200):\n  if os.fork() == 0:\n    time.sleep(30)\n    os._exit(0)\nreturn 'escaped'",
        ("EAGAIN",),
        COMMAND,
    ),
    Attempt(
        "a bomb of forks", "while True:\n  try: os.fork()\n  except OSError: pass", ("timeout", "signal 9"), COMMAND
    ),
    Attempt(
        "more threads than allowed",
        "import threading\nthreading.stack_size(1 << 16)\n"
        "for number in range(2000): threading.Thread(target=time.sleep, args=(30,), daemon=True).start()\n"
        "return 'escaped'",
        ("RuntimeError",),
    ),
    Attempt(
        "leave a process behind",
        "if os.fork() == 0:\n  os.setsid()\n  if os.fork() == 0:\n    while True:\n      open('ghost', 'w').close()\n"
        "      time.sleep(0.005)\n  os._exit(0)\nreturn ''",
        ("",),
        COMMAND,
    ),
    Attempt("signal everyone", "os.kill(-1, 0)\nreturn 'escaped'", NO, FUNCTION),
    Attempt(
        "signal the server",
        SERVER + "os.kill(server, 0)\nreturn 'escaped' if server != 1 else 'its own process 1'",
        ("EPERM", "its own process 1"),  # which takes no harm: see the next
    ),
    Attempt(
        "end the server",
        "if os.getppid() != 1: raise PermissionError(1, 'not alone in a namespace')\n"
        "os.kill(1, 9)\nos.kill(1, 19)\nreturn ''",
        ("", "EPERM"),
    ),
    Attempt(
        "signal the server by its descriptor",
        SERVER + "import signal\nsignal.pidfd_send_signal(os.pidfd_open(server), 0)\nreturn 'escaped'",
        NO,
    ),
    Attempt(
        "queue a signal to the server",
        SERVER + "kernel(129, 138, server, 23, ctypes.create_string_buffer(128))\nreturn 'escaped'",
        NO,
        FUNCTION,
    ),
    Attempt(
        "take the server's files",
        SERVER + "import resource\nresource.prlimit(server, resource.RLIMIT_NOFILE, (3, 3))\nreturn 'escaped'",
        NO,
    ),
    Attempt("slow the server down", SERVER + "os.setpriority(os.PRIO_PROCESS, server, 19)\nreturn 'escaped'", NO),
    Attempt("slow the user down", "os.setpriority(os.PRIO_USER, 0, 19)\nreturn 'escaped'", NO),
    Attempt(
        "let the server run when all is idle",
        SERVER + "os.sched_setscheduler(server, os.SCHED_IDLE, os.sched_param(0))\nreturn 'escaped'",
        NO,
    ),
    Attempt("keep the server on one core", SERVER + "os.sched_setaffinity(server, {0})\nreturn 'escaped'", NO),
    Attempt("starve the server's disk", SERVER + "kernel(251, 30, 1, server, 3 << 13)\nreturn 'escaped'", NO),
    Attempt(
        "move the server's memory",
        SERVER
        + (
            "kernel(256, 238, server, 1, ctypes.byref(ctypes.c_ulong(1)), ctypes.byref(ctypes.c_ulong(1)))\n"
            "return 'escaped'"
        ),
        NO,
    ),
    Attempt("trace the server", SERVER + "kernel(101, 117, 16, server, 0, 0)\nreturn 'escaped'", NO),
    Attempt("be traced", "kernel(101, 117, 0, 0, 0, 0)\nreturn 'escaped'", NO),
    Attempt("read the server's memory", SERVER + "kernel(310, 270, server, None, 0, None, 0, 0)\nreturn 'escaped'", NO),
    Attempt(
        "write the server's memory", SERVER + "kernel(311, 271, server, None, 0, None, 0, 0)\nreturn 'escaped'", NO
    ),
    Attempt(
        "take a descriptor of the server",
        SERVER + "kernel(438, 438, os.pidfd_open(server), 0, 0)\nreturn 'escaped'",
        NO,
    ),
    Attempt("compare with the server", SERVER + "kernel(312, 272, server, os.getpid(), 0, 0, 0)\nreturn 'escaped'", NO),
    Attempt(
        "read the server's environment",
        SERVER + "open('/proc/%d/environ' % server)\nreturn 'escaped'",
        ("ENOENT", "EACCES"),
    ),
    Attempt(
        "become root",
        "os.setresuid(0, 0, 0)\nreturn 'escaped'",
        ("EPERM", "EINVAL"),
        weaker="where nobody can't reach the interpreter it runs as whoever started it, without capabilities",
    ),
    Attempt("join a group", "os.setgroups([0])\nreturn 'escaped'", ("EPERM",)),
    Attempt("gain by a privileged program", "return '' if c('prctl', 39, 0, 0, 0, 0) == 1 else 'escaped'", ("",)),
    Attempt(
        "take up capabilities",
        "header = (ctypes.c_uint32 * 2)(0x20080522, 0)\nall = (ctypes.c_uint32 * 6)(*[0xffffffff] * 6)\n"
        "c('capset', header, all)\nreturn 'escaped'",
        NO,
    ),
    Attempt(
        "have a capability",
        "return '' if all(c('prctl', 23, n, 0, 0, 0) == 0 for n in (0, 1, 7, 12, 19, 21)) else 'escaped'",
        ("", "EINVAL"),
    ),
    Attempt("open a user namespace", "c('unshare', 0x10000000)\nreturn 'escaped'", NO),
    Attempt("open a mount namespace", "c('unshare', 0x00020000)\nreturn 'escaped'", NO),
    Attempt("clone into a namespace", "kernel(56, 220, 0x10000000 | 17, 0, 0, 0, 0)\nreturn 'escaped'", NO),
    Attempt(
        "clone in a way that can't be read",
        "kernel(435, 435, ctypes.create_string_buffer(88), 88)\nreturn 'escaped'",
        ("ENOSYS",),
    ),
    Attempt(
        "enter the server's namespace",
        SERVER + "kernel(308, 268, os.pidfd_open(server), 0x20000)\nreturn 'escaped'",
        NO,
    ),
)
