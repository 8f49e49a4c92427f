from __future__ import annotations

import errno
import json
import threading

import pytest

from noria.artifacts import Damaged, Executor, Interrupted, Progress, Step, StepFailed, Store, StoreError


def statuses(store):
    return [(row["step_name"], row["status"]) for row in store.runs.steps(store.runs.runs()[-1]["run"])]


def test_first_run_makes_every_step_and_second_run_makes_none(store, chain):
    first = Executor(store).run(chain())
    assert statuses(store) == [("words", "made"), ("counts", "made"), ("model", "made")]
    second = Executor(store).run(chain())
    assert statuses(store) == [("words", "reused"), ("counts", "reused"), ("model", "reused")]
    assert {name: made.key for name, made in first.items()} == {name: made.key for name, made in second.items()}


def test_unchanged_run_hashes_no_file(store, chain, monkeypatch):
    Executor(store).run(chain())
    monkeypatch.setattr("noria.artifacts.manifest.file_hash", lambda path: pytest.fail(f"hashed {path}"))
    Executor(store).run(chain())


def test_artifact_holds_content_observed_manifest_and_nothing_else(store, chain):
    made = Executor(store).run(chain())["words"]
    assert sorted(path.name for path in made.path.iterdir()) == ["content", "manifest.json", "observed"]
    assert list(made.manifest.files) == ["part/words.txt"]
    assert made.metrics == {"words": 20}
    assert made.manifest.stage == "s1_raw_data" and made.manifest.environment["python"]
    assert not any((store.root / "work").iterdir())


def test_observed_files_take_no_part_in_verification(store, chain):
    made = Executor(store).run(chain())["words"]
    (made.observed / "clock.txt").write_text("later")
    assert store.verify(made.key).key == made.key


def test_failed_step_keeps_its_progress_and_the_rerun_continues_from_it(store, chain):
    seen: list[int] = []

    def flaky(context):
        saved = context.progress / "count"
        count = int(saved.read_text()) if saved.exists() else 0
        seen.append(count)
        assert not any(context.content.iterdir()), "content must be empty at each start"
        saved.write_text(str(count + 1))
        (context.content / "half").write_text("x")
        if count == 0:
            raise ValueError("the optimiser diverged")
        return {"count": count}

    with pytest.raises(StepFailed, match=r"step model failed: ValueError: the optimiser diverged") as failure:
        Executor(store).run(chain(run=flaky))
    assert isinstance(failure.value.__cause__, ValueError)
    assert statuses(store)[-1] == ("model", "failed")
    assert Executor(store).plan(chain(run=flaky)).steps[-1].action == "resume"
    assert Executor(store).run(chain(run=flaky))["model"].metrics == {"count": 1}
    assert seen == [0, 1]
    kinds = [event["kind"] for row in store.runs.runs() for event in store.runs.events(row["run"])]
    assert kinds == ["failed", "resume"]


def test_progress_of_other_code_is_not_continued_and_comes_back_with_that_code(store, chain, monkeypatch):
    starts: list[list[str]] = []

    def step(context):
        starts.append([path.name for path in context.progress.iterdir()])
        (context.progress / f"by-{len(starts)}").touch()
        if len(starts) < 3:
            raise RuntimeError("stop")
        return {}

    monkeypatch.setattr(Step, "code", "code-a")
    with pytest.raises(StepFailed):
        Executor(store).run(chain(run=step))
    monkeypatch.setattr(Step, "code", "code-b")
    messages: list[Progress] = []
    with pytest.raises(StepFailed):
        Executor(store, on_progress=messages.append).run(chain(run=step))
    assert any("made by other code, so it starts afresh" in progress.message for progress in messages)
    monkeypatch.setattr(Step, "code", "code-a")
    Executor(store).run(chain(run=step))
    assert starts == [[], [], ["by-1"]]


def test_ctrl_c_stops_cleanly_names_the_step_and_frees_the_lock(store, chain):
    def stopped(context):
        (context.progress / "kept").touch()
        raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="stopped in step model; run the same command again") as stop:
        Executor(store).run(chain(run=stopped))
    assert stop.value.step_name == "model"
    assert statuses(store)[-1] == ("model", "interrupted")
    assert store.runs.runs()[-1]["status"] == "interrupted"
    with store.lock(chain()[-1].key, wait=False):
        assert Executor(store).plan(chain(run=stopped)).steps[-1].action == "resume"


def test_two_runs_of_one_key_one_works_the_other_waits(tmp_path, chain):
    working, let_go, calls = threading.Event(), threading.Event(), []

    def slow(context):
        calls.append(1)
        working.set()
        assert let_go.wait(20)
        return {}

    heard: list[Progress] = []

    def listen(progress: Progress) -> None:
        heard.append(progress)
        if progress.status == "waiting":
            let_go.set()

    first = threading.Thread(target=lambda: Executor(Store(tmp_path / "store")).run(chain(run=slow)))
    first.start()
    assert working.wait(20)
    Executor(Store(tmp_path / "store"), on_progress=listen).run(chain(run=slow))
    first.join()
    assert calls == [1]
    assert [progress.status for progress in heard if progress.step_name == "model"] == ["waiting", "reused"]
    assert "process" in next(progress.message for progress in heard if progress.status == "waiting")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "/x/model.bin"),
        RuntimeError("SafetensorError: I/O error: No space left on device (os error 28)"),
    ],
)
def test_full_disk_in_a_step_is_said_so_and_loses_nothing(store, chain, error):
    def full(context):
        (context.progress / "kept").touch()
        try:
            raise error
        except (OSError, RuntimeError) as cause:
            raise ValueError("could not save") from cause

    with pytest.raises(StepFailed, match=r"the disk is full\. Free space") as failure:
        Executor(store).run(chain(run=full))
    assert "run the same command again" in str(failure.value)
    assert len(store.keys()) == 2
    assert Executor(store).plan(chain(run=full)).steps[-1].action == "resume"


def test_full_disk_during_publication_is_said_so_and_the_rerun_publishes(store, chain, monkeypatch):
    def full(folder):
        raise OSError(errno.ENOSPC, "No space left on device", str(folder))

    with monkeypatch.context() as patch:
        patch.setattr("noria.artifacts.work.sync_tree", full)
        with pytest.raises(StoreError, match="the disk is full"):
            Executor(store).run(chain())
    assert store.keys() == []
    assert len(Executor(store).run(chain())) == 3


def test_damaged_artifact_is_refused_before_any_work_and_made_anew_only_when_told(store, chain):
    made = Executor(store).run(chain())
    path = made["counts"].content / "counts.json"
    path.write_text(path.read_text() + " ")
    with pytest.raises(Damaged, match=r"a file changed: \d+ bytes, published with \d+ .*--repair"):
        Executor(store).run(chain(learning_rate=0.5))
    assert path.exists()
    assert Executor(store).plan(chain()).problems
    again = Executor(store, repair=True).run(chain())
    assert again["counts"].key == made["counts"].key
    assert [folder.name[:32] for folder in store.damaged.iterdir()] == [made["counts"].key]


def test_strict_code_refuses_what_other_code_made(store, chain, monkeypatch):
    Executor(store).run(chain())
    monkeypatch.setattr(Step, "code", "other")
    plan = Executor(store).plan(chain())
    assert [step.code_changed for step in plan.steps] == [True, True, True]
    assert plan.to_run == (), "a change of code alone reruns nothing"
    with pytest.raises(StoreError, match="--strict-code: other code made words, counts, model"):
        Executor(store, strict_code=True).run(chain())


def test_step_without_its_inputs_says_what_to_do(store, chain):
    with pytest.raises(StoreError, match=r"step counts needs words \(as words\), which was not made yet"):
        Executor(store).run(chain()[1:])


def test_steps_of_one_run_need_different_names(store, chain):
    with pytest.raises(StoreError, match="two steps of one run have the same name: words"):
        Executor(store).plan([*chain(), chain()[0]])


def test_observer_gets_rate_and_time_left(store, chain):
    heard: list[Progress] = []
    Executor(store, on_progress=heard.append).run(chain())
    reports = [progress for progress in heard if progress.status == "running" and progress.done > 1]
    assert [progress.done for progress in reports] == [2, 3, 4, 5]
    assert all(progress.rate and progress.seconds_left is not None for progress in reports)
    assert reports[-1].seconds_left == 0 and reports[-1].unit == "steps"


def test_metrics_that_json_has_no_word_for_become_null_and_array_scalars_numbers(store, chain):
    import numpy

    def step(context):
        return {"loss": float("nan"), "accuracy": numpy.float32(0.5), "count": numpy.int64(3)}

    assert Executor(store).run(chain(run=step))["model"].metrics == {"loss": None, "accuracy": 0.5, "count": 3}
    assert json.loads((store.artifacts / chain()[-1].key / "manifest.json").read_text())["metrics"]["loss"] is None


def test_links_are_refused_in_content(store, chain):
    def step(context):
        (context.content / "link").symlink_to("/etc/hostname")
        return {}

    with pytest.raises(StoreError, match="is a link; an artifact holds files only"):
        Executor(store).run(chain(run=step))
