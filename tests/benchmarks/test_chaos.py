from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.chaos import PUBLICATION, Outcome, StepFacts, choose, rows_of, storm

STEPS = [StepFacts(index, f"step{index}", f"s{index // 2}", f"{index:032x}", 1.0 + index) for index in range(6)]


def test_every_stage_and_every_point_of_publication_is_aimed_at_in_the_chains_order():
    targets = choose(STEPS, 20, seed=1)
    assert len(targets) == 20
    assert {target.step.stage for target in targets if target.moment == "running"} == {"s0", "s1", "s2"}
    assert set(PUBLICATION) <= {target.moment for target in targets}
    assert [target.step.position for target in targets] == sorted(target.step.position for target in targets)
    with pytest.raises(SystemExit, match="6 hit each stage and each point of publication once"):
        choose(STEPS, 5, seed=1)


def test_missing_key_other_hash_and_extra_file_are_differences():
    calm = {"a": {"x": "1", "y": "2"}, "b": {"x": "1"}}
    outcome = Outcome(calm, calm, [], ["s0"], [], (1.0, 2.0))
    assert outcome.differences == [] and outcome.not_hit == ["s0", *PUBLICATION]
    other = replace(outcome, stormy={"a": {"x": "9", "y": "2", "z": "3"}})
    assert other.differences == ["artifact b: only in one store", "a/x", "a/z"]
    assert [(row.ours, row.theirs) for row in rows_of(other)][:2] == [(1, 2), (1, 3)]


@pytest.mark.slow
def test_killed_chain_ends_in_the_same_keys_and_hashes(tmp_path):
    outcome = storm(lambda store: ["-m", "benchmarks.chaos_chain", "--store", str(store)], tmp_path, 8)
    assert outcome.differences == [] and outcome.left_behind == []
    assert len(outcome.calm) == 4 and {kill.landed for kill in outcome.kills} >= {"running", *PUBLICATION}
    assert all(kill.landed == kill.aimed for kill in outcome.kills if kill.aimed in PUBLICATION)
