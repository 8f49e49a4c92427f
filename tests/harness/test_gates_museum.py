"""A museum of broken environments: for each gate at least one that it, and only what follows from it, catches."""

from __future__ import annotations

import itertools
import random
import sys
from dataclasses import replace

import pytest
from scipy import stats

from noria.harness.environments import parallel
from noria.harness.environments.calculator import ENVIRONMENT, compute
from noria.harness.environments.environment import TasksExhausted, follow
from noria.harness.examine import Examination, examine
from noria.harness.gates import Gate, Unearned, all_gates, earned_by_task, earns_nothing, worth_of_some
from noria.harness.program import program_from_source
from noria.harness.reward import Parts
from noria.harness.subagents import DESCRIPTIONS
from noria.harness.tools import READ, HostTool, ToolResult
from noria.harness.trace_grader import right_answer, trace_grader
from noria.harness.traces import Recorded
from noria.types import Score, Trace

GATES = {"splits", "gold", "null", "random", "cheats", "re-run", "difficulty", "fuzz", "tools"}
COUNTER = itertools.count()


def failed(environment) -> dict[str, Gate]:
    found = examine(environment, tasks=12, repeats=4)
    assert {gate.name for gate in found.gates} == GATES
    return {gate.name: gate for gate in found.gates if not gate.passed}


def judged_by(judge):
    """The calculator with another judge; its tasks carry the grader that judges them."""
    return replace(ENVIRONMENT, grader=lambda: trace_grader("broken", judge, sys.modules[__name__]))


def with_calc(text_of, deterministic=True):
    def run(call):
        return ToolResult(text_of(call.arguments["expression"]), call.files, call.notes, deterministic)

    tool = HostTool("calc", "", ENVIRONMENT.tools[0].parameters, run, deterministic)
    return replace(ENVIRONMENT, tools=(tool,))


def test_the_sound_environment_passes_every_gate():
    assert failed(ENVIRONMENT) == {}


def test_a_gold_that_does_not_solve_is_caught():
    found = failed(replace(ENVIRONMENT, gold=lambda task: follow([f"{task.answer}0"])))
    assert "gold" in found and "0 of 12 gold traces score 1" in found["gold"].evidence


def test_a_gold_worth_more_than_one_is_caught():
    assert set(failed(judged_by(lambda task, trace: Parts(2 * right_answer(task, trace))))) == {"gold"}


def test_a_grader_that_pays_for_silence_is_caught_by_the_null_agent():
    found = failed(judged_by(lambda task, trace: Parts(float(trace.answer in ("", task.answer)))))
    assert found["null"].figure == "1.00" and "gold" not in found


def test_a_grader_that_pays_for_activity_is_caught_by_the_random_agent():
    def judge(task, trace):
        return Parts(
            max(right_answer(task, trace), float(trace.facts.get("invalid_calls", 0) == 0 < len(trace.nodes) - 3))
        )

    found = failed(judged_by(judge))
    assert "random" in found and "null" not in found


def test_a_grader_that_looks_for_the_answer_anywhere_is_caught_by_a_cheat():
    found = failed(judged_by(lambda task, trace: Parts(float(task.answer in trace.answer))))
    assert "cheats" in found and found["cheats"].evidence.startswith(("equation 1.00", "answer_and_more 1.00"))


def test_a_veto_keeps_a_cheat_from_paying():
    def judge(task, trace):
        return Parts(float(task.answer in trace.answer.split()), vetoes={"wordy": float(" " in trace.answer)})

    assert "cheats" not in failed(judged_by(judge))


def earning(*rewards: float, each: int = 1) -> Recorded:
    """A run in which every reward is that of another task, played `each` times."""
    (task,) = ENVIRONMENT.generate(1, 0, "heldout")
    tasks = tuple(replace(task, id=f"t{place}") for place in range(len(rewards)) for _ in range(each))
    traces = tuple(Trace("t", task.id, (), 0, "h", "finished") for task in tasks)
    scores = tuple(Score("graded", task.grader, reward) for reward in rewards for _ in range(each))
    return Recorded(tasks, traces, scores)


def worth(run: Recorded) -> str:
    return worth_of_some(earned_by_task(run))


def paid(some: int, of: int, each: int = 1) -> Recorded:
    return earning(*(float(place < some) for place in range(of)), each=each)


@pytest.mark.parametrize("tasks", [5, 29, 40, 320, 1500])
def test_a_run_is_worth_little_or_much_where_a_tail_of_the_binomial_says_so(tasks):
    little, much = stats.binom(tasks, 0.1), stats.binom(tasks, 0.15)
    for some in range(0, tasks + 1, max(1, tasks // 100)):
        passes, fails = some <= 0.1 * tasks and much.cdf(some) <= 0.025, little.sf(some - 1) <= 0.025
        assert not (passes and fails)
        earned = {str(place): float(place < some) for place in range(tasks)}
        assert worth_of_some(earned) == ("little" if passes else "much" if fails else "unclear")


def test_a_guess_that_is_right_once_in_five_tasks_hardly_ever_passes_at_forty():
    chance = sum(stats.binom(40, 0.2).pmf(some) for some in range(41) if worth(paid(some, 40)) == "little")
    assert chance < 0.002 and worth(paid(1, 40)) == "little" and worth(paid(9, 40)) == "much"


def test_what_some_tasks_cost_hides_nothing_that_others_pay():
    assert worth(earning(*[1.0] * 10, *[-0.5] * 30)) == "much"
    assert worth(earning(*[-0.5] * 40)) == "little" and worth(earning(*[0.25] * 40)) == "much"


def test_a_gate_shows_the_mean_that_it_judged():
    gate = earns_nothing("cheats", {"c": Unearned(earning(*[1.0] * 10, *[-0.5] * 30))})
    assert not gate.passed and gate.figure == "0.25"
    assert gate.evidence == "c 0.25 in 40 tasks (paid: task t0) (rewards below 0 count as 0)"


def test_playing_a_task_again_is_no_further_evidence():
    for some, of in ((1, 12), (0, 12), (3, 12), (1, 40), (9, 40)):
        assert worth(paid(some, of, each=10)) == worth(paid(some, of))
    assert worth(paid(0, 12, each=10)) == "unclear"  # of fewer than 23 tasks nothing follows


def test_the_worst_agent_stands_first_and_decides():
    runs = {"good": paid(0, 40), "near": paid(4, 40), "bad": paid(20, 40), "free": paid(1, 40)}
    gate = earns_nothing("cheats", {name: Unearned(run) for name, run in runs.items()})
    assert not gate.passed and [part.split()[0] for part in gate.evidence.split(", ") if " in 40" in part] == [
        "bad",
        "near",
        "free",
        "good",
    ]
    assert earns_nothing("cheats", {name: Unearned(runs[name]) for name in ("good", "free")}).passed


@pytest.mark.parametrize(("share", "said"), [(0.02, None), (0.13, " in 384 tasks, too near to 0.1 to tell"), (0.3, "")])
def test_a_cheat_is_tried_on_more_tasks_until_it_is_decided(share, said):
    def cheat(task):
        return follow([task.answer if int(task.id[:6], 16) < share * 16**6 else "no"])

    found = failed(replace(ENVIRONMENT, cheats={"cheat": cheat}))
    assert set(found) == (set() if said is None else {"cheats"})
    if said is not None:
        assert said in found["cheats"].evidence and ("too near" in found["cheats"].evidence) == bool(said)


def of_twelve(refuse, **changes):
    """The calculator with twelve tasks a split; `refuse` is what it does where more are asked for."""

    def generate(count, seed, split):
        return refuse(split) if count > 12 else ENVIRONMENT.generate(count, seed, split)

    return replace(ENVIRONMENT, generate=generate, **changes)


def raising(error):
    def refuse(split):
        raise error

    return refuse


def paying_for(some):
    """A cheat that is paid with certainty on so many of the twelve tasks."""
    ids = {task.id for task in ENVIRONMENT.generate(12, 0, "heldout")[:some]}
    return lambda task: follow([task.answer if task.id in ids else "no"])


REFUSALS = {
    "as it should": (raising(TasksExhausted("it has 12 tasks")), "asked for 24, it has 12 tasks"),
    "in its own way": (raising(ValueError("only 12 tasks")), "generate raised ValueError: only 12 tasks ("),
    "by giving fewer": (lambda split: ENVIRONMENT.generate(12, 0, split), "asked for 24, generate gave 12"),
    "by giving them twice": (lambda split: 2 * ENVIRONMENT.generate(12, 0, split), "asked for 24, generate gave 12"),
}


@pytest.mark.parametrize("way", REFUSALS)
def test_where_a_split_has_no_more_tasks_the_mean_over_all_of_them_decides(way):
    refuse, why = REFUSALS[way]
    gates = {gate.name: gate for gate in examine(of_twelve(refuse, cheats={"one": paying_for(1)}), 12, 4).gates}
    assert all(gate.passed for gate in gates.values())
    assert gates["null"].evidence.startswith("null 0.00 in all 12 tasks; there are no more tasks: ")
    assert "one 0.08 in all 12 tasks" in gates["cheats"].evidence and why in gates["cheats"].evidence
    assert set(failed(of_twelve(refuse, cheats={"two": paying_for(2)}))) == {"cheats"}


def test_all_tasks_of_an_exhausted_split_are_played_where_the_check_began_with_fewer():
    refuse, _ = REFUSALS["in its own way"]
    gates = {gate.name: gate for gate in examine(of_twelve(refuse), tasks=5, repeats=4).gates}
    assert gates["null"].passed and gates["null"].evidence.startswith("null 0.00 in all 12 tasks")


def test_a_cheat_that_draws_is_played_often_where_tasks_are_few():
    cheats = {"lucky": lambda task: lambda messages, seed: task.answer if seed % 4 == 0 else "no"}
    refuse, _ = REFUSALS["as it should"]
    assert set(failed(of_twelve(refuse, cheats=cheats))) == {"cheats"}
    assert stats.binom(80, 0.2).cdf(8) < 0.015


def test_tasks_that_could_not_be_graded_leave_a_finite_set_undecided():
    run = paid(0, 12)
    lost = replace(run, scores=(replace(run.scores[0], status="failed", value=None, reason="crash"), *run.scores[1:]))
    assert earns_nothing("null", {"null": Unearned(run, "asked for 24, ...")}).passed
    assert not earns_nothing("null", {"null": Unearned(lost, "asked for 24, ...")}).passed


def test_the_command_tells_of_a_gate_that_passed_with_all_tasks_that_there_are(capsys):
    from noria.cli.env import COLUMNS, _show_table

    null = earns_nothing("null", {"null": Unearned(paid(1, 12), "asked for 24, it has 12 tasks")})
    gates = tuple(null if name == "null" else Gate(name, True, "", "") for name in COLUMNS)
    _show_table([Examination("small", "", 12, gates)], 0)
    told = " ".join(capsys.readouterr().out.split())
    assert "small: gate null passed: null 0.08 in all 12 tasks (paid: task t0); there are no more tasks: asked" in told


def test_a_flaky_tool_is_caught_by_name_and_the_re_run_with_it():
    found = failed(with_calc(lambda expression: f"{compute(expression)}{' ' * (next(COUNTER) % 3)}"))
    assert {"re-run", "tools"} <= set(found) and "calc(" in found["tools"].evidence


def test_a_tool_that_says_it_may_differ_is_named_and_let_through():
    found = examine(with_calc(lambda expression: str(compute(expression) + next(COUNTER)), False), tasks=12, repeats=4)
    gates = {gate.name: gate for gate in found.gates}
    assert gates["tools"].passed and "may differ, and says so: calc" in gates["tools"].evidence
    assert gates["re-run"].passed and "differ where a tool says it may" in gates["re-run"].evidence


@pytest.mark.parametrize("always", ["solved", "failed"])
def test_an_environment_that_is_always_or_never_solved_is_caught(always):
    policy = ENVIRONMENT.gold if always == "solved" else lambda task: follow([""])
    found = failed(replace(ENVIRONMENT, reference=lambda task, noise: policy(task)))
    assert set(found) == {"difficulty"} and found["difficulty"].figure == "0%"


def test_a_grader_that_can_be_crashed_is_caught():
    found = failed(judged_by(lambda task, trace: Parts(float(int(trace.answer or "0") == int(task.answer)))))
    assert "fuzz" in found and "ValueError" in found["fuzz"].evidence


def test_a_grader_that_can_be_fooled_is_caught():
    def judge(task, trace):
        try:
            return Parts(float(float(trace.answer) >= float(task.answer)) if trace.answer.strip() else 0.0)
        except ValueError:
            return Parts(0.0)

    found = failed(judged_by(judge))
    assert "answer infinity got 1.00" in found["fuzz"].evidence


def test_a_grader_that_trusts_forged_facts_is_caught():
    found = failed(judged_by(lambda task, trace: Parts(max(right_answer(task, trace), -trace.facts.get("turns", 0)))))
    assert "facts negative got 1.00" in found["fuzz"].evidence


def test_splits_that_share_tasks_are_caught():
    found = failed(replace(ENVIRONMENT, generate=lambda count, seed, split: ENVIRONMENT.generate(count, seed, "train")))
    assert set(found) == {"splits"} and "in train and heldout" in found["splits"].evidence


def test_splits_that_share_prompts_under_other_ids_are_caught():
    def generate(count, seed, split):
        return [replace(task, id=f"{split}{task.id}") for task in ENVIRONMENT.generate(count, seed, "train")]

    assert set(failed(replace(ENVIRONMENT, generate=generate))) == {"splits"}


def test_a_generator_that_is_not_a_function_of_its_seed_is_caught():
    def generate(count, seed, split):
        return ENVIRONMENT.generate(count, random.SystemRandom().randrange(1 << 40), split)

    found = failed(replace(ENVIRONMENT, generate=generate))
    assert set(found) == {"splits"} and "generated twice" in found["splits"].evidence


def test_findings_are_a_function_of_the_arguments():
    assert examine(ENVIRONMENT, tasks=5, repeats=2, seed=3) == examine(ENVIRONMENT, tasks=5, repeats=2, seed=3)


def test_no_runs_pass_no_gate():
    from noria.harness.examine import collect

    evidence = collect(ENVIRONMENT, 5, 2, 0)
    empty = replace(evidence.gold, tasks=(), traces=(), scores=())
    bare = replace(
        evidence,
        gold=empty,
        gold_again=empty,
        random=empty,
        random_again=empty,
        unearned={"null": {"null": Unearned(empty)}, "random": {"random": Unearned(empty)}, "cheats": {}},
        reference={},
        fuzzed=(),
        repeated=(),
        splits={split: () for split in evidence.splits},
        splits_again={split: () for split in evidence.splits},
    )
    assert [gate.name for gate in all_gates(bare) if gate.passed] == []


def only_helpers_read(read=READ):
    """`parallel` where the main agent has helpers and nothing else."""
    source = (
        "class Harness:\n    def view(self, state):\n        return state.messages\n"
        f"    def tools(self, state):\n        return {tuple(DESCRIPTIONS)}\n"
        "    def observe(self, state, action, result):\n        from noria.types import Message\n\n"
        "        return (Message('tool', result),)\n"
    )

    def generate(count, seed, split):
        made = parallel.generate(6 * count, seed, split)
        return [task for task in made if task.hidden["kind"] == "independent"][:count]

    program = program_from_source(source, "delegating")
    return replace(parallel.ENVIRONMENT, generate=generate, tools=(read,), program=program)


def test_tools_that_only_helpers_use_are_run_again():
    (tools,) = (gate for gate in examine(only_helpers_read(), tasks=4, repeats=1).gates if gate.name == "tools")
    assert tools.passed and not tools.evidence.startswith("0 calls")


def test_a_flaky_tool_that_only_helpers_use_is_caught():
    def run(call):
        return ToolResult(f"see {next(COUNTER)}", call.files, call.notes)

    flaky = HostTool("read", "", READ.parameters, run)
    assert "read(" in {g.name: g for g in examine(only_helpers_read(flaky), 4, 1).gates}["tools"].evidence


def test_tools_whose_every_repeat_was_lost_to_the_sandbox_are_not_called_steady():
    from noria.harness.gates import Repeated, tools_are_steady

    lost = Repeated("calc", {"expression": "1"}, True, "1", ())
    kept = replace(lost, again=("1", "1"))
    assert not tools_are_steady([lost, replace(lost, again=("1",))], ["calc"]).passed
    assert not tools_are_steady([], ["calc"]).passed
    one = tools_are_steady([kept, lost], ["calc"])
    assert one.passed and one.evidence == "1 calls run twice more, 1 whose sandbox failed"
    assert tools_are_steady([], []).passed  # an environment without tools


@pytest.mark.parametrize("size", [0, 7, 40, 41, 60, 79, 80, 1000])
def test_a_sample_is_spread_over_all_calls(size):
    from noria.harness.spread import spread

    sample = spread(range(size), 40)
    gaps = {after - before for before, after in itertools.pairwise([*sample, size])}
    assert len(sample) == min(size, 40) and len(gaps) <= 2 and (not gaps or max(gaps) <= size // 40 + 1)
