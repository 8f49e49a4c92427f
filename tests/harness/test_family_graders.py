"""What the graders of single families promise: critical steps, pruned targets, forms as sent, vetoes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from noria.harness import reward
from noria.harness.environments import calculator, parallel, search, stream, webform
from noria.harness.reward import parl_reward
from noria.harness.tools import ToolCall, ToolError
from noria.types import Message, ModelCall, Node, ToolUse, Trace


def said(text, agent="", parents=()):
    return Node(parents, Message("assistant", text), ModelCall((1,), (2,), (0.0,)), agent=agent)


def used(tool, agent="", notes=None, files=None):
    return Node((), Message("tool", "x"), use=ToolUse(tool, {}, True, files or {}, notes or {}), agent=agent)


def trace(task, *nodes, outcome="finished", **facts):
    return Trace("t", task.id, nodes, 0, "h", outcome, facts)


def one(environment, wanted=lambda task: True):
    return next(task for task in environment.generate(40, 0, "train") if wanted(task))


def graded(environment, task, made):
    return environment.grader().grade([task], [made])[0]


# -- calculator --


def test_a_needless_call_costs_and_a_needed_one_does_not():
    for needed in (0, 1):
        task = one(calculator.ENVIRONMENT, lambda task, needed=needed: task.hidden["calls_needed"] == needed)
        score = graded(calculator.ENVIRONMENT, task, trace(task, said(task.answer), tool_calls=1))
        assert score.value == pytest.approx(1.0 if needed else 0.9)


@pytest.mark.parametrize(
    "expression", ["9 ** 9", "1 / 0", "f(1)", "9" * 65, "'a' * 9", "99999999 * 99999999", "", "[1]"]
)
def test_the_calculator_refuses_what_is_no_small_sum_of_whole_numbers(expression):
    with pytest.raises(ToolError):
        calculator.compute(expression)


def test_the_calculator_computes():
    assert calculator.compute(" -3 + 4 * (5 - 7)") == -11


# -- parallel --

DELEGATED = (
    said("both"),  # node 0: the main agent's reply that assigns a and b
    Node((0,), Message("system", "find"), agent="a"),
    said("", "a"),
    Node((0,), Message("system", "find"), agent="b"),
    said("", "b"),
    used("read", "a"),
    used("read", "b"),
    said("", "a"),
    said("", "b"),
    used("read", "b"),
    said("", "b"),
    used("assign_task"),
    used("assign_task"),
    said("12 45"),
)


def test_helpers_of_one_reply_count_by_the_slowest():
    task = one(parallel.ENVIRONMENT)
    assert parallel.critical_reads(trace(task, *DELEGATED)) == 1 + 3 + 1


def test_files_read_in_one_reply_count_one_by_one():
    task = one(parallel.ENVIRONMENT)
    assert parallel.critical_reads(trace(task, said(""), used("read"), used("read"), used("read"), said("1"))) == 4
    assert parallel.critical_reads(trace(task, said(""), used("read"), said("1"))) == 2


def test_a_right_answer_in_too_many_steps_is_not_the_outcome():
    task = one(parallel.ENVIRONMENT, lambda task: task.hidden["kind"] == "independent")
    fast, slow = (trace(task, *([said("")] * steps), said(task.answer)) for steps in (1, task.hidden["steps"]))
    assert graded(parallel.ENVIRONMENT, task, fast).value == 1.0
    score = graded(parallel.ENVIRONMENT, task, slow)
    assert score.value == 0.0 and score.components["right_answer"] == 1.0


def test_the_columns_give_parl_its_reward():
    task = one(parallel.ENVIRONMENT)
    made = trace(
        task, used("create_subagent"), used("create_subagent"), said(task.answer), assignments=2, finished_assignments=1
    )
    columns = graded(parallel.ENVIRONMENT, task, made).components
    assert (columns["r_parallel"], columns["r_finish"]) == (1.0, 0.5)
    assert parl_reward(1.0, columns["r_parallel"], columns["r_finish"], (0.2, 0.2)) == pytest.approx(1.3)


def test_independent_chains_can_not_be_read_in_time_by_one_agent_and_others_can():
    for task in parallel.ENVIRONMENT.generate(60, 1, "train"):
        files, steps = task.hidden["files"], task.hidden["steps"]
        decoys = parallel.DECOYS
        serial = len(files) - decoys + 1
        assert (steps < serial) == (task.hidden["kind"] == "independent") and steps <= serial


# -- search --


def kept(task, seen, pruned, answer="nothing", tools=("search_corpus",)):
    notes = {"search": {"seen": list(seen), "pruned": list(pruned)}}
    return trace(task, *(used(tool) for tool in tools), used("search_corpus", notes=notes), said(answer))


def test_a_target_that_was_seen_counts_though_it_was_pruned():
    task = one(search.ENVIRONMENT)
    targets = task.hidden["targets"]
    columns = graded(search.ENVIRONMENT, task, kept(task, targets, targets)).components
    assert columns["seen_recall"] == 1.0 and columns["kept_f"] == 0.0
    assert columns["context_reward"] == pytest.approx(reward.SEEN_WEIGHT)


def test_documents_without_the_answer_pay_nothing_and_all_of_it_pays_the_dense_reward():
    task = one(search.ENVIRONMENT)
    targets = task.hidden["targets"]
    assert graded(search.ENVIRONMENT, task, kept(task, targets, ())).value == 0.0
    score = graded(search.ENVIRONMENT, task, kept(task, targets, (), task.answer))
    assert score.value == 1.0 and score.components["context_reward"] == pytest.approx(2.0)


def test_streaks_of_pruning_cost():
    task = one(search.ENVIRONMENT)
    made = kept(task, task.hidden["targets"], (), task.answer, ("prune_chunks",) * 5)
    assert graded(search.ENVIRONMENT, task, made).value == pytest.approx(0.8)


# -- stream --


def test_what_is_to_be_carried_is_neither_in_the_first_nor_in_the_last_piece():
    for task in stream.ENVIRONMENT.generate(40, 0, "train"):
        pieces = [task.hidden["files"][str(place)].split() for place in range(len(task.hidden["files"]))]
        for word, number in zip(task.messages[0].content.split()[1:], task.answer.split(), strict=True):
            places = [place for place, piece in enumerate(pieces) if word in piece]
            assert 0 < places[-1] < len(pieces) - 1 and len(places) == 2
            piece = pieces[places[-1]]
            assert piece[piece.index(word) + 1] == number


def test_the_stream_ends_and_stays_ended():
    call = ToolCall("next", {}, {"0": "apple 1"}, {})
    first = stream.NEXT.run(call)
    second = stream.NEXT.run(replace(call, notes=first.notes))
    third = stream.NEXT.run(replace(call, notes=second.notes))
    assert [result.text for result in (first, second, third)] == ["apple 1", "end", "end"]


# -- web form --


def sent(task, *forms):
    return trace(task, used("submit", notes={"browser": {"submitted": list(forms)}}), said("done"))


def test_exactly_one_form_with_exactly_the_right_fields():
    task = one(webform.ENVIRONMENT)
    right = {"url": f"{webform.SITE}/thanks.html", "method": "POST", "fields": task.hidden["fields"]}
    other = {"url": f"{webform.SITE}/news.html", "method": "POST", "fields": [["mail", ""]]}
    wrong = {**right, "fields": task.hidden["fields"][:-1]}
    worth = {
        name: graded(webform.ENVIRONMENT, task, sent(task, *forms)).value
        for name, forms in {
            "right": [right],
            "none": [],
            "wrong": [wrong],
            "twice": [right, right],
            "wrong then right": [wrong, right],
            "news too": [right, other],
            "in the address": [{**right, "method": "GET"}],
            "elsewhere": [{**right, "url": other["url"]}],
        }.items()
    }
    assert worth.pop("right") == 1.0 and set(worth.values()) == {0.0}
