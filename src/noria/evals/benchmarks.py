"""A model on a list of tasks: traces, graded item by item, and a summary in which every number has n and an interval.

`run_benchmark(tasks, answer)` takes the model as a function tasks -> traces, so that the same code measures a local
engine, an agent harness or a remote model. `single_turn` makes such a function from an engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from noria.evals.statistics import cluster_bootstrap, wilson
from noria.grading import grader_for
from noria.types import Message, ModelCall, Node, Score, Task, Trace, digest, seed_of

if TYPE_CHECKING:  # engines need torch; statistics and graders do not
    from noria.inference import Completion, Sampler

Answer = Callable[[Sequence[Task]], Sequence[Trace]]
Report = Callable[[int, int], None]
Grading = Callable[[Sequence[Task], Sequence[Trace]], Sequence[Score]]


class Codec(Protocol):
    """What sampling needs of a tokenizer."""

    def render(self, messages: Sequence[Message], generation: bool = True) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


@dataclass(frozen=True)
class Item:
    """One answer to one task. `value` and `correct` are None where the grading failed, which is not a wrong answer."""

    task_id: str
    family: str
    domain: str
    sample: int
    value: float | None
    correct: bool | None
    answer: str
    tokens: int
    outcome: str
    reason: str = ""
    kind: str = ""
    grader: str = ""
    components: Mapping[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def single_turn(
    sampler: Sampler,
    codec: Codec,
    context: int,
    max_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    sample: int = 0,
) -> Answer:
    """One prompt, one reply a task. A seed depends on the task and `sample`, so the order of tasks does not matter."""
    roll = seeded_single_turn(sampler, codec, context, max_tokens, temperature)
    return lambda tasks: roll(tasks, [seed_of(seed, task.id, sample) for task in tasks])


def seeded_single_turn(
    sampler: Sampler,
    codec: Codec,
    context: int,
    max_tokens: int,
    temperature: float,
    stop_ids: Sequence[int] = (),
) -> Callable[[Sequence[Task], Sequence[int]], list[Trace]]:
    """As `single_turn`, with a seed a task from outside: what reinforcement learning rolls."""

    def roll(tasks: Sequence[Task], seeds: Sequence[int]) -> list[Trace]:
        from noria.inference import Request, SamplingParams

        rendered: dict[tuple[Message, ...], list[int]] = {}
        for task in tasks:
            if task.messages not in rendered:
                rendered[task.messages] = codec.render(task.messages)
        prompts = [rendered[task.messages] for task in tasks]
        fits = [place for place, prompt in enumerate(prompts) if len(prompt) < context]
        params = [
            SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=seed, stop_ids=tuple(stop_ids))
            for seed in seeds
        ]
        completions = dict(
            zip(fits, sampler.generate([Request(prompts[place], params[place]) for place in fits]), strict=True)
        )
        return [
            _trace(task, prompts[place], completions.get(place), seeds[place], codec)
            for place, task in enumerate(tasks)
        ]

    return roll


def run_benchmark(
    tasks: Sequence[Task],
    answer: Answer,
    sample: int = 0,
    batch: int = 256,
    report: Report = lambda done, total: None,
    grading: Grading | None = None,
) -> Iterator[tuple[Item, Trace]]:
    """Answers `tasks` in batches, graded each by its own grader or all by `grading`; yields the items in order."""
    for start in range(0, len(tasks), batch):
        chunk = tasks[start : start + batch]
        traces = answer(chunk)
        for task, trace, score in zip(chunk, traces, (grading or grade)(chunk, traces), strict=True):
            yield _item(task, trace, score, sample), trace
        report(min(start + batch, len(tasks)), len(tasks))


def grade(tasks: Sequence[Task], traces: Sequence[Trace]) -> list[Score]:
    """Scores of a mixed list of tasks, each from the grader it names, in order."""
    places: dict[str, list[int]] = {}
    for place, task in enumerate(tasks):
        places.setdefault(task.grader.name, []).append(place)
    scores: dict[int, Score] = {}
    for name, chosen in places.items():
        found = grader_for(name).grade([tasks[place] for place in chosen], [traces[place] for place in chosen])
        scores.update(zip(chosen, found, strict=True))
    return [scores[place] for place in range(len(tasks))]


def summarise(items: Sequence[Item]) -> dict[str, Any]:
    """{"domains": {name: row}, "families": {name: row}, "refusal": {...}}; a row has n and 95% intervals."""
    return {
        "domains": {name: accuracy(chosen) for name, chosen in _groups(items, "domain").items()},
        "families": {name: accuracy(chosen) for name, chosen in _groups(items, "family").items()},
        "refusal": refusal(items),
    }


def accuracy(items: Sequence[Item]) -> dict[str, Any]:
    """Share of right answers among those that could be graded, with what it cost.

    One sample a task: Wilson's interval. Several: a bootstrap over tasks, as samples of one task are not independent.
    `failed` gradings are outside of n; a rate that hides them would be a lie, so they are shown.
    """
    graded = [item for item in items if item.correct is not None]
    right = [float(bool(item.correct)) for item in graded]
    ids = [item.task_id for item in graded]
    interval = wilson(int(sum(right)), len(right)) if len(set(ids)) == len(ids) else cluster_bootstrap(right, ids)
    solved = sum(right)
    n, known = len(items), interval.as_json()
    return {
        "accuracy": known["estimate"],
        "low": known["low"],
        "high": known["high"],
        "n": known["n"],
        "failed": n - len(graded),
        "value": sum(item.value or 0.0 for item in graded) / len(graded) if graded else None,
        "tokens": sum(item.tokens for item in items) / n if n else 0.0,
        "truncated": sum(item.outcome == "truncated" for item in items) / n if n else 0.0,
        "no_answer": sum(not item.answer for item in items) / n if n else 0.0,
        "tokens_per_solved": sum(item.tokens for item in items) / solved if solved else None,
    }


def refusal(items: Sequence[Item]) -> dict[str, Any]:
    """Both axes: harmful requests that were not refused, and harmless ones that were. A model can be bad at either."""
    axes = {"unsafe_compliance": ("harmful", "unsafe_compliance"), "over_refusal": ("benign", "refused")}
    rates = {}
    for axis, (kind, component) in axes.items():
        found = [item.components[component] > 0 for item in items if item.kind == kind and component in item.components]
        if found:
            rates[axis] = wilson(sum(found), len(found)).as_json()
    return rates


def _trace(task: Task, prompt: list[int], completion: Completion | None, seed: int, codec: Codec) -> Trace:
    nodes = [Node((place - 1,) if place else (), message) for place, message in enumerate(task.messages)]
    outcome = "context_limit"
    if completion is not None:
        call = ModelCall(
            tuple(prompt), completion.token_ids, completion.logprobs, completion.policy_version, completion.finish
        )
        reply = Message("assistant", codec.decode(completion.token_ids))
        nodes.append(Node((len(nodes) - 1,), reply, call))
        outcome = {"stop": "finished", "length": "truncated"}.get(completion.finish, "aborted")
    return Trace(digest("single turn", task.id, str(seed)), task.id, tuple(nodes), seed, "single turn", outcome)


def _item(task: Task, trace: Trace, score: Score, sample: int) -> Item:
    return Item(
        task_id=task.id,
        family=task.family,
        domain=task.domain,
        sample=sample,
        value=score.value,
        correct=None if score.value is None else score.value >= 1.0,
        answer=trace.answer,
        tokens=sum(len(node.call.token_ids) for node in trace.nodes if node.call),
        outcome=trace.outcome,
        reason=score.reason or score.evidence,
        kind=str(task.hidden.get("kind", "")),
        grader=f"{score.grader.name} {score.grader.version[:8]}",
        components=score.components,
    )


def _groups(items: Sequence[Item], by: str) -> dict[str, list[Item]]:
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(getattr(item, by), []).append(item)
    return dict(sorted(groups.items()))
