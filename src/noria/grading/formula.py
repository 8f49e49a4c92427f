"""The formulas of multi graders (`calculate_output`): arithmetic over sub-grades and a few functions, nothing else."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping

BINARY: dict[type, Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
FUNCTIONS: dict[str, Callable[..., float]] = {
    "min": min,
    "max": max,
    "abs": abs,
    "floor": math.floor,
    "ceil": math.ceil,
    "exp": math.exp,
    "sqrt": math.sqrt,
    "log": math.log,
}
MOST_CHARACTERS = 1000


class FormulaError(ValueError):
    """The formula can't be read, or can't be computed from these grades."""


def names_in(formula: str) -> set[str]:
    """The sub-graders that a formula names. Raises FormulaError where it is no formula."""
    tree = _parse(formula)
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        _check(node)
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and id(node) not in called}


def compute(formula: str, values: Mapping[str, float]) -> float:
    """The value of `formula`. Raises FormulaError, also for a value that is not a finite number."""
    try:
        found = float(_value(_parse(formula), values))
    except (ArithmeticError, ValueError, TypeError) as error:
        raise FormulaError(f"{formula!r} can't be computed from {dict(values)}: {error}") from error
    if not math.isfinite(found):
        raise FormulaError(f"{formula!r} is {found} for {dict(values)}")
    return found


def _parse(formula: str) -> ast.expr:
    if len(formula) > MOST_CHARACTERS:
        raise FormulaError(f"a formula has at most {MOST_CHARACTERS} characters")
    try:
        return ast.parse(formula.replace("^", "**"), mode="eval").body
    except (SyntaxError, ValueError, RecursionError) as error:
        raise FormulaError(f"{formula!r} is no formula: {error}") from error


def _check(node: ast.AST) -> None:
    allowed = (ast.BinOp, ast.UnaryOp, ast.Call, ast.Name, ast.Constant, ast.operator, ast.unaryop, ast.expr_context)
    if not isinstance(node, allowed) or (isinstance(node, ast.operator) and type(node) not in BINARY):
        raise FormulaError(f"{type(node).__name__} has no place in a formula: + - * / ^, {', '.join(FUNCTIONS)}")
    if isinstance(node, ast.Call) and (
        not isinstance(node.func, ast.Name) or node.func.id not in FUNCTIONS or node.keywords or not node.args
    ):
        raise FormulaError(f"a formula calls {', '.join(FUNCTIONS)} with arguments, and nothing else")
    if isinstance(node, ast.Constant) and (isinstance(node.value, bool) or not isinstance(node.value, int | float)):
        raise FormulaError(f"{node.value!r} is no number")
    if isinstance(node, ast.unaryop) and not isinstance(node, ast.USub | ast.UAdd):
        raise FormulaError(f"{type(node).__name__} has no place in a formula")


def _value(node: ast.AST, values: Mapping[str, float]) -> float:
    _check(node)
    if isinstance(node, ast.Constant):
        return float(node.value)  # type: ignore[arg-type]
    if isinstance(node, ast.Name):
        if node.id not in values:
            raise FormulaError(f"no grader is named {node.id!r}; there are {', '.join(sorted(values))}")
        return float(values[node.id])
    if isinstance(node, ast.UnaryOp):
        inner = _value(node.operand, values)
        return -inner if isinstance(node.op, ast.USub) else inner
    if isinstance(node, ast.BinOp):
        return BINARY[type(node.op)](_value(node.left, values), _value(node.right, values))
    assert isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    return FUNCTIONS[node.func.id](*(_value(argument, values) for argument in node.args))
