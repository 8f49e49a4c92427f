"""Attempts to reach a network or another program's socket."""

from __future__ import annotations

from noria.sandbox.abuse.attempt import COMMAND, Attempt


def _socket(
    name: str, family: int, kind: int, protocol: int = 0, *, opened_by: str = "", harmless: bool = False
) -> Attempt:
    body = f"import socket\nsocket.socket({family}, {kind}, {protocol})\nreturn 'escaped'"
    return Attempt(name, body, ("EPERM",), opened_by=opened_by, harmless=harmless)


NETWORK = (
    _socket("a TCP socket", 2, 1, harmless=True),
    _socket("a UDP socket", 2, 2, harmless=True),
    _socket("a TCP socket of IPv6", 10, 1),
    _socket("a Unix socket", 1, 1, opened_by="unix_sockets", harmless=True),
    Attempt(
        "a Unix socket of the host",
        "import socket\nsocket.socket(socket.AF_UNIX).connect('\\0' + secret)\nreturn 'escaped'",
        ("EPERM", "ECONNREFUSED"),
    ),
    _socket("a netlink socket", 16, 3),
    _socket("a packet socket", 17, 3, 768),
    _socket("a raw socket", 2, 3, 1),
    _socket("a socket to the hypervisor", 40, 1),
    _socket("a socket of the kernel's ciphers", 38, 5),
    Attempt(
        "ask for a name's address",
        "import socket\nsocket.getaddrinfo('localhost', 80, proto=6)\n"
        "socket.create_connection(('localhost', 80), 1)\nreturn 'escaped'",
        ("EPERM", "gaierror"),
    ),
    Attempt(
        "use a socket that was left open",
        "import stat\nfor fd in range(256):\n  try:\n    kind = os.fstat(fd).st_mode\n  except OSError:\n    continue\n"
        "  if stat.S_ISSOCK(kind) or stat.S_ISFIFO(kind): return 'escaped'\nreturn ''",
        ("",),
    ),
    Attempt(
        "the shell's own network",
        "import subprocess\ndone = subprocess.run("
        "['bash', '-c', 'exec 3<>/dev/udp/127.0.0.1/9'], capture_output=True)\n"
        "return 'escaped' if done.returncode == 0 else done.stderr.decode().strip().rpartition(': ')[2]",
        ("Operation not permitted",),
        COMMAND,
        harmless=True,
    ),
)
