"""A trace as people and other formats tell it: for each agent a line of messages and turns, a turn with its calls."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from noria.harness.message_graph import FOREIGN
from noria.harness.tools.toolbox import ERROR, INVALID
from noria.types import Node, Trace, split_thinking

CALL = "<|call|>"


@dataclass(frozen=True)
class Result:
    """One call of a turn. `node` is the tool's raw result; `told` the messages that the program made of it."""

    node: int
    told: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Turn:
    """One reply (a node that was sampled, or an assistant's message) and the results of the calls in it."""

    reply: int
    results: list[Result] = field(default_factory=list)


Item = int | Turn  # a message by its node, or a turn


def is_retold(trace: Trace, place: int) -> bool:
    """Whether a message is a tool's result as the program showed it, where that is not as the tool gave it."""
    node = trace.nodes[place]
    if node.call or node.use:
        return False
    if not node.parents:
        return node.message.role == "tool"
    return len(node.parents) == 1 and trace.nodes[node.parents[0]].use is not None


def agents_of(trace: Trace) -> list[str]:
    """The main agent "" first, then the sub-agents as they appear."""
    return list(dict.fromkeys(["", *(node.agent for node in trace.nodes)]))


def line_of(trace: Trace, agent: str = "") -> list[Item]:
    """What one agent saw and did, in order."""
    items: list[Item] = []
    results: dict[int, Result] = {}
    turn: Turn | None = None
    for place, node in enumerate(trace.nodes):
        if node.agent != agent:
            continue
        maker = results.get(node.parents[0]) if len(node.parents) == 1 else None
        if node.call is not None or node.message.role == "assistant":
            turn = Turn(place)
            items.append(turn)
        elif node.use is not None and turn is not None:
            results[place] = Result(place)
            turn.results.append(results[place])
        elif maker is not None:
            maker.told.append(place)
        else:
            items.append(place)
    return items


def turns_of(trace: Trace, agent: str = "") -> Iterator[Turn]:
    return (item for item in line_of(trace, agent) if isinstance(item, Turn))


def call_id(place: int) -> str:
    return f"call_{place}"


def is_invalid(node: Node) -> bool:
    return node.message.content.startswith(INVALID)


def is_failed(node: Node) -> bool:
    return node.message.content.startswith(ERROR)


def reasoning_and_text(node: Node) -> tuple[str, str]:
    """(thinking, what follows it without the calls) of a reply."""
    thinking, rest = split_thinking(node.message.content)
    return thinking, rest.partition(CALL)[0].strip()


def sub_agent_of(trace: Trace, node: Node) -> str:
    """The sub-agent whose work a call's result is: one of its parents is of it, or an argument names it."""
    of_parents = [trace.nodes[parent].agent for parent in node.parents]
    named = [value for value in (node.use.arguments.values() if node.use else ()) if isinstance(value, str)]
    known = set(agents_of(trace)) - {"", node.agent}
    return next((name for name in (*of_parents, *named) if name in known), "")


def tokens_sampled(trace: Trace, agent: str | None = None) -> int:
    """Of one agent, or of all."""
    chosen = (node for node in trace.nodes if agent is None or node.agent == agent)
    return sum(node.call.sampled_tokens for node in chosen if node.call)


def tokens_read(trace: Trace, agent: str | None = None) -> int:
    """Tokens of all prompts together."""
    chosen = (node for node in trace.nodes if agent is None or node.agent == agent)
    return sum(node.call.prompt_tokens for node in chosen if node.call)


def view_of(trace: Trace, place: int) -> list[int]:
    """The nodes whose messages the call at `place` was shown: its parents, or all that led to its one parent. One that
    is named twice was shown without what led to it.

    A raw result that the program told in other words is no part of a view.
    """
    parents = trace.nodes[place].parents
    if len(parents) == 2 and parents[0] == parents[1] and trace.nodes[parents[0]].parents:
        return [parents[0]]
    if len(parents) != 1:
        return list(parents)
    view: list[int] = []
    step: int | None = parents[0]
    while step is not None:
        view.append(step)
        step = _before(trace, step)
    return view[::-1]


def _before(trace: Trace, place: int) -> int | None:
    """The message before that at `place` in its agent's history; None where it is the first."""
    node = trace.nodes[place]
    if not node.parents:
        return None
    above = node.parents[0]
    whole = len(node.parents) == 1 and bool(trace.nodes[above].parents)
    if node.call is not None and not whole and trace.harness != FOREIGN:  # it need not have been shown all before it
        return _last_of_history(trace, place)
    if node.call is None and node.use is None and trace.nodes[above].use is not None:
        told = [other for other in range(above + 1, place) if trace.nodes[other].parents == (above,)]
        if told:  # one result in several messages
            return told[-1]
        if not trace.nodes[above].parents:
            return None
        above = trace.nodes[above].parents[0]
    return above if trace.nodes[above].agent == node.agent else None  # a helper sees nothing of who gave it the task


def _last_of_history(trace: Trace, before: int) -> int | None:
    """The last message of the agent's history: its first node, or one that follows another. Those that a program wrote
    for a view alone follow none."""
    agent = trace.nodes[before].agent
    for place in range(before - 1, -1, -1):
        node = trace.nodes[place]
        if node.agent == agent and (node.parents or all(other.agent != agent for other in trace.nodes[:place])):
            return place
    return None
