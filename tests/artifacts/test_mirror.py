from __future__ import annotations

import fsspec
import pytest

from noria.artifacts import Executor, Store, StoreError
from noria.artifacts.mirror import pull, push


@pytest.fixture(params=["file", "memory"])
def url(request, tmp_path):
    if request.param == "file":
        yield f"file://{tmp_path / 'mirror'}"
    else:
        yield f"memory://{tmp_path.name}"
        fsspec.filesystem("memory").store.clear()


def test_artifact_goes_to_a_mirror_and_back_whole(store, chain, url, tmp_path):
    made = Executor(store).run(chain())
    assert push(store, made["model"].key, url, with_inputs=True) == [made[n].key for n in ("words", "counts", "model")]
    assert push(store, made["model"].key, url) == [], "what is there is not sent again"
    other = Store(tmp_path / "other")
    for artifact in made.values():
        copy = pull(other, artifact.key, url)
        assert {name: entry.hash for name, entry in copy.manifest.files.items()} == {
            name: entry.hash for name, entry in artifact.manifest.files.items()
        }
    assert [step.action for step in Executor(other).plan(chain()).steps] == ["reuse"] * 3


def test_upload_cut_off_is_no_artifact_and_is_completed(store, chain, url, monkeypatch, tmp_path):
    key = Executor(store).run(chain())["words"].key
    filesystem, _ = fsspec.core.url_to_fs(url)
    sent = []

    def cut_off(self, local, remote, *args, **kwargs):
        sent.append(remote)
        raise ConnectionError("cut off")

    with monkeypatch.context() as patch:
        patch.setattr(type(filesystem), "put_file", cut_off)
        with pytest.raises(StoreError, match=r"stopped half-way: .*cut off\. Nothing is lost"):
            push(store, key, url)
    assert not sent[0].endswith("manifest.json")
    with pytest.raises(StoreError, match="there is no artifact"):
        pull(Store(tmp_path / "other"), key, url)
    assert push(store, key, url) == [key]
    assert pull(Store(tmp_path / "other"), key, url).key == key


def test_damaged_copy_is_refused(store, chain, url, tmp_path):
    key = Executor(store).run(chain())["words"].key
    push(store, key, url)
    filesystem, root = fsspec.core.url_to_fs(url)
    filesystem.pipe_file(f"{root}/artifacts/{key}/content/part/words.txt", b"other")
    other = Store(tmp_path / "other")
    with pytest.raises(StoreError, match="holds a damaged copy"):
        pull(other, key, url)
    assert other.keys() == []


def test_unknown_protocol_is_refused(store, chain):
    key = Executor(store).run(chain())["words"].key
    with pytest.raises(StoreError, match="can't be used as a mirror"):
        push(store, key, "nosuch://x")
