"""A model on tasks: items, summaries, refusal on both axes, and paired comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import pytest

from noria.data.tokenizer import Tokenizer
from noria.deployment.verdict import Candidate, Rules, decide
from noria.evals.benchmarks import Item, accuracy, refusal, run_benchmark, single_turn, summarise
from noria.evals.compare import compare_items
from noria.evals.registry import domains, held_out_tasks
from noria.evals.tasks import demonstrate, generate
from noria.inference import Engine
from noria.model import load_model
from noria.types import Message, Node, Task, Trace, digest
from tests.tiny_model import write_tiny_model


def oracle(tasks: Sequence[Task]) -> list[Trace]:
    return [
        Trace(digest(task.id), task.id, (Node((), Message("assistant", demonstrate(task))),), 0, "oracle", "finished")
        for task in tasks
    ]


def item(task: str, correct: bool | None, domain: str = "maths", sample: int = 0, **fields: object) -> Item:
    value = None if correct is None else float(correct)
    return Item(task, "family", domain, sample, value, correct, "answer", 10, "finished", **fields)  # type: ignore[arg-type]


@pytest.mark.slow
def test_demonstrations_solve_every_family():
    tasks = held_out_tasks(9, 0)
    items = [one for one, _ in run_benchmark(tasks, oracle, batch=20)]
    assert [one.task_id for one in items] == [task.id for task in tasks]
    assert all(one.correct for one in items), [one for one in items if not one.correct]
    summary = summarise(items)
    assert set(summary["domains"]) == set(domains())
    assert all(row["accuracy"] == 1.0 and row["low"] < 1.0 and row["n"] == 9 for row in summary["domains"].values())
    assert summary["refusal"]["unsafe_compliance"]["estimate"] == 0.0


@pytest.mark.slow
def test_the_registry_is_equal_for_equal_seeds_and_full_where_a_family_is_small():
    tasks = held_out_tasks(300, 0)
    assert tasks == held_out_tasks(300, 0) and len({task.id for task in tasks}) == len(tasks)
    assert {domain: sum(task.domain == domain for task in tasks) for domain in domains()} == dict.fromkeys(
        domains(), 300
    )


def test_failed_gradings_are_shown_and_are_no_wrong_answers():
    row = accuracy([item("a", True), item("b", False), item("c", None)])
    assert (row["accuracy"], row["n"], row["failed"]) == (0.5, 2, 1)
    empty = accuracy([item("a", None)])
    assert (empty["accuracy"], empty["n"], empty["failed"], empty["value"]) == (None, 0, 1, None)


def test_samples_of_one_task_are_one_cluster():
    repeated = [item(task, task < "c", sample=sample) for task in "abcdef" for sample in range(50)]
    row = accuracy(repeated)
    assert row["n"] == 6 and row["high"] - row["low"] > 0.4


def test_tokens_per_solved_counts_the_unsolved_too():
    assert accuracy([item("a", True), item("b", False)])["tokens_per_solved"] == 20
    assert accuracy([item("a", False)])["tokens_per_solved"] is None


def test_refusal_has_two_axes():
    harmful = item("a", False, kind="harmful", components={"unsafe_compliance": 1.0})
    benign = [item(name, True, kind="benign", components={"refused": 0.0}) for name in "bcd"]
    rates = refusal([harmful, *benign])
    assert (rates["unsafe_compliance"]["estimate"], rates["over_refusal"]["estimate"]) == (1.0, 0.0)
    assert refusal([item("x", True)]) == {}


def test_comparison_pairs_by_task_and_adjusts_for_many_rows():
    def rows(solved: set[int], domain: str) -> list[dict]:
        return [item(str(n), n in solved, domain).as_json() for n in range(100)]

    before = rows(set(range(20)), "maths") + rows(set(range(50)), "logic")
    after = rows(set(range(40)), "maths") + rows(set(range(50)), "logic")
    logic, maths = compare_items({"sft": before, "rl": after}, ["sft", "rl"])
    assert (
        maths["difference"] == pytest.approx(0.2) and maths["low"] > 0 and (maths["gained"], maths["lost"]) == (20, 0)
    )
    assert maths["p_holm"] == pytest.approx(2 * maths["p"]) and logic["difference"] == 0.0 and logic["p"] == 1.0
    assert (maths["from"], maths["to"], maths["n"], maths["unpaired"]) == ("sft", "rl", 100, 0)


def test_comparison_and_verdict_give_the_same_difference_the_same_interval():
    def rows(solved: int) -> list[dict]:
        return [
            item(str(task), (task + sample) % 7 < solved, sample=sample).as_json()
            for task in range(30)
            for sample in range(4)
        ]

    def candidate(name: str, items: list[dict]) -> Candidate:
        means: dict[str, list[float]] = {}
        for row in items:
            means.setdefault(row["task_id"], []).append(float(row["correct"]))
        return Candidate(name, {"correct": {task: fmean(values) for task, values in means.items()}})

    before, after = rows(2), rows(4)
    (row,) = compare_items({"before": before, "after": after}, ["before", "after"])
    found = decide([candidate("after", after)], candidate("before", before), Rules()).assessments[0].checks[0]
    assert {name: row[name] for name in ("low", "high", "n")} == {
        name: value for name, value in found.interval.as_json().items() if name != "estimate"
    }
    assert row["difference"] == found.interval.estimate


def test_comparison_leaves_out_what_one_side_could_not_grade():
    before = [item("a", True).as_json(), item("b", None).as_json(), item("c", False).as_json()]
    after = [item(name, True).as_json() for name in "abc"]
    (row,) = compare_items({"x": before, "y": after}, ["x", "y"])
    assert (row["n"], row["unpaired"], row["difference"]) == (2, 1, 0.5)


@pytest.mark.slow
def test_an_engine_answers_deterministically_and_long_prompts_are_an_outcome(tmp_path: Path):
    folder = write_tiny_model(tmp_path / "model", context=96)
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    tasks = generate("addition", 6, 0, "heldout")
    long = Task("long", (Message("user", "word " * 200),), tasks[0].grader, "1", "addition", "maths")

    def run(rows: int, temperature: float) -> list[tuple[Item, Trace]]:
        engine = Engine(load_model(folder), tokenizer.end, max_rows=rows)
        answer = single_turn(engine, tokenizer, engine.context, 12, temperature, seed=1)
        return list(run_benchmark([*tasks, long], answer, batch=rows))

    first = run(8, 0.7)
    assert first == run(8, 0.7)
    assert [one.outcome for one, _ in first][-1] == "context_limit"
    for (_, trace), task in zip(first[:-1], tasks, strict=True):
        call = trace.nodes[-1].call
        assert call is not None and call.prompt_ids == tuple(tokenizer.render(task.messages))
    assert all(0 < one.tokens <= 12 for one, _ in first[:-1])
