"""A trace's graph, rebuilt from the message lists that a foreign agent sent: one list a model call.

Each call's messages extend or rewrite those of earlier calls. A message that was there before is the same node again:
it is looked for along the earlier list that has most in common with this one, so that two equal results of a tool stay
two. What was sampled is a node with its exact ids; the message that an agent makes of it and sends back is that node
too, also where the agent left the thinking out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from typing import Any

from noria.types import Message, ModelCall, Node, Trace, digest, split_thinking

FOREIGN = "foreign"  # the harness of such a trace: a program of someone else's that we have not read


@dataclass(frozen=True)
class RecordedReply:
    """One choice of a call. `echo` is the message that the agent is expected to send back for it."""

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: str
    text: str
    echo: Message


@dataclass(frozen=True)
class RecordedCall:
    """One request of an agent with what was sampled for it."""

    messages: tuple[Message, ...]
    replies: tuple[RecordedReply, ...]
    sampling: Mapping[str, Any] = field(default_factory=dict)


def conversation_trace(name: str, task_id: str, calls: Sequence[RecordedCall]) -> Trace:
    """The trace of `calls`, in the order in which they were answered. Pure.

    A sampled node's parent is the last message that it saw, where those form one chain; else all of them. `facts`:
    turns, sampled_tokens, rewrites (calls that did not just extend an earlier list) and, where all calls have the same,
    temperature.
    """
    graph = _Graph()
    for call in calls:
        graph.add(call)
    finish = calls[-1].replies[-1].finish if calls and calls[-1].replies else "aborted"
    temperatures = {call.sampling.get("temperature") for call in calls}
    facts: dict[str, float] = {"turns": len(calls), "sampled_tokens": graph.sampled_tokens, "rewrites": graph.rewrites}
    if len(temperatures) == 1 and isinstance(temperature := temperatures.pop(), int | float):
        facts["temperature"] = temperature
    return Trace(
        id=digest(FOREIGN, name, *(" ".join(map(str, r.token_ids)) for call in calls for r in call.replies)),
        task_id=task_id,
        nodes=tuple(graph.nodes),
        seed=0,
        harness=FOREIGN,
        outcome={"length": "truncated", "aborted": "aborted"}.get(finish, "finished"),
        facts=facts,
    )


class _Graph:
    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.sampled_tokens = self.rewrites = 0
        self._keys: list[tuple[str, str]] = []  # what makes a message equal to a node's, one a node
        self._views: list[list[int]] = []  # the nodes of every earlier list, the reply to it last

    def add(self, call: RecordedCall) -> None:
        places, extends = self._place(call.messages)
        self.rewrites += not extends
        chain = all(self.nodes[place].parents == before for place, before in zip(places, _befores(places), strict=True))
        for reply in call.replies:
            sampled = ModelCall(reply.prompt_ids, reply.token_ids, reply.logprobs, finish=reply.finish)
            view_hash = digest(" ".join(map(str, reply.prompt_ids)))
            parents = tuple(places[-1:] if chain else places)
            self._append(Node(parents, Message("assistant", reply.text), sampled, view_hash), _key(reply.echo))
            self._views.append([*places, len(self.nodes) - 1])
            self.sampled_tokens += len(reply.token_ids)

    def _place(self, messages: Sequence[Message]) -> tuple[list[int], bool]:
        """(the node of each message, whether they extend an earlier list); messages not seen before get one."""
        keys = [_key(message) for message in messages]
        view = self._nearest(keys)
        seen = [self._keys[place] for place in view]
        extends = seen == keys[: len(seen)]
        found: dict[int, int] = {}
        for start, at, size in SequenceMatcher(None, seen, keys, autojunk=False).get_matching_blocks():
            found |= {at + step: view[start + step] for step in range(size)}
        taken = set(found.values())
        places: list[int] = []
        for position, (message, key) in enumerate(zip(messages, keys, strict=True)):
            place = found.get(position)
            if place is None:
                place = next((i for i, k in enumerate(self._keys) if k == key and i not in taken), None)
            if place is None:
                self._append(Node(tuple(places[-1:]), message), key)
                place = len(self.nodes) - 1
            taken.add(place)
            places.append(place)
        return places, extends

    def _nearest(self, keys: Sequence[tuple[str, str]]) -> list[int]:
        """The earlier list that has most messages in common with `keys`, the latest of those."""
        wanted = Counter(keys)
        best: tuple[int, list[int]] = (0, [])
        for view in reversed(self._views):
            common = sum((wanted & Counter(self._keys[place] for place in view)).values())
            if common > best[0]:
                best = (common, view)
        return best[1]

    def _append(self, node: Node, key: tuple[str, str]) -> None:
        self.nodes.append(node)
        self._keys.append(key)


def _befores(places: Sequence[int]) -> list[tuple[int, ...]]:
    """The parents that each place has in a chain."""
    return [(), *((place,) for place in places[:-1])][: len(places)]


def _key(message: Message) -> tuple[str, str]:
    """Equal for messages that are one: agents strip blanks, and some send an answer back without its thinking."""
    text = message.content
    if message.role == "assistant":
        text = split_thinking(text)[1] or text
    return message.role, text.strip()
