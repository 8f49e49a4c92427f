from __future__ import annotations

import json
import os

import pytest

from noria.artifacts import Damaged, Executor, Store, StoreError
from noria.artifacts.files import tree_size


@pytest.fixture
def made(store, chain):
    return Executor(store).run(chain())


def snapshot(store):
    return {str(path): path.read_bytes() for path in store.artifacts.rglob("*") if path.is_file()}


def test_reading_a_store_that_is_not_there_creates_nothing(tmp_path):
    store = Store(tmp_path / "none")
    assert store.get("0" * 32) is None and store.keys() == [] and store.alias("release/prod") is None
    assert not store.root.exists()


def test_default_root_is_the_environments_or_beside_the_caller(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NORIA_STORE", raising=False)
    assert Store().root == tmp_path / "store"
    monkeypatch.setenv("NORIA_STORE", str(tmp_path / "other"))
    assert Store().root == tmp_path / "other"


def test_changed_byte_of_equal_size_is_found_by_its_time_and_by_verify_without_it(store, made):
    artifact = made["counts"]
    path = artifact.content / "counts.json"
    status, text = path.stat(), path.read_text()
    path.write_text(text.replace("2", "3", 1))
    os.utime(path, ns=(0, 0))
    with pytest.raises(Damaged, match="its hash is not the published one"):
        store.get(artifact.key)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(Damaged, match="its hash is not the published one"):
        store.verify(artifact.key)


def test_copied_store_with_other_times_is_hashed_once(store, made, monkeypatch):
    artifact = made["counts"]
    os.utime(artifact.content / "counts.json", ns=(1, 1))
    assert store.get(artifact.key)
    monkeypatch.setattr("noria.artifacts.manifest.file_hash", lambda path: pytest.fail("hashed again"))
    assert store.get(artifact.key)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / "content" / "counts.json").unlink(), "a file is missing"),
        (lambda path: (path / "content" / "more").touch(), "a file was added"),
        (lambda path: (path / "manifest.json").unlink(), "it has no manifest"),
        (lambda path: (path / "manifest.json").write_text("{"), "its manifest can't be read"),
        (lambda path: (path / "manifest.json").write_bytes(b"\xff\xfe"), "its manifest can't be read"),
        (lambda path: (path / "manifest.json").write_text("[]"), "its manifest can't be read"),
        (
            lambda path: (path / "manifest.json").write_text(
                (path / "manifest.json").read_text().replace('"words": 20', '"words": 21')
            ),
            "its checksum does not fit its text",
        ),
    ],
)
def test_damage_is_named_and_nothing_is_lost(store, made, damage, message):
    artifact = made["counts"]
    damage(artifact.path)
    before = snapshot(store)
    with pytest.raises(Damaged, match=message) as error:
        store.get(artifact.key)
    assert artifact.key in str(error.value) and "--repair" in str(error.value)
    assert snapshot(store) == before


def test_newer_schemas_are_refused_and_nothing_is_changed(store, made):
    path = made["counts"].path / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 99}))
    before = snapshot(store)
    with pytest.raises(StoreError, match="schema 99, made by a newer noria; this one reads up to 1") as error:
        store.get(made["counts"].key)
    assert not isinstance(error.value, Damaged), "a newer artifact is whole: it must not be repaired away"
    (store.root / "store.json").write_text('{"schema": 99}')
    with pytest.raises(StoreError, match="made by a newer noria"):
        Store(store.root)
    assert snapshot(store) == before


@pytest.mark.parametrize("root", ["file/store", "file"])
def test_unwritable_store_is_refused_with_advice(tmp_path, chain, root):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"Choose another folder with --store"):
        Executor(Store(tmp_path / root)).run(chain())


def test_key_prefix_step_name_and_alias_all_resolve(store, made):
    key = made["model"].key
    store.move_alias("release/prod", key, "first")
    assert {store.resolve(name) for name in (key, key[:8], "model", "release/prod")} == {key}
    with pytest.raises(StoreError, match=r"'nonsense' is no artifact, alias or step.*Aliases here: release/prod"):
        store.resolve("nonsense")


def test_import_is_keyed_by_content_not_by_place_or_time(store, tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder / "deep").mkdir(parents=True)
        (tmp_path / folder / "deep" / "log.jsonl").write_text('{"user": "ann"}\n')
    first = store.import_content("traffic", tmp_path / "one", {"turn": 1})
    assert store.import_content("traffic", tmp_path / "two", {"turn": 1}).key == first.key
    assert (first.content / "deep" / "log.jsonl").read_text() == '{"user": "ann"}\n'
    assert store.verify(first.key).manifest.outside
    others = [
        store.import_content("traffic", tmp_path / "one", {"turn": 2}),
        store.import_content("feedback", tmp_path / "one", {"turn": 1}),
        store.import_content("traffic", {"log.jsonl": tmp_path / "one" / "deep" / "log.jsonl"}, {"turn": 1}),
        store.import_content("traffic", tmp_path / "one", {"turn": 1}, inputs={"release": first.key}),
    ]
    assert len({first.key, *(other.key for other in others)}) == 5
    with pytest.raises(StoreError, match="does not exist; nothing was imported"):
        store.import_content("traffic", tmp_path / "three")


def test_alias_history_is_appended_and_a_promotion_happens_once_for_ever(store, made):
    old, new = made["words"].key, made["model"].key
    store.move_alias("release/prod", old, "first release")
    assert store.promote_once("release/prod", "verdict-1", new)
    store.move_alias("release/prod", old, "rollback: users complain")
    assert not store.promote_once("release/prod", "verdict-1", new), "a rerun must not undo a rollback"
    artifact = store.alias("release/prod")
    assert artifact is not None and artifact.key == old
    assert [move.key for move in store.aliases.history("release/prod")] == [old, new, old]
    with pytest.raises(StoreError, match="there is no artifact"):
        store.move_alias("release/prod", "0" * 32, "typo")
    with pytest.raises(StoreError, match="is no alias name"):
        store.move_alias("../escape", old, "")


def test_line_cut_off_by_a_crash_is_ignored_then_overwritten(store, made):
    key = made["model"].key
    store.move_alias("release/prod", key, "first")
    with (store.aliases.folder / "release" / "prod.jsonl").open("a") as file:
        file.write('{"name": "release/pr')
    assert store.aliases.current("release/prod") == key
    store.move_alias("release/prod", made["words"].key, "second")
    assert len(store.aliases.history("release/prod")) == 2


def test_set_aside_keeps_every_byte(store, made):
    size = tree_size(made["model"].path)
    aside = store.set_aside(made["model"].key)
    assert store.get(made["model"].key) is None and tree_size(aside) == size
