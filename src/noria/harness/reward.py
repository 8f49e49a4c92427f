"""What an agent's trace is worth, from parts that are each logged as a column of their own: pure functions of a trace.

Outcome: was it done. Process: how (calls, sub-agents, length). Context: what it saw and threw away. Vetoes: signs of
cheating, after which nothing positive is paid. Graders of the environments add the parts up with `total`; what a
trainer weighs by step (PARL's lambdas, Context-1's beta, a length penalty) it takes from the columns.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from noria.types import Task, Trace, split_thinking

# Invalid calls must cost something: where they were merely discarded, a policy learnt to emit them on hard tasks
# (Composer 2, arXiv 2603.24477). Three or more cost less than an answer is worth, so trying stays worthwhile.
INVALID_CALL_COST, MOST_COUNTED = 0.1, 3

# Context-1 (Chroma, 2026): weights of the found set and of what was seen on the way, and the free calls and turns.
FOUND_WEIGHT, SEEN_WEIGHT = 0.7, 0.3
FREE_PRUNE_STREAK, PRUNE_COST, MOST_PRUNE_COST = 3, 0.1, 0.5
FREE_TURNS, LAST_TURN, MOST_TURN_COST = 64, 128, 0.5
SMALLEST_REWARD = 1e-3  # eps of the clamp: our choice, the report gives no value


@dataclass(frozen=True)
class Parts:
    """One trace's reward in parts. `process` and `context` are added to `outcome`; a `vetoes` entry above 0 zeroes what
    is positive; `facts` are logged and count for nothing."""

    outcome: float
    process: Mapping[str, float] = field(default_factory=dict)
    context: Mapping[str, float] = field(default_factory=dict)
    vetoes: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, float] = field(default_factory=dict)
    evidence: str = ""


def total(parts: Parts) -> tuple[float, dict[str, float]]:
    """(reward, columns). A veto takes what is positive and leaves what is negative. Columns: outcome, the names of
    process and context, veto_NAME, the names of facts. Raises ValueError where two parts share a name."""
    groups = (
        parts.process,
        parts.context,
        {f"veto_{name}": value for name, value in parts.vetoes.items()},
        parts.facts,
    )
    columns = {"outcome": float(parts.outcome)}
    for group in groups:
        if shared := columns.keys() & group.keys():
            raise ValueError(f"two parts of a reward are named {', '.join(sorted(shared))}")
        columns |= {name: float(value) for name, value in group.items()}
    value = parts.outcome + sum(parts.process.values()) + sum(parts.context.values())
    return (min(value, 0.0) if any(fired > 0 for fired in parts.vetoes.values()) else value), columns


# -- process --


def invalid_call_cost(invalid_calls: float) -> float:
    """-0.1 a call, at most -0.3: every invalid call counts, none vanishes. Composer 2, arXiv 2603.24477."""
    return 0.0 - INVALID_CALL_COST * min(max(invalid_calls, 0.0), MOST_COUNTED)


def length_penalty(usage: float, k: float, q: float) -> float:
    """C(x) = ((1 + kx)^(1-q) - 1) / (k (1-q)), log(1 + kx) / k at q = 1: to be subtracted. Composer 2,
    arXiv 2603.24477.

    Concave for q > 0: the first tokens cost the most, so easy tasks are kept short and hard ones may think.
    `usage` >= 0, in weighted tokens and turns as of `weighted_usage`; k, q > 0.
    """
    if usage < 0 or k <= 0 or q <= 0:
        raise ValueError(f"length penalty needs usage >= 0, k > 0 and q > 0, not {usage}, {k}, {q}")
    if math.isclose(q, 1.0, abs_tol=1e-9):
        return math.log1p(k * usage) / k
    return ((1 + k * usage) ** (1 - q) - 1) / (k * (1 - q))


def weighted_usage(trace: Trace, thinking: float, call: float, output: float, turn: float) -> float | None:
    """x of `length_penalty`: sampled tokens by what they were for, times the weights, plus `turn` for each model call.

    A reply that thinks and acts is divided by the characters of both parts: exact to a token or two. Of an endpoint's
    replies the tokens are those that it counted; None where it did not count one: there is no column then, and not 0.
    """
    used = 0.0
    for node in trace.nodes:
        if node.call is None:
            continue
        if not node.call.counted:
            return None
        thought, visible = split_thinking(node.message.content)
        share = len(thought) / max(1, len(thought) + len(visible))
        acts = node.call.endpoint.calls if node.call.endpoint else visible.startswith("<|call|>")
        weight = call if acts else output
        used += turn + node.call.sampled_tokens * (share * thinking + (1 - share) * weight)
    return used


def parallel_parts(created: int, assigned: int, finished: int) -> dict[str, float]:
    """{"r_parallel", "r_finish"}, both in [0, 1]: work was given to sub-agents at all, and the share that finished it.

    PARL (Kimi K2.5, arXiv 2602.02276): the first works against serial collapse, the second against sub-agents that are
    started for show. The paper gives no closed forms; these are ours. More sub-agents than two earn nothing more.
    """
    spread = min(created, assigned)
    return {"r_parallel": float(spread >= 2), "r_finish": finished / assigned if assigned else 0.0}


def parl_reward(outcome: float, r_parallel: float, r_finish: float, lambdas: tuple[float, float]) -> float:
    """lambda1 * r_parallel + lambda2 * r_finish + outcome. PARL, arXiv 2602.02276."""
    return lambdas[0] * r_parallel + lambdas[1] * r_finish + outcome


def annealed(start: float, step: int, steps: int, end: float = 0.0) -> float:
    """From `start` at step 0 linearly to exactly `end` at the last of `steps` and after it.

    For PARL's lambdas (to 0: without it sub-agents are started for their own sake) and Context-1's beta (4 to 2).
    """
    if steps < 1:
        raise ValueError(f"annealing over {steps} steps: at least 1")
    return end if step >= steps - 1 else start + (end - start) * max(step, 0) / (steps - 1)


# -- context --


def f_beta(found: Collection[str], targets: Collection[str], beta: float) -> float:
    """(1 + b^2) P R / (b^2 P + R) of two sets; 0 where either is empty. beta 4 counts recall 16 times as much."""
    right = len(set(found) & set(targets))
    if not right:
        return 0.0
    precision, recall = right / len(set(found)), right / len(set(targets))
    return (1 + beta**2) * precision * recall / (beta**2 * precision + recall)


def trajectory_recall(seen: Collection[str], targets: Collection[str]) -> float:
    """r_traj: the share of targets seen at any time, pruned later or not. Without it one or two searches were made."""
    return len(set(seen) & set(targets)) / len(set(targets)) if targets else 0.0


def prune_cost(tools: Sequence[str], prune: str = "prune_chunks") -> float:
    """0.1 for each call beyond three of an unbroken streak of `prune` among the calls, at most 0.5. Context-1."""
    streak, excess = 0, 0
    for tool in tools:
        streak = streak + 1 if tool == prune else 0
        excess += streak > FREE_PRUNE_STREAK
    return min(PRUNE_COST * excess, MOST_PRUNE_COST)


def turn_cost(turns: float) -> float:
    """0 up to turn 64, then linearly up to 0.5 at turn 128. Context-1."""
    return MOST_TURN_COST * min(max(turns - FREE_TURNS, 0.0) / (LAST_TURN - FREE_TURNS), 1.0)


def context_reward(found: float, seen: float, answered: float, pruning: float, turns: float) -> float:
    """clamp(0.7 F_beta + 0.3 r_traj + r_answer - p_prune - p_turn, eps, r_pre), Context-1; between 0.001 and 2.

    We read r_pre as the sum before the penalties; where that is below eps, nothing was found and it is the reward.
    """
    before = FOUND_WEIGHT * found + SEEN_WEIGHT * seen + answered
    return min(max(before - pruning - turns, SMALLEST_REWARD), before)


# -- against hacking --


def altered(task: Task, trace: Trace, protected: Collection[str]) -> list[str]:
    """The `protected` files of the task that the trace left changed or deleted."""
    files, workspace = task.hidden.get("files", {}), trace.workspace
    return sorted(path for path in protected if path in workspace and workspace[path] != files.get(path))


def edit_rate(traces: Sequence[Trace]) -> float:
    """The share of traces that changed any file. Watch it: a reward for edits alone taught asking instead of editing
    (Composer 2, arXiv 2603.24477)."""
    return sum(bool(trace.workspace) for trace in traces) / len(traces) if traces else 0.0


def count(trace: Trace, name: str) -> float:
    """A fact of the trace as a number that can't help it: 0 where it is missing, negative or no number."""
    value = trace.facts.get(name, 0.0)
    usable = isinstance(value, int | float) and math.isfinite(value) and value > 0
    return float(value) if usable else 0.0


def called_tools(trace: Trace) -> list[str]:
    """The tools whose results the trace holds, in order."""
    return [node.use.tool for node in trace.nodes if node.use is not None]
