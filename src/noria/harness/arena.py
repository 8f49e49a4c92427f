"""An environment open for rollouts: a sandbox with tools, a program, a grader and a budget, while it is in use."""

from __future__ import annotations

from collections.abc import Sequence

from noria.data.tokenizer import Tokenizer
from noria.grading import Grader
from noria.harness.program import Program
from noria.harness.rollout import Budget, Sampling, rollout
from noria.harness.tools import AnyTool, Toolbox
from noria.harness.traces import Recorded
from noria.inference import Sampler
from noria.sandbox import Limits, Sandbox
from noria.types import Task, Trace, seed_of


class Arena:
    """Use as a context manager. Raises SandboxUnavailable where this machine can't sandbox."""

    def __init__(
        self,
        program: Program,
        tokenizer: Tokenizer,
        grader: Grader,
        tools: Sequence[AnyTool],
        turns: int,
        tokens_per_turn: int,
        limits: Limits | None = None,
    ) -> None:
        self.program, self.tokenizer, self.grader = program, tokenizer, grader
        self._turns, self._tokens_per_turn = turns, tokens_per_turn
        self._box = Sandbox(limits)
        self._tools = Toolbox(self._box, tools)

    def __enter__(self) -> Arena:
        return self

    def __exit__(self, *_: object) -> None:
        self._box.close()

    def budget(self, context: int) -> Budget:
        return Budget(turns=self._turns, tokens_per_turn=self._tokens_per_turn, context=context)

    def roll(
        self, tasks: Sequence[Task], seeds: Sequence[int], sampler: Sampler, context: int, temperature: float = 1.0
    ) -> list[Trace]:
        """One trace a task; `context` is the model's, in tokens."""
        return rollout(
            tasks,
            seeds,
            sampler,
            self.tokenizer,
            self.program,
            budget=self.budget(context),
            tools=self._tools,
            sampling=Sampling(temperature),
        )

    def record(
        self, tasks: Sequence[Task], seed: int, sampler: Sampler, context: int, temperature: float = 1.0
    ) -> Recorded:
        """Rolled out and graded; each task's seed is seed_of(seed, task.id)."""
        traces = self.roll(tasks, [seed_of(seed, task.id) for task in tasks], sampler, context, temperature)
        return Recorded(tuple(tasks), tuple(traces), tuple(self.grader.grade(tasks, traces)))
