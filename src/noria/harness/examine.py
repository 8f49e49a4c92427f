"""Runs an environment through everything that its gates look at: gold, null, random, cheats, slips, fuzz, repeats."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from noria.grading.grader import crash
from noria.harness.author_errors import blamed, drawn, speaking
from noria.harness.baselines import at_random, silent, slipping, tokenizer_of
from noria.harness.environments.environment import Environment
from noria.harness.gates import (
    FEWEST,
    Evidence,
    Fuzzed,
    Gate,
    Repeated,
    Unearned,
    all_gates,
    earned_by_task,
    worth_of_some,
)
from noria.harness.hostile_traces import hostile_traces
from noria.harness.policy import ScriptedPolicy
from noria.harness.rollout import rollouts
from noria.harness.scripted import Policy
from noria.harness.spread import spread
from noria.harness.tools import Described, SandboxFailed, Toolbox, ToolCall, ToolResult, Tools
from noria.harness.traces import Recorded
from noria.sandbox import Limits, Sandbox
from noria.types import Task, Trace, seed_of

# A tool takes milliseconds. The backstop of wall time is far above, so that a busy machine decides nothing.
TOOL_LIMITS = Limits(cpu_seconds=5, wall_seconds=30.0)
NOISES = (0.1, 0.3)
FUZZED_TASKS, REPEATED_CALLS, CALLS_A_TASK = 3, 40, 4
MOST_TASKS = 320  # what earns too near to the gate's bound to tell after these does not pass
# Traces, at least, where a split has no more tasks: of few tasks, a policy that draws its replies may be lucky once.
# One that is right once in five times then earns 0.1 at most in one check of a hundred.
PLAYS_OF_ALL = 80
CONCURRENT = 8  # traces at a time: what tools keep warm (open pages, indices) is for a few


@dataclass(frozen=True)
class Examination:
    """What `examine` found of one environment."""

    environment: str
    version: str
    tasks: int
    gates: tuple[Gate, ...]

    @property
    def passed(self) -> bool:
        return all(gate.passed for gate in self.gates)


def examine(
    environment: Environment,
    tasks: int = 40,
    repeats: int = 8,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Examination:
    """All gates on `tasks` held-out tasks, the slipping policy `repeats` times each; on more where those can't tell
    whether what must earn nothing does. Deterministic."""
    evidence = collect(environment, tasks, repeats, seed, progress)
    return Examination(environment.name, environment.version, tasks, tuple(all_gates(evidence)))


def traces_of(environment: Environment, tasks: int, repeats: int) -> int:
    """How many traces `examine` makes and reports as its total; those of more tasks come on top, unreported."""
    return tasks * (5 + len(environment.cheats) + repeats * len(NOISES))


def collect(
    environment: Environment,
    count: int,
    repeats: int,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evidence:
    """The runs that the gates judge."""
    splits = {split: drawn(environment, count, seed, split) for split in environment.splits}
    again = {split: drawn(environment, count, seed, split) for split in environment.splits}
    tasks = splits["heldout"]
    with Sandbox(TOOL_LIMITS) as box:
        toolbox = Toolbox(box, environment.tools)
        total = traces_of(environment, len(tasks), repeats)
        player = _Player(environment, toolbox, tasks, seed, lambda done: progress(done, total))
        heard = _Heard(toolbox)
        gold, gold_again = player.play(environment.gold, tools=heard), player.play(environment.gold)
        nothing, anything = (lambda task: silent), (lambda task: at_random(environment))
        null = player.play(nothing)
        random, random_again = (player.play(anything, tools=at) for at in (heard, toolbox))
        decided = partial(_decided, environment, toolbox, seed)
        unearned = {
            "null": {"null": decided(nothing, null)},
            "random": {"random": decided(anything, random)},
            "cheats": {name: decided(cheat, player.play(cheat)) for name, cheat in environment.cheats.items()},
        }
        slips = environment.reference or (lambda task, noise: slipping(environment, task, noise))
        reference = {noise: player.play(_at(slips, noise), repeats) for noise in NOISES}
        sample = spread(heard.results, min(REPEATED_CALLS, CALLS_A_TASK * count))
        return Evidence(
            splits=splits,
            splits_again=again,
            gold=gold,
            gold_again=gold_again,
            random=random,
            random_again=random_again,
            unearned=unearned,
            reference=reference,
            fuzzed=tuple(_fuzz(environment, null)),
            repeated=tuple(_repeat(toolbox, sample, environment.budget.result_bytes)),
            tools=tuple(tool.name for tool in environment.tools),
        )


def play(
    environment: Environment,
    toolbox: Toolbox,
    tasks: Sequence[Task],
    seed: int,
    policy_of: Callable[[Task], Policy],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Recorded:
    """`policy_of(task)` on each task, rolled out and graded. Reports each trace."""
    return _Player(environment, toolbox, tasks, seed, lambda done: progress(done, len(tasks))).play(policy_of)


def _decided(
    environment: Environment, toolbox: Toolbox, seed: int, policy_of: Callable[[Task], Policy], run: Recorded
) -> Unearned:
    """`run`, on more and more tasks until they tell whether it is worth little; on all of a split that has no more."""

    def with_these(tasks: Sequence[Task]) -> Recorded:
        more = play(environment, toolbox, tasks, seed_of(seed, len(run.tasks)), policy_of)
        return Recorded(run.tasks + more.tasks, run.traces + more.traces, run.scores + more.scores)

    while (earned := earned_by_task(run)) and worth_of_some(earned) == "unclear" and len(run.tasks) < MOST_TASKS:
        known = {task.id: task for task in run.tasks}
        new, no_more = _more_tasks(environment, seed, known)
        run = with_these(new) if new else run
        if no_more:
            while len(run.tasks) < PLAYS_OF_ALL:
                run = with_these([*known.values(), *new])
            return Unearned(run, no_more)
    return Unearned(run)


def _more_tasks(environment: Environment, seed: int, known: Mapping[str, Task]) -> tuple[list[Task], str]:
    """As many new tasks as are known, or all that are left; and why there are no more, "" where there may be."""
    given, wanted = len(known), max(2 * len(known), FEWEST)
    made, no_more = _drawn_or_why(environment, wanted, seed)
    refused = wanted
    while no_more and refused - given > 1:
        middle = (given + refused) // 2
        fewer, why = _drawn_or_why(environment, middle, seed)
        made, given, refused = (made, given, middle) if why else (fewer, middle, refused)
    new = {task.id: task for task in made if task.id not in known}
    return list(new.values()), no_more


def _drawn_or_why(environment: Environment, count: int, seed: int) -> tuple[list[Task], str]:
    """Tasks; or why there are not so many. Whatever an author's generator raises when it is asked for more than
    `--tasks` counts as that: its first tasks it gave."""
    try:
        made = drawn(environment, count, seed, "heldout")
    except Exception as error:  # noqa: BLE001 - whatever it is: told in the evidence of the gate
        return [], f"asked for {count}, {error}"
    different = len({task.id for task in made})
    return made, f"asked for {count}, generate gave {different}" if different < count else ""


class _Player:
    def __init__(
        self,
        environment: Environment,
        toolbox: Toolbox,
        tasks: Sequence[Task],
        seed: int,
        tell: Callable[[int], None],
    ) -> None:
        self.environment, self.toolbox, self.tasks, self.seed = environment, toolbox, tuple(tasks), seed
        self.tokenizer = tokenizer_of(environment, tasks)
        self.grade = blamed("the grader", environment, blamed("grader", environment, environment.grader)().grade)
        self.program, self.tell, self.done = environment.harness, tell, 0
        self.subagents = environment.subagents
        if self.subagents and environment.helper:
            # Helpers that are good at what they are asked: what is examined is the main agent.
            helper = blamed("helper", environment, environment.helper)
            helpers = {task.id: speaking(environment, task, helper(task)) for task in self.tasks}
            policy = ScriptedPolicy(lambda task: helpers[task.id], self.tokenizer)
            self.subagents = replace(self.subagents, policy=policy)

    def play(self, policy_of: Callable[[Task], Policy], repeats: int = 1, tools: Tools | None = None) -> Recorded:
        tasks = [task for task in self.tasks for _ in range(repeats)]
        seeds = [seed_of(self.seed, task.id, number) for task in self.tasks for number in range(repeats)]
        make = blamed("a policy", self.environment, policy_of)
        policies = {task.id: speaking(self.environment, task, make(task)) for task in self.tasks}
        policy = ScriptedPolicy(lambda task: policies[task.id], self.tokenizer)
        made = rollouts(
            zip(tasks, seeds, strict=True),
            policy,
            self.program,
            budget=self.environment.budget,
            tools=tools or self.toolbox,
            subagents=self.subagents,
            concurrent=CONCURRENT,
        )
        traces = tuple(map(self._counted, made))
        return Recorded(tuple(tasks), traces, tuple(self.grade(tasks, traces)))

    def _counted(self, trace: Trace) -> Trace:
        self.done += 1
        self.tell(self.done)
        return trace


class _Heard:
    """A toolbox whose calls are kept with their results, those of sub-agents too."""

    def __init__(self, toolbox: Toolbox) -> None:
        self._toolbox = toolbox
        self.results: list[tuple[ToolCall, ToolResult]] = []

    @property
    def described(self) -> Mapping[str, Described]:
        return self._toolbox.described

    def bind(self, tool: str, argument: str | Mapping[str, Any]) -> Mapping[str, Any]:
        return self._toolbox.bind(tool, argument)

    def run(self, calls: Sequence[ToolCall]) -> list[ToolResult | SandboxFailed]:
        results = self._toolbox.run(calls)
        pairs = zip(calls, results, strict=True)
        self.results += [(call, result) for call, result in pairs if isinstance(result, ToolResult)]
        return results


def _repeat(toolbox: Toolbox, recorded: Sequence[tuple[ToolCall, ToolResult]], shown_bytes: int) -> Iterator[Repeated]:
    """In two batches: within one, the sandbox runs equal calls once. Of a text, the `shown_bytes` are compared."""
    calls = [call for call, _ in recorded]
    first, second = toolbox.run(calls), toolbox.run(calls)
    for (call, said), *again in zip(recorded, first, second, strict=True):
        results = [result for result in again if isinstance(result, ToolResult)]
        declared = all(result.deterministic for result in results)
        told = tuple(_told(result, shown_bytes) for result in results)
        yield Repeated(call.tool, call.arguments, declared, _told(said, shown_bytes), told)


def _fuzz(environment: Environment, null: Recorded) -> Iterator[Fuzzed]:
    grader = environment.grader()
    for task, trace in zip(null.tasks[:FUZZED_TASKS], null.traces[:FUZZED_TASKS], strict=True):
        for what, hostile in hostile_traces(task, trace):
            if hostile.answer == task.answer and hostile.answer:
                continue
            try:
                (score,) = grader.grade([task], [hostile])
            except Exception:  # noqa: BLE001 - that it raised is the finding
                yield Fuzzed(what, None, crash().evidence)
                continue
            broken = score.reason == "crash" and hostile.outcome not in ("harness_error", "aborted")
            yield Fuzzed(what, score, score.evidence if broken else "")


def _at(slips: Callable[[Task, float], Policy], noise: float) -> Callable[[Task], Policy]:
    return lambda task: slips(task, noise)


def _told(result: ToolResult, shown_bytes: int) -> str:
    text = result.text.encode("utf-8", "replace")[:shown_bytes].decode("utf-8", "ignore")
    return json.dumps([text, dict(result.files), dict(result.notes)], sort_keys=True, default=repr)
