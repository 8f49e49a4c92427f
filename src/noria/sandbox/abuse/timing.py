"""Attempts to outlast a limit of time, to hang whoever waits, or to act after the end."""

from __future__ import annotations

from noria.sandbox.abuse.attempt import COMMAND, FUNCTION, Attempt

LATE = ("timeout",)

TIMING = (
    Attempt("sleep", "time.sleep(3600)\nreturn 'escaped'", LATE),
    Attempt("wait for input", "import select\nselect.select([], [], [], 3600)\nreturn 'escaped'", LATE),
    Attempt("read the input", "return 'escaped' if sys.stdin.read() else ''", ("",)),
    Attempt("ignore the limit", "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass", LATE),
    Attempt(
        "ignore every signal",
        "import signal\n"
        "for number in set(signal.valid_signals()) - {9, 19}: signal.signal(number, signal.SIG_IGN)\n"
        "while True: pass",
        LATE,
    ),
    Attempt(
        "block every signal",
        "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())\nwhile True: pass",
        LATE,
    ),
    Attempt("stop oneself", "os.kill(os.getpid(), 19)\ntime.sleep(60)\nreturn 'escaped'", ("timeout", "EPERM")),
    Attempt(
        "an error that never ends",
        "class Slow(Exception):\n  def __str__(self):\n    while True: pass\nraise Slow",
        ("timeout", "Slow"),
    ),
    Attempt(
        "a value that never ends", "class Slow(str):\n  def __str__(self):\n    while True: pass\nreturn Slow()", LATE
    ),
    Attempt(
        "a thread that goes on",
        "import threading\nthreading.Thread(target=lambda: [None for _ in iter(int, 1)]).start()\nreturn ''",
        ("", "timeout"),
    ),
    Attempt(
        "something to do at the exit", "import atexit\natexit.register(time.sleep, 3600)\nreturn ''", ("", "timeout")
    ),
    Attempt(
        "an alarm for later",
        "import signal\nsignal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)\nreturn ''",
        ("", "signal 14"),
    ),
    Attempt(
        "a child that keeps the output open",
        "if os.fork() == 0:\n  os.setsid()\n  time.sleep(3600)\nreturn ''",
        ("",),
        COMMAND,
    ),
    Attempt(
        "a child that outlives the limit",
        "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\nif os.fork() == 0:\n  os.setsid()\n"
        "  time.sleep(3)\n"
        "  open('ghost', 'w').close()\n  os._exit(0)\ntime.sleep(3600)",
        LATE,
        COMMAND,
    ),
    Attempt(
        "a lock that stays",
        "import fcntl\nfile = open('/dev/null')\nfcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)\nreturn ''",
        ("", "EAGAIN"),
    ),
    Attempt(
        "a module that never loads",
        "sys.meta_path.insert(0, type('Slow', (), {'find_spec': staticmethod(lambda *_: time.sleep(3600))}))\n"
        "import calendar\nreturn 'escaped'",
        LATE,
        FUNCTION,
    ),
)
