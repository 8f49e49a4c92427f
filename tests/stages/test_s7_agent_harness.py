"""Stage 7 from demonstrations to results, on a model too small to learn: what is written, and that it repeats."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from noria.artifacts import StepContext
from noria.data.tokenizer import train_tokenizer
from noria.evals.tasks import demonstrate, generate
from noria.harness import load
from noria.harness.environments import lookup
from noria.harness.traces import Library
from noria.model import ModelConfig, Transformer, load_model, save_model
from noria.posttraining.task_set import write_demonstrations
from noria.stages import s7_agent_harness as s7
from noria.studio.traces.place import Given, Place, program_of

CONFIG = s7.Config(
    demonstrations=12,
    rehearsal=7,
    sft_epochs=1,
    sft_batch_tokens=256,
    train_tasks=8,
    rl_steps=2,
    rl_prompts=3,
    rl_group=2,
    heldout_tasks=4,
)
BOOTSTRAPPED = CONFIG.model_copy(update={"bootstrap": True})
UPSTREAM = SimpleNamespace(key="upstream")


def run(step, folder: Path, **inputs: Path) -> tuple[Path, dict]:
    content, observed, progress = (folder / step.name / name for name in ("content", "observed", "progress"))
    for made in (content, observed, progress):
        made.mkdir(parents=True)
    context = StepContext(
        config=step.config,
        inputs={role: SimpleNamespace(content=path) for role, path in inputs.items()},
        content=content,
        observed=observed,
        progress=progress,
        numerics=step.numerics,
    )
    return content, dict(step.run(context))


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return made_base(tmp_path_factory.mktemp("base"), context=256)


def made_base(folder: Path, context: int) -> Path:
    tokenizer = train_tokenizer(["find see value read list " + " ".join(lookup.WORDS)] * 10, 400)
    tokenizer.save(folder / "tok.json")
    shape = ModelConfig(
        vocab_size=tokenizer.vocab_size, width=32, layers=2, heads=2, kv_heads=1, ffn_width=64, context=context
    )
    save_model(folder, Transformer(shape), folder / "tok.json")
    for name, family in (("kept", "addition"), ("general", "helpful")):
        tasks = generate(family, 5, 0, "train")
        write_demonstrations(folder / f"{name}.jsonl", [(task, demonstrate(task)) for task in tasks])
    return folder


def chain(base: Path, folder: Path, config: s7.Config = CONFIG) -> dict[str, Path]:
    demonstrations = s7.agent_demonstrations(config, UPSTREAM)
    cold_start = s7.agent_cold_start(config, UPSTREAM, demonstrations, UPSTREAM, UPSTREAM)
    rl = s7.agent_rl(config, cold_start)
    evaluation = s7.agent_evaluation(config, {"cold_start": cold_start, "rl": rl})
    made = {"demonstrations": run(demonstrations, folder, tokenizer=base)[0]}
    rehearsed = {"rejection": base, "tasks": base}
    made["cold_start"] = run(cold_start, folder, model=base, demonstrations=made["demonstrations"], **rehearsed)[0]
    made["rl"] = run(rl, folder, model=made["cold_start"])[0]
    made["evaluation"] = run(evaluation, folder, cold_start=made["cold_start"], rl=made["rl"])[0]
    return made


@pytest.fixture(scope="module")
def first(base, tmp_path_factory):
    return chain(base, tmp_path_factory.mktemp("first"))


@pytest.mark.slow
def test_a_second_run_writes_the_same_bytes(base, first, tmp_path):
    second = chain(base, tmp_path)
    for name, content in first.items():
        files = sorted(path.relative_to(content) for path in content.rglob("*") if path.is_file())
        assert files == sorted(path.relative_to(second[name]) for path in second[name].rglob("*") if path.is_file())
        assert [path for path in files if (content / path).read_bytes() != (second[name] / path).read_bytes()] == []


@pytest.mark.slow
def test_demonstrations_are_graded_traces_of_real_tools(first):
    recorded = load(first["demonstrations"])
    assert len(recorded.traces) == 12 and all(score.status == "graded" for score in recorded.scores)
    assert {trace.outcome for trace in recorded.traces} == {"finished"}


@pytest.mark.slow
def test_training_changes_the_weights_and_keeps_a_history(base, first):
    weights = [load_model(path).embedding.weight for path in (base, first["cold_start"], first["rl"])]
    assert not weights[0].equal(weights[1])
    assert len(json.loads((first["rl"] / "history.json").read_text())) == 2


@pytest.mark.slow
def test_every_rollout_of_rl_is_kept_with_its_step_and_reward(first):
    folder = first["rl"].parent / "observed" / "traces"
    with Library(folder) as library:  # by the index that lies beside them
        rows = library.rows(limit=100)
    assert [row["step"] for row in rows] == [0] * 6 + [1] * 6
    assert all(row["status"] == "graded" and "outcome" in row["components"] for row in rows)
    assert sorted(path.name for path in folder.iterdir()) == ["index.sqlite", "traces.blocks"]
    rewards = [step["reward"] for step in json.loads((first["rl"] / "history.json").read_text())]
    kept = [[row["score"] for row in rows if row["step"] == step] for step in (0, 1)]
    assert rewards == pytest.approx([sum(scores) / 6 for scores in kept])


@pytest.mark.slow
def test_results_have_an_interval_for_each_model_and_split_and_a_difference(first):
    results = json.loads((first["evaluation"] / "results.json").read_text())
    for name in ("cold_start", "rl"):
        for split in s7.SPLITS:
            assert results["models"][name][split]["success"]["n"] == 4
            assert len(load(first["evaluation"] / name / split).traces) == 4
    assert [(row["model"], row["split"]) for row in results["differences"]] == [("rl", split) for split in s7.SPLITS]


@pytest.mark.slow
def test_with_the_bootstrap_every_trace_of_the_stage_opens_with_the_workspace(tmp_path):
    made = chain(made_base(tmp_path, context=1024), tmp_path, BOOTSTRAPPED)
    for folder in (made["demonstrations"], *(made["evaluation"] / "rl" / split for split in s7.SPLITS)):
        for trace in load(folder).traces:
            assert trace.harness.startswith("files+bootstrap@")
            first = trace.nodes[0].message
            assert first.role == "system" and "files in the workspace:" in first.content and "\n--- " in first.content
    heldout = made["evaluation"] / "rl" / "heldout"
    entry = load(heldout).entries()[0]
    place = Place(heldout, "heldout")
    program = program_of(entry, place, Given(), lookup.ENVIRONMENT)  # what `noria traces replay` plays it with
    assert program.label == entry.trace.harness and program.bootstrap


def test_the_bootstrap_is_off_by_default_and_then_no_part_of_a_key():
    off, on = (s7.agent_demonstrations(config, UPSTREAM) for config in (CONFIG, BOOTSTRAPPED))
    assert off.key != on.key and "bootstrap" not in str(off.canonical_config)
    assert on.canonical_config["program"] == "files+bootstrap"


def test_what_a_rollout_depends_on_is_identity():
    keys = {
        s7.agent_demonstrations(config, UPSTREAM).key
        for config in (CONFIG, CONFIG.model_copy(update={"turns": 6}), CONFIG.model_copy(update={"program": "plain"}))
    }
    assert len(keys) == 3
    assert (
        s7.agent_demonstrations(CONFIG, UPSTREAM).key
        == s7.agent_demonstrations(CONFIG.model_copy(update={"rl_steps": 9}), UPSTREAM).key
    )


def test_a_program_that_is_not_there_is_refused():
    with pytest.raises(ValidationError, match=r"one of .*files, memory"):
        s7.Config(program="nothing")
