"""What `worker_loop.py` runs for `inspect.py` in Inspect's environment; imports nothing of this project.

A task's solver is run up to the model call, which shows the prompt; a reply is scored by running it again with that
reply in the model's place, so that what the solver does before and after (templates, choices) is Inspect's own.
"""

from __future__ import annotations

import asyncio
import copy
from typing import Any

REFUSED = "refused: "  # how worker_loop knows what is for the user


class _Stop(Exception):
    """The solver has asked the model."""


def make(settings: dict[str, Any]) -> dict[str, Any]:
    from inspect_ai._eval.loader import load_tasks

    if settings["task"].endswith(".py"):
        raise ValueError(REFUSED + f"name the task in it: {settings['task']}@NAME")
    loaded = load_tasks([settings["task"]], settings["arguments"])
    if len(loaded) != 1:
        raise ValueError(
            REFUSED + f"{settings['task']} names {len(loaded)} Inspect tasks; give one, as FILE.py@NAME or PACKAGE/NAME"
        )
    task = Imported(loaded[0])
    return {"tasks": task.tasks, "score": task.score}


class Imported:
    def __init__(self, task: Any) -> None:
        self.task = task
        self.samples = list(task.dataset)
        scorers = task.scorer if isinstance(task.scorer, list) else [task.scorer] if task.scorer else []
        if not scorers:
            raise ValueError(REFUSED + "the task has no scorer")
        if task.sandbox is not None:
            raise ValueError(REFUSED + f"the task wants a sandbox ({task.sandbox.type}): its tools are not importable")
        self.scorers = scorers

    def tasks(self, limit: int) -> dict[str, Any]:
        import inspect_ai

        described = [self._described(place) for place in range(min(limit, len(self.samples)))]
        return {"version": inspect_ai.__version__, "tasks": described}

    def score(self, place: int, reply: str) -> dict[str, Any]:
        return asyncio.run(self._score(place, reply))

    def _described(self, place: int) -> dict[str, Any]:
        sample = self.samples[place]
        about = {"place": place, "id": str(sample.id if sample.id is not None else place)}
        if sample.sandbox is not None or sample.files:
            return {**about, "refused": "the sample wants files in a sandbox"}
        messages, refused = asyncio.run(self._prompt(place))
        target = sample.target if isinstance(sample.target, str) else "\n".join(sample.target)
        return {**about, "messages": messages, "gold": target, "choices": sample.choices, "refused": refused}

    async def _prompt(self, place: int) -> tuple[list[dict[str, str]], str]:
        seen: list[dict[str, str]] = []
        why = ""

        async def generate(state: Any, *_: Any, **__: Any) -> Any:
            nonlocal why
            if state.tools:
                why = f"the solver gives tools ({len(state.tools)}), which can't be taken out of Inspect"
            for message in state.messages:
                if not isinstance(message.content, str) and any(part.type != "text" for part in message.content):
                    why = "the prompt has images or sounds"
                seen.append({"role": message.role, "content": message.text})
            raise _Stop

        try:
            await self._solve(place, generate)
            why = "the solver never asks the model"
        except _Stop:
            pass
        return seen, why

    async def _score(self, place: int, reply: str) -> dict[str, Any]:
        from inspect_ai._util.registry import is_registry_object, registry_log_name
        from inspect_ai.model import ChatMessageAssistant, ModelOutput
        from inspect_ai.scorer import Target, value_to_float

        asked = 0

        async def generate(state: Any, *_: Any, **__: Any) -> Any:
            nonlocal asked
            asked += 1
            if asked > 1:
                raise RuntimeError("the solver asks the model more than once")
            state.output = ModelOutput.from_content("none/none", reply)
            state.messages.append(ChatMessageAssistant(content=reply))
            return state

        state = await self._solve(place, generate)
        number = value_to_float()
        values: dict[str, float] = {}
        evidence = ""
        for index, scorer in enumerate(self.scorers):
            score = await scorer(state, Target(self.samples[place].target))
            if score is None:
                raise RuntimeError("the scorer gave no score")
            name = registry_log_name(scorer) if is_registry_object(scorer) else f"scorer_{index}"
            if isinstance(score.value, dict):
                values |= {key: number(value) for key, value in score.value.items()}
            else:
                values[name if name not in values else f"{name}_{index}"] = number(score.value)
            evidence = evidence or str(score.explanation or score.answer or "")
        return {"value": sum(values.values()) / len(values), "values": values, "evidence": evidence[:500]}

    async def _solve(self, place: int, generate: Any) -> Any:
        from inspect_ai.model import ChatMessageUser, ModelName
        from inspect_ai.solver import TaskState
        from inspect_ai.solver import chain as chained

        sample = copy.deepcopy(self.samples[place])
        messages = [ChatMessageUser(content=sample.input)] if isinstance(sample.input, str) else list(sample.input)
        state = TaskState(
            model=ModelName("none/none"),
            sample_id=sample.id if sample.id is not None else place,
            epoch=1,
            input=sample.input,
            messages=messages,
            choices=sample.choices,
            metadata=sample.metadata or {},
            target=_target(sample.target),
        )
        _begin(state)
        solvers = [*(_listed(self.task.setup)), *_listed(self.task.solver)]
        return await chained(solvers)(state, generate)


def _listed(solver: Any) -> list[Any]:
    return list(solver) if isinstance(solver, list | tuple) else [solver] if solver is not None else []


def _target(target: Any) -> Any:
    from inspect_ai.scorer import Target

    return Target(target)


def _begin(state: Any) -> None:
    """What solvers find around them in a run of Inspect's own."""
    from inspect_ai.log._transcript import Transcript, init_transcript
    from inspect_ai.solver._task_state import set_sample_state

    init_transcript(Transcript())
    set_sample_state(state)
