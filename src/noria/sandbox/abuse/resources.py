"""Attempts to use more memory, time on the processor, files, descriptors or output than allowed."""

from __future__ import annotations

from noria.sandbox.abuse.attempt import COMMAND, FUNCTION, Attempt

# A limit of time may come first: using memory takes some.
MEMORY = ("MemoryError", "signal 9", "ENOMEM", "out of memory", "timeout")
FULL = ("ENOSPC", "EFBIG", "EDQUOT", "signal 9", "out of memory")
SILENCED = ("exit 1", "exit 120")  # nothing more can be said, not even how it ended

RESOURCES = (
    Attempt("a block of 2 GB", "block = bytearray(2 << 30)\nreturn 'escaped'", MEMORY),
    Attempt("3,000 blocks of 1 MB", "blocks = [bytearray(1 << 20) for _ in range(3000)]\nreturn 'escaped'", MEMORY),
    Attempt("a string that doubles", "text = 'x'\nwhile len(text) < 1 << 33: text += text\nreturn 'escaped'", MEMORY),
    Attempt("map a terabyte", "import mmap\nmmap.mmap(-1, 1 << 40)\nreturn 'escaped'", MEMORY),
    Attempt(
        "shared memory of 2 GB",
        "import mmap\nblock = mmap.mmap(-1, 2 << 30)\nreturn 'escaped'",
        MEMORY,
        opened_by="bounds_address_space",
    ),
    Attempt("lock memory", "c('mlockall', 3)\nreturn 'escaped'", ("EPERM", "ENOMEM")),
    Attempt(
        "memory by many processes",
        "waiting = []\nfor _ in range(8):\n  told, tell = os.pipe()\n  if os.fork() == 0:\n    try:\n"
        "      block = b'x' * (120 << 20)\n      os.write(tell, b'+')\n    except BaseException: pass\n"
        "    time.sleep(1)\n"
        "    os._exit(0)\n  os.close(tell)\n  waiting.append(told)\n"
        "held = sum(os.read(told, 1) == b'+' for told in waiting)\nreturn 'escaped' if held * 120 > 500 else ''",
        ("", *MEMORY),
        COMMAND,
    ),
    Attempt(
        "memory in files of memory",
        "files = [os.memfd_create(str(n)) for n in range(24)]\nfor fd in files:\n"
        "  for part in range(64): os.write(fd, bytes(1 << 20))\nreturn 'escaped'",
        (*FULL, "EMFILE"),
    ),
    Attempt(
        "memory in pipes",
        "import fcntl\nfor _ in range(500):\n  told, tell = os.pipe()\n"
        "  fcntl.fcntl(tell, 1031, 1 << 24)\nreturn 'escaped'",
        ("EPERM", "EMFILE", "EBUSY"),
    ),
    Attempt(
        "raise the limit of time",
        "import resource as r\nr.setrlimit(r.RLIMIT_CPU, (999, 999))\nreturn 'escaped'",
        ("ValueError", "EPERM"),
    ),
    Attempt(
        "raise the limit of memory",
        "import resource as r\nr.setrlimit(r.RLIMIT_AS, (-1, -1))\nreturn 'escaped'",
        ("ValueError", "EPERM"),
        opened_by="bounds_address_space",
    ),
    Attempt(
        "raise the limit of files",
        "import resource as r\nr.setrlimit(r.RLIMIT_FSIZE, (-1, -1))\nreturn 'escaped'",
        ("ValueError", "EPERM"),
    ),
    Attempt("one huge file", "open('huge', 'wb').write(bytes(64 << 20))\nreturn 'escaped'", FULL),
    Attempt(
        "fill the workspace",
        "for number in range(64): open(str(number), 'wb').write(bytes(1_000_000))\nreturn 'escaped'",
        FULL,
        weaker="without a file system of its own the size of all files together has no bound but memory and time",
    ),
    Attempt(
        "a million empty files",
        "for number in range(1_000_000): open(str(number), 'w').close()\nreturn 'escaped'",
        ("timeout", *FULL),
    ),
    Attempt("open every file", "files = [os.open('/dev/null', 0) for _ in range(500)]\nreturn 'escaped'", ("EMFILE",)),
    Attempt(
        "flood the output", "for _ in range(4096): os.write(1, b'x' * 65536)\nreturn 'escaped'", (*FULL, *SILENCED)
    ),
    Attempt(
        "flood the errors", "for _ in range(4096): os.write(2, b'x' * 65536)\nreturn 'escaped'", (*FULL, *SILENCED)
    ),
    Attempt("a result of 8 MB", "return 'x' * (8 << 20)", ("EFBIG", "OSError", "error"), FUNCTION),
    Attempt(
        "a stack without end",
        "import sys\nsys.setrecursionlimit(1 << 30)\ndef deeper(n): return [deeper(n + 1)]\nreturn deeper(0)",
        ("signal 11", "RecursionError", "timeout", *MEMORY),
    ),
    Attempt(
        "a sum that never ends", "return str(len(str(bytes(9)))) if 7 ** (7 ** 99) else 'escaped'", ("timeout", *MEMORY)
    ),
    Attempt(
        "a pattern that never matches", "import re\nre.match('(a+)+$', 'a' * 60 + 'b')\nreturn 'escaped'", ("timeout",)
    ),
    Attempt(
        "a text that unpacks to gigabytes",
        "import zlib\nbomb = zlib.compressobj()\n"
        "packed = b''.join(bomb.compress(bytes(1 << 20)) for _ in range(2048)) + bomb.flush()\n"
        "return 'escaped' if zlib.decompress(packed) else ''",
        ("timeout", *MEMORY),
    ),
    Attempt(
        "source that breaks the parser", "return eval('(' * 5000 + ')' * 5000)", ("SyntaxError", "signal 11", *MEMORY)
    ),
    Attempt("use the processor on", "while True: pass", ("timeout",)),
    Attempt(
        "use it by threads",
        "import threading\nthreading.stack_size(1 << 16)\n"
        "for _ in range(4): threading.Thread(target=lambda: [None for _ in iter(int, 1)]).start()\n"
        "time.sleep(60)\nreturn 'escaped'",
        ("timeout", *MEMORY),
    ),
    Attempt(
        "use it by one process after another",
        "while True:\n  end = time.process_time() + 0.3\n  while time.process_time() < end: pass\n"
        "  if os.fork():\n    os.wait()\n    os._exit(0)",
        ("timeout",),
        COMMAND,
    ),
    Attempt("dump its memory to a file", "os.abort()", ("signal 6", "signal 11")),
)
