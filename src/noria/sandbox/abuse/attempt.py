"""What an attempt at abuse is: Python source that tries one act, and how the sandbox is expected to deny it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Mode = Literal["function", "command"]
MODES: tuple[Mode, ...] = ("function", "command")

# Names that every attempt can use. `c` calls libc and `kernel` a system call by its numbers on x86_64 and aarch64; both
# raise OSError. What an attempt raises is told by its errno's name (or its type's), so that a denial can be told from
# a slip in the attempt itself.
PRELUDE = """
import ctypes, errno, os, sys, time
def c(name, *arguments):
    function = getattr(ctypes.CDLL(None, use_errno=True), name)
    result = function(*arguments)
    if result == -1:
        raise OSError(ctypes.get_errno(), name)
    return result
def kernel(x86_64, aarch64, *arguments):
    number = x86_64 if os.uname().machine == "x86_64" else aarch64
    return c("syscall", number, *arguments)
def seen_in(error):
    number = getattr(error, "errno", None)
    return errno.errorcode.get(number, type(error).__name__) if number else type(error).__name__
def f(secret):
    try:
        return str(attempt(secret))
    except BaseException as error:
        return seen_in(error)
"""


@dataclass(frozen=True)
class Attempt:
    """`body` is that of attempt(secret), where `secret` is the path of a file of the host; it returns "escaped" where
    the act succeeded.

    `denied` are the ways in which it may end instead: the name of an errno or exception, "timeout", "signal 9",
    "crash", "error" (no readable result), "out of memory", or the text that it returns ("None" where it returns
    nothing). Any other end means that the attempt never reached its act. `modes` says where it differs: as a function
    in a warm fork, or as a program of its own, which may start others. `weaker` says why Landlock can't stop it, and
    `opened_by` names the field of a `Profile` that allows it. `harmless` attempts can be run outside a sandbox, where
    they must succeed.
    """

    name: str
    body: str
    denied: tuple[str, ...]
    modes: tuple[Mode, ...] = MODES
    weaker: str = ""
    opened_by: str = ""
    harmless: bool = False


def source(attempt: Attempt) -> str:
    """A module that defines f(secret) -> what it saw."""
    body = "\n".join("    " + line for line in attempt.body.strip("\n").splitlines())
    return f"def attempt(secret):\n{body}\n{PRELUDE}"


FUNCTION: tuple[Mode, ...] = ("function",)
COMMAND: tuple[Mode, ...] = ("command",)
