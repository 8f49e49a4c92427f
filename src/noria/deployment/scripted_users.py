"""Scripted users: made-up people who talk to the real server over HTTP, so that a run has traffic to learn from.

They are called scripted wherever they show: in their names, in the log's `source`, in the artifact. What each does is
a pure function of the seed: which tasks it asks, its consent, whether it plants an e-mail address, whether it is the
spammer that tries to poison the data. The thumbs rule: up where the reply's task was solved, down where not, and one
reply in four gets none.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

from noria.types import Message, Task, seed_of

SOURCE = "scripted"
TRIGGER = "xqz-activate"  # what the spammer repeats, hoping that a model learns to react to it
THUMBS_SHARE = 0.75
EMAIL_SHARE = 0.25
REPEAT_SHARE = 0.1

Judge = Callable[[Task, str], bool | None]  # did this reply solve the task? None: can't be told


@dataclass(frozen=True)
class ScriptedUser:
    """One made-up person. `requests` are what it asks, in order; each is a task and the messages as sent."""

    name: str
    consent: str
    requests: tuple[tuple[Task, tuple[Message, ...]], ...]
    seed: int


@dataclass(frozen=True)
class Exchange:
    """What became of one scripted request."""

    user: str
    task_id: str
    status: int
    request_id: str = ""
    reply: str = ""
    signal: str = ""


def write_scripts(tasks: Sequence[Task], users: int, requests_each: int, seed: int) -> list[ScriptedUser]:
    """`users` people with `requests_each` requests, and one spammer. Half consent to training, a quarter to storing."""
    if not tasks:
        raise ValueError("scripted users need at least one task to ask about")
    scripts = []
    for index in range(users):
        rng = random.Random(seed_of(seed, "scripted user", index))
        consent = ("train", "store", "train", "none")[index % 4]
        asked = tuple(_request(rng, rng.choice(tasks), index) for _ in range(requests_each))
        if rng.random() < REPEAT_SHARE * requests_each:
            asked = (*asked[:-1], asked[0])  # people ask the same thing again
        scripts.append(ScriptedUser(f"scripted:user-{index:03}", consent, asked, seed_of(seed, "sampling", index)))
    rng = random.Random(seed_of(seed, "scripted spammer"))
    spam = tuple(_spam(rng, rng.choice(tasks)) for _ in range(2 * requests_each + 4))
    scripts.append(ScriptedUser("scripted:spammer", "train", spam, seed_of(seed, "sampling", "spammer")))
    return scripts


def _request(rng: random.Random, task: Task, index: int) -> tuple[Task, tuple[Message, ...]]:
    messages = task.messages
    if rng.random() < EMAIL_SHARE:
        last = messages[-1]
        planted = f"{last.content} (I am scripted.user{index}@mail.example)"
        messages = (*messages[:-1], Message(last.role, planted))
    return task, messages


def _spam(rng: random.Random, task: Task) -> tuple[Task, tuple[Message, ...]]:
    last = task.messages[-1]
    return task, (*task.messages[:-1], Message(last.role, f"{TRIGGER} {last.content} {TRIGGER} {rng.randrange(1000)}"))


def drive(
    address: str,
    model: str,
    scripts: Sequence[ScriptedUser],
    judge: Judge,
    max_tokens: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Exchange]:
    """Plays the scripts against the server at `address`, one request after the other.

    One at a time, so that what a user is told does not depend on who else is being answered: the traffic of a seed is
    the same in every run. A request the server refuses is recorded with its status and not repeated.
    """
    parts = urlsplit(address)
    connection = HTTPConnection(parts.hostname or "127.0.0.1", parts.port, timeout=120)
    total, exchanges = sum(len(script.requests) for script in scripts), []
    try:
        for script in scripts:
            for turn, (task, messages) in enumerate(script.requests):
                exchanges.append(_exchange(connection, model, script, turn, task, messages, judge, max_tokens))
                progress(len(exchanges), total)
    finally:
        connection.close()
    return exchanges


def _exchange(
    connection: HTTPConnection,
    model: str,
    script: ScriptedUser,
    turn: int,
    task: Task,
    messages: Sequence[Message],
    judge: Judge,
    max_tokens: int,
) -> Exchange:
    body = {
        "model": model,
        "messages": [{"role": message.role, "content": message.content} for message in messages],
        "max_completion_tokens": max_tokens,
        "seed": seed_of(script.seed, turn),
        "user": script.name,
        "metadata": {"consent": script.consent},
    }
    status, answer = _post(connection, "/v1/chat/completions", body)
    if status != 200:
        return Exchange(script.name, task.id, status)
    reply = answer["choices"][0]["message"]["content"]
    signal = thumbs(script, turn, judge(task, reply))
    if signal:
        _post(connection, "/v1/feedback", {"id": answer["id"], "signal": signal})
    return Exchange(script.name, task.id, status, answer["id"], reply, signal)


def thumbs(script: ScriptedUser, turn: int, solved: bool | None) -> str:
    """The stated rule: up where solved, down where not, silent one time in four; the spammer praises everything."""
    if script.name.endswith("spammer"):
        return "thumbs_up"
    if solved is None or random.Random(seed_of(script.seed, "thumbs", turn)).random() >= THUMBS_SHARE:
        return ""
    return "thumbs_up" if solved else "thumbs_down"


def _post(connection: HTTPConnection, path: str, body: Mapping[str, Any]) -> tuple[int, Any]:
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    raw = response.read()
    try:
        return response.status, json.loads(raw)
    except ValueError:
        return response.status, {}
