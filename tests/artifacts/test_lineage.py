from __future__ import annotations

import json
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from pydantic import BaseModel

from noria.artifacts import Executor, Step, StoreError, Unknown
from noria.artifacts.gc import collect, held
from noria.artifacts.lineage import downstream, forget, marks, origins, quote, raw_records, upstream
from noria.cli import status_of
from noria.data.documents import DOCUMENT_SCHEMA
from noria.studio.show import as_tree


class Sources(BaseModel):
    sources: dict[str, int] = {}


def write_raw(context) -> Mapping:
    for source, count in context.config.sources.items():
        (context.content / f"{source}.jsonl").write_text("x\n" * count)
    (context.content / "sources.json").write_text(json.dumps({name: {} for name in context.config.sources}))
    return {"sources": len(context.config.sources)}


def write_documents(context) -> Mapping:
    folder = context.content / "documents"
    folder.mkdir()
    for source, count in context.config.sources.items():
        rows = [document(source, index) for index in range(count)]
        parquet.write_table(pa.Table.from_pylist(rows, DOCUMENT_SCHEMA), folder / f"{source}.parquet")
    return {}


def document(source: str, index: int) -> dict:
    place = {"file": f"{source}.jsonl", "offset": 2 * index, "length": 2}
    name = f"text of {source}-{index}"
    return {"id": f"{source}-{index}", "source": source, "licence": "MIT", "origin": place, "text": name, "signals": []}


def write_model(context) -> Mapping:
    (context.content / "model.json").write_text(json.dumps(sorted(context.inputs)))
    return {}


@pytest.fixture
def made(store):
    """Two corpora of one raw artifact: one with books and docs, one that rejected all books; a model of each."""
    raw = Step("raw", "s1", "raw_data", 1, Sources(sources={"books": 4, "docs": 3}), write_raw)
    both = Step("both", "s2", "corpus", 1, Sources(sources={"books": 2, "docs": 3}), write_documents, {"raw": raw})
    docs = Step("docs", "s2", "corpus", 1, Sources(sources={"books": 0, "docs": 3}), write_documents, {"raw": raw})
    model_of_both = Step("model_of_both", "s4", "model", 1, Sources(), write_model, {"corpus": both})
    model_of_docs = Step("model_of_docs", "s4", "model", 1, Sources(), write_model, {"corpus": docs})
    student = Step("student", "s8", "model", 1, Sources(), write_model, {"teacher": model_of_both, "corpus": docs})
    return Executor(store).run([raw, both, docs, model_of_both, model_of_docs, student])


def test_upstream_lists_each_ancestor_once_nearest_first(store, made):
    found = [(node.manifest.step, node.role, node.depth) for node in upstream(store, made["student"].key)]
    assert found == [("student", "", 0), ("docs", "corpus", 1), ("model_of_both", "teacher", 1), ("raw", "raw", 2),
                     ("both", "corpus", 2)]  # fmt: skip


def test_upstream_reaches_raw_files_and_record_offsets(store, made):
    found = raw_records(store, made["model_of_both"].key)
    assert [(row.source, row.file, row.documents, row.first_offset, row.last_offset) for row in found] == [
        ("books", "books.jsonl", 2, 0, 2),
        ("docs", "docs.jsonl", 3, 0, 4),
    ]
    assert {row.artifact for row in found} == {made["both"].key}
    assert {row.raw for row in found} == {made["raw"].key}, "where the files lie"


def test_document_is_traced_to_its_record(store, made):
    row = quote(store, made["student"].key, "books-1")
    assert (row.document, row.file, row.offset, row.length, row.licence, row.raw, row.text) == (
        *("books-1", "books.jsonl", 2, 2, "MIT"),
        *(made["raw"].key, "text of books-1"),
    )
    assert [row.document for row in origins(store, made["student"].key, source="docs", limit=2)] == ["docs-0", "docs-1"]
    with pytest.raises(Unknown, match="no document 'books-1'"):
        quote(store, made["model_of_docs"].key, "books-1")


def test_the_start_of_a_documents_id_will_do_if_only_one_fits(store, made):
    key = made["student"].key
    assert quote(store, key, "docs-2") == quote(store, key, "docs-2"[:6])
    with pytest.raises(Unknown, match=r"books- fits 2 documents, e\.g\. books-0, books-1"):
        quote(store, key, "books-")


@pytest.mark.parametrize("columns", ["80", "200"])
def test_the_command_leads_to_the_raw_artifact_and_the_text(store, made, capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    arguments = ["lineage", made["student"].key, "--store", str(store.root)]
    assert status_of(arguments) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[:3] == [
        f"student  model  {made['student'].key[:12]}",
        f"  corpus: docs  corpus  {made['docs'].key[:12]}",
        f"    raw: raw  raw_data  {made['raw'].key[:12]}",
    ]
    rows = [line.split() for line in out.splitlines()]
    assert [made["raw"].key[:12], *(["books"] if columns == "200" else []), "books.jsonl", "2", "0", "to", "2"] in rows
    assert status_of([*arguments, "--document", "docs-2"]) == 0
    out = capsys.readouterr().out
    assert "docs.jsonl, offset 4, 2 bytes" in out and out.endswith("text of docs-2\n")
    assert status_of([*arguments, "--document", "nothing"]) == 2


def test_example_records_are_of_different_sources_first(store, made):
    found = [row.document for row in origins(store, made["student"].key, limit=3)]
    assert found == ["books-0", "docs-0", "books-1"]


def test_the_tree_names_each_ancestor_below_one_that_was_made_from_it(store, made):
    nodes = as_tree(upstream(store, made["student"].key))
    assert [("  " * node.depth + node.manifest.step) for node in nodes] == [
        *("student", "  docs", "    raw", "  model_of_both", "    both"),
    ]
    depths = {node.manifest.key: node.depth for node in nodes}
    assert all(depths[node.parent] == node.depth - 1 for node in nodes if node.parent)


def test_downstream_lists_what_saw_a_source_and_every_release_of_it(store, made):
    store.move_alias("release/prod", made["model_of_both"].key, "first")
    store.move_alias("release/prod", made["model_of_docs"].key, "second")
    reached = downstream(store, "books")
    assert {manifest.step for manifest in reached.artifacts} == {"raw", "both", "model_of_both", "student"}
    assert [(move.name, move.reason) for move in reached.releases] == [("release/prod", "first")]


def test_unknown_source_is_refused_with_the_known_ones(store, made):
    with pytest.raises(StoreError, match=r"holds the source 'bokks'\. Sources here: books, docs"):
        downstream(store, "bokks")


def test_forgetting_marks_each_affected_artifact_once_and_deletes_nothing(store, made):
    keys = store.keys()
    forget(store, "source", "books", "licence withdrawn")
    forget(store, "source", "books", "again")
    assert sorted(mark.key for mark in marks(store)) == sorted(
        made[name].key for name in ("raw", "both", "model_of_both", "student")
    )
    assert {mark.reason for mark in marks(store)} == {"licence withdrawn"}
    assert store.keys() == keys


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_user_is_found_in_traffic_and_what_was_made_from_it(store, tmp_path, suffix):
    path = tmp_path / f"log.{suffix}"
    if suffix == "jsonl":
        path.write_text('{"user": "ann", "text": "hi"}\n{"user": "bob"}\n')
    else:
        parquet.write_table(pa.table({"user": ["ann", "bob"]}), path)
    traffic = store.import_content("traffic", path)
    step = Step("sft", "s5", "model", 1, Sources(), write_model, {"traffic": traffic})
    Executor(store).run([step])
    assert {manifest.step for manifest in downstream(store, "ann", "user").artifacts} == {"traffic", "sft"}
    with pytest.raises(StoreError, match="holds the user 'eve'"):
        forget(store, "user", "eve")


def test_gc_shows_first_and_frees_only_what_no_alias_or_run_needs(store, chain):
    old = Executor(store, "nano").run(chain(learning_rate=0.1))
    released = Executor(store, "nano").run(chain(learning_rate=0.2))["model"]
    store.move_alias("release/prod", released.key, "verdict")
    now = Executor(store, "nano").run(chain(learning_rate=0.3))
    assert [garbage.name for garbage in collect(store)] == [old["model"].key]
    assert store.get(old["model"].key), "showing frees nothing"
    collect(store, apply=True)
    assert sorted(store.keys()) == sorted({released.key, *(artifact.key for artifact in now.values())})
    assert collect(store) == [] and not store.trash.exists()


def test_gc_keeps_what_the_recipe_reuses_after_a_run_of_one_stage_and_a_failed_one(store, chain):
    def fails(context):
        raise RuntimeError("stop")

    whole = Executor(store, "nano").run(chain())
    Executor(store, "nano").run(chain(seed=7)[:1], whole=False)  # --only, with another --set
    with pytest.raises(StoreError):
        Executor(store, "nano").run(chain(seed=8, run=fails))  # a mistyped --set
    Executor(store, "nano").run(chain()[:1], whole=False)
    collect(store, apply=True)
    assert {artifact.key for artifact in whole.values()} <= set(store.keys())
    assert {step.action for step in Executor(store, "nano").plan(chain()).steps} == {"reuse"}


def test_gc_keeps_what_was_made_stage_by_stage(store, chain):
    for position in range(3):
        Executor(store, "nano").run(chain()[position : position + 1], whole=False)
    assert collect(store) == []


def test_gc_frees_what_partial_runs_tried_before_the_last_whole_run(store, chain):
    tried = Executor(store, "nano").run(chain(seed=7)[:2], whole=False)
    Executor(store, "nano").run(chain())
    assert {garbage.name for garbage in collect(store)} == {artifact.key for artifact in tried.values()}


def test_gc_keeps_outside_content_unless_it_is_to_be_forgotten(store, tmp_path):
    (tmp_path / "log.jsonl").write_text('{"user": "ann"}\n')
    traffic = store.import_content("traffic", tmp_path / "log.jsonl")
    assert collect(store) == []
    forget(store, "user", "ann")
    assert [garbage.name for garbage in collect(store)] == [traffic.key]


def test_gc_frees_forgotten_traffic_once_its_alias_points_elsewhere(store, tmp_path):
    traffic = {}
    for name, users in {"old": ["ann", "bob"], "new": ["bob"]}.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(f'{{"user": "{user}"}}\n' for user in users))
        traffic[name] = store.import_content("traffic", path)
    store.move_alias("traffic/turn1", traffic["old"].key, "imported")
    forget(store, "user", "ann")
    assert collect(store) == []
    assert [(item.key, item.marks, item.by) for item in held(store)] == [
        (traffic["old"].key, ("user ann",), ("alias traffic/turn1",))
    ]
    store.move_alias("traffic/turn1", traffic["new"].key, "imported again")
    assert [garbage.name for garbage in collect(store)] == [traffic["old"].key] and held(store) == []


def test_gc_names_the_release_and_the_run_that_hold_what_is_marked(store, made):
    store.move_alias("release/prod", made["student"].key, "first")
    forget(store, "source", "books")
    by = {item.step: item.by for item in held(store)}
    assert set(by) == {"raw", "both", "model_of_both", "student"}
    assert set(by.values()) == {("alias release/prod", "run run")}


def test_gc_keeps_progress_that_the_next_run_resumes_and_frees_what_was_abandoned(store, chain):
    def fails(context):
        (context.progress / "half").write_text("x" * 1000)
        raise RuntimeError("stop")

    for rate in (0.1, 0.2):
        with pytest.raises(StoreError):
            Executor(store).run(chain(learning_rate=rate, run=fails))
    assert [(garbage.what, garbage.name) for garbage in collect(store)] == [("work", chain(learning_rate=0.1)[-1].key)]


def test_gc_refuses_during_a_run_and_beside_an_unreadable_manifest(store, chain):
    made = Executor(store).run(chain())
    with store.in_use(), pytest.raises(StoreError, match="in use"):
        collect(store, apply=True)
    (made["words"].path / "manifest.json").write_text("{")
    with pytest.raises(StoreError, match="nothing is freed while a manifest can't be read"):
        collect(store, apply=True)
