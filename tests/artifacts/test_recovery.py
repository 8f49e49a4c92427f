"""What a kill -9 leaves behind, built by hand: each of these states must end in the same artifact."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from noria.artifacts import Executor
from noria.artifacts.files import sweep
from noria.artifacts.locks import Busy, hold
from noria.artifacts.manifest import MANIFEST


@pytest.fixture
def published(store, chain):
    """The chain's words, published; returns (key, work folder, move it back to how it was before the rename)."""
    step = chain()[0]
    Executor(store).run([step])
    work = store.work(step.key, step.code)

    def unpublish():
        work.progress.mkdir(parents=True)
        (store.artifacts / step.key).rename(work.staging)

    return step, work, unpublish


def test_killed_before_the_manifest_the_step_runs_again_from_empty_content(store, published):
    step, work, unpublish = published
    unpublish()
    (work.staging / MANIFEST).unlink()
    (work.staging / "content" / "stray").touch()
    assert list(Executor(store).run([step])["words"].manifest.files) == ["part/words.txt"]


def test_killed_before_the_rename_it_is_published_without_running_again(store, published, monkeypatch):
    step, work, unpublish = published
    unpublish()
    object.__setattr__(step, "run", lambda context: pytest.fail("ran again"))
    assert store.verify(Executor(store).run([step])["words"].key)
    assert not work.folder.parent.exists()


def test_torn_file_before_the_rename_is_never_published(store, published):
    step, work, unpublish = published
    unpublish()
    (work.staging / "content" / "part" / "words.txt").write_text("torn")
    assert store.verify(Executor(store).run([step])["words"].key)
    assert "never published" in store.runs.events(store.runs.runs()[-1]["run"])[0]["message"]


def test_killed_before_clean_up_the_leftover_goes(store, published):
    step, work, _ = published
    shutil.copytree(store.artifacts / step.key, work.staging)
    Executor(store).run([step])
    assert not work.folder.parent.exists()


def test_killed_run_is_recorded_as_killed_by_the_next(store, chain, monkeypatch):
    Executor(store).run(chain()[:1])
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: 2**31)  # of no process
        number = store.runs.start_run("run", {})
    store.runs.start_step(number, "counts", 1, "s2_data", chain()[1].key, "running", "never made")
    Executor(store).run(chain())
    assert [row["status"] for row in store.runs.runs()] == ["made", "killed", "made"]
    assert store.runs.steps(number)[0]["status"] == "killed"


def test_lock_is_not_kept_by_a_forked_worker_that_outlives_its_parent(tmp_path):
    (born, tell_born), (end, tell_end) = os.pipe(), os.pipe()
    with hold(tmp_path / "lock"):
        child = os.fork()
        if child == 0:  # lives on until the parent, having let go, has taken the lock again
            os.write(tell_born, b"x")
            os.close(tell_end)
            os.read(end, 1)
            os._exit(0)
        os.read(born, 1)
    with hold(tmp_path / "lock", wait=False), pytest.raises(Busy, match=f"in use by process {os.getpid()}"):
        with hold(tmp_path / "lock", wait=False):
            pass
    os.close(tell_end)
    os.waitpid(child, 0)
    for pipe in (born, tell_born, end):
        os.close(pipe)


def test_importing_the_room_loads_no_heavy_package():
    code = (
        "import sys, noria.artifacts; print([n for n in ('torch', 'pyarrow', 'scipy', 'fsspec') if n in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_the_next_run_sweeps_what_a_killed_process_was_deleting(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    trash = tmp_path / "trash"
    for process in (dead.pid, os.getpid()):
        (trash / f"key.{process}.0a").mkdir(parents=True)
    sweep(trash)
    assert [path.name for path in trash.iterdir()] == [f"key.{os.getpid()}.0a"]
