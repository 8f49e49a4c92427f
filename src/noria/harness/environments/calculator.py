"""`calculator`: sums that are known and products that must be computed: call the tool only where it is needed.

The prompt is the expression. A sum of two digits is answered at once (a needless call costs); a product of two-digit
numbers, or one with a third term, takes one call of `calc`.
"""

from __future__ import annotations

import ast
import operator
import random
import sys
from collections.abc import Callable, Sequence

from noria.harness.environments.environment import Environment, belongs, call, distinct, result_of
from noria.harness.reward import Parts, count
from noria.harness.rollout import Budget
from noria.harness.scripted import Policy
from noria.harness.tools import HostTool, Parameter, ToolCall, ToolError, ToolResult
from noria.harness.trace_grader import TraceGrader, answer_evidence, right_answer, trace_grader
from noria.types import Message, Task, Trace, digest

FAMILY, DOMAIN = "agent_calculator", "agent"
KNOWN_SHARE = 0.4  # of the tasks need no call
NEEDLESS_CALL_COST, MOST_COUNTED = 0.1, 3
LONGEST, LARGEST = 64, 10**12  # of an expression in characters, of any number in it
OPERATIONS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
}


def compute(expression: str) -> int:
    """The value of sums, differences and products of whole numbers. Raises ToolError."""
    if len(expression) > LONGEST:
        raise ToolError(f"longer than {LONGEST} characters")
    try:
        return _value(ast.parse(expression.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ToolError("not an expression of whole numbers with + - *") from None


def _value(node: ast.expr) -> int:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        value = node.value
    elif isinstance(node, ast.BinOp) and type(node.op) in OPERATIONS:
        value = OPERATIONS[type(node.op)](_value(node.left), _value(node.right))
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = -_value(node.operand)
    else:
        raise ValueError("no such operation")
    if abs(value) > LARGEST:
        raise ValueError("too large")
    return value


def _calc(call: ToolCall) -> ToolResult:
    return ToolResult(str(compute(call.arguments["expression"])), call.files, call.notes)


CALC = HostTool("calc", "calc EXPRESSION: its value", (Parameter("expression", "whole numbers with + - *"),), _calc)


def generate(count: int, seed: int, split: str) -> list[Task]:
    ref = grader().ref

    def draw(generator: random.Random, split: str) -> Task | None:
        terms = [str(generator.randrange(10, 100)) for _ in range(2)]
        known, third = generator.random() < KNOWN_SHARE, generator.random() < 0.5
        if known:
            text = f"{generator.randrange(1, 10)} + {generator.randrange(1, 10)}"
        else:
            tail = f" {generator.choice('+-')} {generator.randrange(10, 100)}" if third else ""
            text = f"{terms[0]} * {terms[1]}{tail}"
        if not belongs(split, FAMILY, text):
            return None
        return Task(
            id=digest(FAMILY, text),
            messages=(Message("user", text),),
            grader=ref,
            answer=str(compute(text)),
            family=FAMILY,
            domain=DOMAIN,
            difficulty=0.0 if known else 1.0 if third else 0.5,
            hidden={"calls_needed": 0 if known else 1},
        )

    return distinct(draw, FAMILY, count, seed, split)


def gold(task: Task) -> Policy:
    def policy(messages: Sequence[Message], seed: int) -> str:
        if not task.hidden["calls_needed"]:
            return task.answer  # known by heart
        asked = call("calc", messages[0].content)
        return result_of(messages, asked) or asked

    return policy


def grader() -> TraceGrader:
    return trace_grader(FAMILY, _judge, sys.modules[__name__])


def _judge(task: Task, trace: Trace) -> Parts:
    needless = max(0.0, count(trace, "tool_calls") - task.hidden["calls_needed"])
    return Parts(
        outcome=right_answer(task, trace),
        process={"needless_call_cost": -NEEDLESS_CALL_COST * min(needless, MOST_COUNTED)},
        facts={"needless_calls": needless},
        evidence=answer_evidence(task, trace),
    )


ENVIRONMENT = Environment(
    name="calculator",
    about="sums that are known and products that need one call of a calculator",
    generate=generate,
    tools=(CALC,),
    grader=grader,
    budget=Budget(turns=4, tokens_per_turn=24, context=128),
    gold=gold,
    cheats={
        "guess_a_number": lambda task: lambda messages, seed: str(random.Random(seed).randrange(100, 1000)),
        "say_the_question": lambda task: lambda messages, seed: messages[0].content,
        "equation": lambda task: lambda messages, seed: f"{messages[0].content} = {task.answer}",
        "answer_and_more": lambda task: lambda messages, seed: f"{task.answer} or {int(task.answer) + 1}",
        "call_for_ever": lambda task: lambda messages, seed: call("calc", messages[0].content),
        "python_in_the_call": lambda task: lambda messages, seed: call("calc", "__import__('os').getpid()"),
    },
    dials={"terms": "2 or 3", "digits": "1 (known by heart) or 2 (one call)"},
)
