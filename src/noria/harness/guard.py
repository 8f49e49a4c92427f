"""What keeps a harness program from taking the batch with it: what it may import, and how many lines a call may run.

This finds accidents and shows what a program depends on; it is no wall. Programs that something else wrote belong into
a sandbox of their own: one long operation inside a single line (a huge product, a pathological pattern) is not
stopped.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

# Pure parts of the standard library, and what programs are made of. No clock, no files, no network, no randomness: a
# program's view must be a function of the state.
IMPORTS = frozenset(
    "__future__ abc bisect collections collections.abc copy dataclasses difflib enum functools hashlib heapq itertools "
    "json math operator re statistics string textwrap typing unicodedata noria.types "
    "noria.harness.program noria.harness.editing".split()
)
REFUSED_NAMES = frozenset("__import__ breakpoint compile eval exec globals input locals open".split())
LINES_PER_CALL = 1_000_000  # of the program's own code; far more than a view of a thousand messages takes


class ProgramLoops(BaseException):
    """A method ran more lines than it may. Not an Exception, so that no `except Exception` of the program's keeps
    it."""


def refusal(tree: ast.Module) -> tuple[int, str] | None:
    """(line, what is wrong) of the first thing that a program may not do; None where there is none."""
    found = [wrong for node in ast.walk(tree) if (wrong := _refused(node))]
    return min(found, default=None)


def guarded(method: Callable[..., Iterable[Any] | None], *arguments: Any) -> tuple[Any, ...]:
    """The values that a program's method gives. Raises what it raises, RuntimeError where it does not end, TypeError
    where it gives text: its letters are not what was meant."""
    before = sys.gettrace()
    left = LINES_PER_CALL

    def count(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal left
        if event == "line":
            left -= 1
            if left < 0:
                raise ProgramLoops
        return count

    sys.settrace(count)
    try:
        found = method(*arguments)
        if isinstance(found, str | bytes):
            raise TypeError(f"must return a list or tuple, not the text {found!r:.60}")
        return () if found is None else tuple(found)
    except ProgramLoops:
        raise RuntimeError(f"does not end: it ran {LINES_PER_CALL:,} lines") from None
    except (SystemExit, GeneratorExit) as error:  # no Exception, so it would end every trace of the batch
        raise RuntimeError(f"raised {type(error).__name__}: {error}") from error
    finally:
        sys.settrace(before)


def _refused(node: ast.AST) -> tuple[int, str] | None:
    if isinstance(node, ast.Import):
        wrong = [alias.name for alias in node.names if alias.name not in IMPORTS]
    elif isinstance(node, ast.ImportFrom):
        module = "." * node.level + (node.module or "")
        wrong = [] if module in IMPORTS else [module]
    elif isinstance(node, ast.Name) and node.id in REFUSED_NAMES:
        return node.lineno, f"a program may not use {node.id}"
    elif isinstance(node, ast.Attribute) and node.attr.startswith("__"):
        return node.lineno, f"a program may not reach for {node.attr}"
    elif isinstance(node, ast.ExceptHandler) and (node.type is None or _names(node.type) & {"BaseException"}):
        return node.lineno, "a program may not catch everything; write `except Exception`"
    elif isinstance(node, ast.While) and _never_ends(node):
        return node.lineno, "this loop never ends"
    else:
        return None
    if not wrong:
        return None
    allowed = ", ".join(sorted(IMPORTS - {"__future__"}))
    return node.lineno, f"a program may not import {', '.join(wrong)}; it may import {allowed}"


def _never_ends(loop: ast.While) -> bool:
    """Also because Python reports no line of a loop like `while True: pass`: it is a single jump to itself."""
    ways_out = (ast.Break, ast.Return, ast.Raise, ast.Yield, ast.YieldFrom)
    always = isinstance(loop.test, ast.Constant) and bool(loop.test.value)
    return always and not any(isinstance(part, ways_out) for part in ast.walk(loop))


def _names(node: ast.expr) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
