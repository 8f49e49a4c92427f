"""What `worker_loop.py` runs for `verifiers.py` in the environment of verifiers; imports nothing of this project.

Tasksets of verifiers 0.4 (`verifiers.v1`), and environments of 0.1 (`load_environment`): those that show one prompt and
judge one reply. What their rewards see is made by their own classes.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import sys
from typing import Any

REFUSED = "refused: "  # how worker_loop knows what is for the user


def make(settings: dict[str, Any]) -> dict[str, Any]:
    import verifiers

    try:
        from verifiers.v1.utils import loaders
    except ImportError:  # the 0.1 line
        loaders = None
    folder, name = os.path.split(settings["id"])
    if folder:  # one's own, not installed
        sys.path.append(os.path.abspath(folder))
    source: Any = None
    if loaders is not None:
        source = _Taskset(loaders, name, settings["arguments"])
    elif hasattr(verifiers, "load_environment"):
        source = _Environment(verifiers.load_environment(name, **settings["arguments"]))
    else:
        raise ValueError(REFUSED + f"verifiers {verifiers.__version__} is neither of the 0.1 nor of the 0.4 line")

    def tasks(limit: int) -> dict[str, Any]:
        return {"version": verifiers.__version__, "tasks": source.tasks(limit)}

    return {"tasks": tasks, "score": lambda place, reply: asyncio.run(source.score(place, reply))}


class _Taskset:
    """verifiers 0.4: `Task.score` on a trace of two or three messages."""

    def __init__(self, loaders: Any, name: str, arguments: dict[str, Any]) -> None:
        from verifiers import v1

        module = loaders.import_taskset(name)
        made = loaders.taskset_class(name)
        own = [value for value in vars(module).values() if inspect.isclass(value) and issubclass(value, v1.Env)]
        if any(env not in (v1.Env, v1.SingleAgentEnv) for env in own):
            raise ValueError(REFUSED + f"{name} has an Env of its own: more than one reply to a prompt")
        config = _config_of(made, v1.TasksetConfig)
        self.taskset = made(config(id=name, **arguments))
        self.rows: list[Any] = []

    def tasks(self, limit: int) -> list[dict[str, Any]]:
        self.rows = list(self.taskset.take(limit))
        return [self._described(place, row) for place, row in enumerate(self.rows)]

    async def score(self, place: int, reply: str) -> dict[str, Any]:
        from verifiers import v1

        row = self.rows[place]
        nodes, before = [], None
        said = [*((one["role"], one["content"]) for one in _shown(row.data)), ("assistant", reply)]
        kinds = {"system": "SystemMessage", "user": "UserMessage", "assistant": "AssistantMessage"}
        for number, (role, content) in enumerate(said):
            message = getattr(v1.types, kinds[role])(content=content)
            nodes.append(v1.MessageNode(parent=before, message=message, sampled=number == len(said) - 1))
            before = number
        trace = v1.Trace(
            task=v1.TraceTask(type=type(row).__name__, data=row.data),
            agent=v1.AgentInfo(config=v1.AgentConfig()),
            nodes=nodes,
            is_completed=True,
            ok=True,
        )
        await row.score(trace)
        values = {name: one.value for name, one in trace.rewards.items() if one is not None}
        if not values:
            raise RuntimeError("the task has no reward that can be computed without its runtime")
        return {"value": sum(values.values()), "values": values, "evidence": ""}

    def _described(self, place: int, row: Any) -> dict[str, Any]:
        data = row.data
        gold = getattr(data, "answer", None)
        about = {"place": place, "id": str(data.id or data.name or place), "gold": gold if _plain(gold) else ""}
        hooks = row.hooks("reward")
        reasons = {
            "it has no prompt": data.prompt is None,
            "it wants a container": bool(data.image) or row.NEEDS_CONTAINER,
            "it has tools, which are servers of its own": bool(type(row).toolsets(row.config)),
            "a model judges it": bool(row.plugged_judges()),
            "its rewards look into its runtime": any(_needs_runtime(hook) for hook in hooks),
            "it has no reward": not hooks,
            "its prompt holds more than text": not all(isinstance(m["content"], str) for m in _shown(data)),
        }
        refused = "; ".join(reason for reason, holds in reasons.items() if holds)
        return {**about, "messages": [] if refused else _shown(data), "refused": refused}


class _Environment:
    """verifiers 0.1: a SingleTurnEnv's data set and rubric."""

    def __init__(self, env: Any) -> None:
        import verifiers

        if not isinstance(env, verifiers.SingleTurnEnv):
            raise ValueError(REFUSED + f"{type(env).__name__} takes more than one reply; only a SingleTurnEnv can be")
        self.env = env
        self.rows: list[dict[str, Any]] = []

    def tasks(self, limit: int) -> list[dict[str, Any]]:
        data = self.env.get_dataset() if self.env.dataset is not None else self.env.get_eval_dataset()
        self.rows = [dict(data[place]) for place in range(min(limit, len(data)))]
        return [
            {
                "place": place,
                "id": str(row.get("example_id", place)),
                "messages": [{"role": one["role"], "content": one["content"]} for one in row["prompt"]],
                "gold": row.get("answer") or "",
                "refused": "" if all(isinstance(one["content"], str) for one in row["prompt"]) else "more than text",
            }
            for place, row in enumerate(self.rows)
        ]

    async def score(self, place: int, reply: str) -> dict[str, Any]:
        from verifiers.types import ClientConfig
        from verifiers.utils.message_utils import normalize_messages

        os.environ.setdefault("NORIA_NO_KEY", "none")
        nowhere = ClientConfig(api_base_url="http://127.0.0.1:9/v1", api_key_var="NORIA_NO_KEY")  # never asked
        state = await self.env.init_state(self.rows[place], client=nowhere, model="none", sampling_args=None)
        said = [{"role": "assistant", "content": reply}]
        state["completion"] = normalize_messages(said, field_name="completion")
        state["is_completed"] = True
        await self.env.rubric.score_rollout(state)
        values = {name: float(value) for name, value in (state.get("metrics") or {}).items()}
        return {"value": float(state["reward"]), "values": values, "evidence": ""}


def _shown(data: Any) -> list[dict[str, Any]]:
    """The messages of a task, as role and content."""
    prompt = data.prompt or []
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [_pair(one) for one in prompt]
    system = [{"role": "system", "content": data.system_prompt}] if data.system_prompt else []
    return [*system, *messages]


def _pair(message: Any) -> dict[str, Any]:
    content = message.content
    if isinstance(content, list) and all(part.type == "text" for part in content):
        content = "\n".join(part.text for part in content)
    return {"role": message.role, "content": content}


def _needs_runtime(hook: Any) -> bool:
    parameter = inspect.signature(hook).parameters.get("runtime")
    return parameter is not None and parameter.default is inspect.Parameter.empty


def _config_of(taskset: Any, base: type) -> Any:
    from verifiers.v1.utils.generic import concrete_type

    return concrete_type(taskset, base) or base


def _plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return isinstance(value, str)
