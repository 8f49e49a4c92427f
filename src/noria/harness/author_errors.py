"""What an environment's functions raise or give wrongly, told as an error of its file: which one, what, which line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar

from noria.harness.code_file import place_of
from noria.harness.environment_file import EnvironmentFileError
from noria.harness.environments.environment import Environment
from noria.harness.scripted import Policy
from noria.harness.well_formed import wrong_in_tasks
from noria.types import Message, Task

P = ParamSpec("P")
T = TypeVar("T")


def drawn(environment: Environment, count: int, seed: int, split: str) -> list[Task]:
    """Tasks of the environment. Raises EnvironmentFileError where its generator raises or gives what is no task."""
    tasks: object = blamed("generate", environment, environment.generate)(count, seed, split)
    if wrong := wrong_in_tasks(tasks):
        raise EnvironmentFileError(f"{environment.name}: generate({count}, {seed}, {split!r}): {wrong}")
    return list(tasks)  # type: ignore[call-overload]


def blamed(what: str, environment: Environment, function: Callable[P, T]) -> Callable[P, T]:
    """`function` of an environment's file; what it raises is an error of that file, with its place."""

    def call(*arguments: P.args, **named: P.kwargs) -> T:
        try:
            return function(*arguments, **named)
        except Exception as error:
            if type(error).__module__.startswith("noria."):
                raise
            said = f"{what} raised {type(error).__name__}: {error} ({place_of(error, function, environment.generate)})"
            raise EnvironmentFileError(f"{environment.name}: {said}") from error

    return call


def speaking(environment: Environment, task: Task, policy: object) -> Policy:
    """An environment's policy for `task`; where it is none, or what it says is no text, that is told."""
    of = f"{environment.name}: a policy for task {task.id:.40}"
    if not callable(policy):
        raise EnvironmentFileError(
            f"{of} is {policy!r:.60} ({type(policy).__name__}): `gold`, a cheat and `helper` must return a function "
            "(messages, seed) -> text"
        )
    asked = blamed("a policy", environment, policy)

    def speak(messages: Sequence[Message], seed: int) -> str:
        said: object = asked(messages, seed)
        if not isinstance(said, str):
            raise EnvironmentFileError(f"{of} replied {said!r:.60} ({type(said).__name__}): a reply must be text")
        return said

    return speak
