"""Stages 1 and 2 on a small corpus of real files of all kinds, some of them broken."""

from __future__ import annotations

import hashlib
import json
import random
import re
import tarfile
from io import BytesIO
from pathlib import Path
from pkgutil import resolve_name
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from noria.artifacts import StepContext
from noria.data import corpus as corpus_room
from noria.data.clean import read_record
from noria.data.documents import DOCUMENT_SCHEMA
from noria.data.shards import TokenStream, heldout_rows
from noria.data.tokenizer import Tokenizer
from noria.stages import s1_raw_data as s1
from noria.stages import s2_data_engineering as s2
from noria.types import GraderRef, Message, Task, digest, task_to_json

NOUNS = "river wheel field mill road bridge village garden market harbour forest valley tower kitchen".split()
VERBS = "turns lifts crosses feeds holds follows reaches fills carries joins passes opens guards leaves".split()
SECRET = "A ferryman rows nineteen barrels over the wide lake at dawn and loses four in the reeds; count the rest."


def prose(seed: int, sentences: int = 12) -> str:
    draw = random.Random(seed)
    parts = [
        f"The {draw.choice(NOUNS)} {draw.choice(VERBS)} the {draw.choice(NOUNS)} and it is {draw.choice(NOUNS)} number "
        f"{draw.randrange(1000)} that {draw.choice(VERBS)} with the {draw.choice(NOUNS)} of {draw.choice(NOUNS)}."
        for _ in range(sentences)
    ]
    return " ".join(parts)


def archive(path: Path, members: dict[str, bytes]) -> dict[str, str]:
    with tarfile.open(path, "w:gz") as file:
        for name, raw in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            file.addfile(info, BytesIO(raw))
    return {"path": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def page(text: str) -> bytes:
    return f"<html><body><nav>Home</nav><main><h1>Page</h1><p>{text}</p></main></body></html>".encode()


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("archives")
    pages = {f"site/{n:02d}.html": page(prose(n)) for n in range(12)}
    pages |= {"site/copy.html": page(prose(3) + " One more."), "site/planted.html": page(f"{prose(50)} {SECRET}")}
    pages |= {"site/empty.html": b"", "site/huge.html": page(prose(60) * 300), "site/plain.html": b"not a page"}
    docs = {f"docs/{n}.md": f"# Title\n\n{prose(100 + n)}".encode() for n in range(8)}
    docs |= {
        "docs/bad.md": b"caf\xe9 " * 20,
        "docs/fr.md": ("La rivière tourne la roue et la roue lève l'eau. " * 9).encode(),
    }
    code = {
        f"code/{n}.py": f"# Copyright me\n\ndef f{n}(x):\n    return {prose(200 + n, 2)!r}\n".encode() for n in range(6)
    }
    verses = [{"book": "B", "chapter": c, "text": prose(300 + c * 9 + v, 1)} for c in range(6) for v in range(4)]
    talk = "conversations:\n" + "".join(f"- - {prose(400 + n, 1)}\n  - {prose(500 + n, 1)}\n" for n in range(6))
    sources = [
        {"name": "site", "kind": "crawl", "format": "html", **archive(folder / "site.tar.gz", pages)},
        {"name": "docs", "kind": "docs", "format": "markdown", **archive(folder / "docs.tar.gz", docs)},
        {"name": "code", "kind": "code", "format": "python", **archive(folder / "code.tar.gz", code)},
        {"name": "book", "kind": "books", "format": "verses"}
        | archive(folder / "book.tar.gz", {"v.jsonl": "\n".join(map(json.dumps, verses)).encode() + b"\n{broken"}),
        {"name": "talk", "kind": "forums", "format": "dialogues", "language": "en"}
        | archive(folder / "talk.tar.gz", {"t.yml": talk.encode(), "bad.yml": b"a: ["}),
    ]
    declared = {"code": "python"}
    rows = [{"licence": "MIT", "language": declared.get(row["name"], ""), **row} for row in sources]
    synthetic = {"families": {"addition": 40, "boolean": 40}}
    return s1.Config(licences=("MIT", "Apache-2.0"), sources=rows, synthetic=synthetic, most_record_bytes=60_000)


def context(step, inputs, folder: Path) -> StepContext:
    for name in ("content", "observed", "progress"):
        (folder / name).mkdir(parents=True)
    return StepContext(step.config, inputs, folder / "content", folder / "observed", folder / "progress")


def made(folder: Path) -> SimpleNamespace:
    return SimpleNamespace(content=folder / "content", observed=folder / "observed")


DATA = s2.Config(
    corpus=s2.CorpusConfig(languages=("en",)),
    tokenizer=s2.TokenizerConfig(vocab_size=400, sample_bytes=50_000),
    shards=s2.ShardsConfig(train_tokens=8_000, heldout_tokens=500, heldout_fraction=0.2),
)


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    """All four artifacts, made once."""
    root = tmp_path_factory.mktemp("run")
    raw = s1.raw_data(config)
    metrics = {"raw": raw.run(context(raw, {}, root / "raw"))}
    registry = root / "registry" / "content"
    registry.mkdir(parents=True)
    task = Task("secret", (Message("user", SECRET),), GraderRef("maths", "1"), "15", "bench", "maths")
    (registry / "tasks.jsonl").write_text(task_to_json(task) + "\n")
    inputs = {"raw_data": made(root / "raw"), "registry": made(root / "registry")}
    corpus = s2.corpus(DATA, raw, raw)
    metrics["corpus"] = corpus.run(context(corpus, inputs, root / "corpus"))
    tokenizer = s2.tokenizer(DATA, corpus)
    tokenizer.run(context(tokenizer, {"corpus": made(root / "corpus")}, root / "tokenizer"))
    shards = s2.shards(DATA, corpus, tokenizer)
    both = {"corpus": made(root / "corpus"), "tokenizer": made(root / "tokenizer")}
    metrics["shards"] = shards.run(context(shards, both, root / "shards"))
    return SimpleNamespace(root=root, metrics=metrics, tasks=[task])


def rejects(run, source: str) -> dict[str, str]:
    table = pq.read_table(run.root / "corpus/content/rejects" / f"{source}.parquet").to_pylist()
    return {row["step"]: row["reason"] for row in table}


def test_bad_members_are_set_aside_with_their_reason(run):
    broken = pq.read_table(run.root / "raw/content/rejects.parquet").to_pylist()
    reasons = {row["name"].rsplit("/", 1)[-1]: row["reason"] for row in broken}
    assert reasons["empty.html"] == "empty"
    assert reasons["huge.html"] == "over 60000 bytes"
    assert reasons["book.jsonl:25"].startswith("not a JSON object")
    assert reasons["bad.yml"].startswith("not YAML")
    assert run.metrics["raw"]["set_aside"] == len(broken) == 4


def test_every_document_leads_back_to_its_raw_bytes(run):
    raw = run.root / "raw/content"
    formats = {name: source["format"] for name, source in s1.read_sources(raw).items()}
    count = 0
    for path in sorted((run.root / "corpus/content/documents").glob("*.parquet")):
        for row in pq.read_table(path).to_pylist():
            origin = row["origin"]
            found = read_record(raw / origin["file"], origin["offset"], origin["length"], formats[row["source"]])
            assert digest(row["source"], found) == row["id"]
            assert row["content_hash"] == digest(row["text"])
            assert row["licence"] in ("MIT", "Apache-2.0")
            count += 1
    assert count == run.metrics["corpus"]["documents"] > 60


def test_each_bad_document_is_rejected_where_it_should_be(run):
    assert rejects(run, "site")["extract"] == "not HTML"
    assert rejects(run, "site")["near"].startswith("near duplicate of ")
    assert rejects(run, "site")["decontaminate"].startswith("bench task secret")
    assert rejects(run, "docs")["extract"] == "not UTF-8 at byte 3"
    assert rejects(run, "docs")["language"] == "language not wanted"
    report = json.loads((run.root / "corpus/content/contamination.json").read_text())
    assert report["benchmarks"]["bench"] == {"tasks": 1, "found": 1, "documents": 1, "too_short_to_probe": 0}


def test_funnel_is_continuous_and_accounts_for_every_document(run):
    rows = json.loads((run.root / "corpus/content/funnel.json").read_text())
    steps = list(dict.fromkeys(row["step"] for row in rows))
    assert steps == list(corpus_room.STEPS)
    for source in ("site", "docs", "book", "synthetic_addition"):
        out = None
        for step in steps:
            chosen = [row for row in rows if row["step"] == step and row["source"] == source]
            assert out is None or sum(row["docs_in"] for row in chosen) == out
            out = sum(row["docs_out"] for row in chosen)
            assert all(row["bytes_out"] <= row["bytes_in"] or step == "pii" for row in chosen)
        assert pq.read_metadata(run.root / "corpus/content/documents" / f"{source}.parquet").num_rows == out


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): digest(path.read_bytes()) for path in files}


def rebuild(run, raw: Path, out: Path, workers: int) -> dict[str, str]:
    config = DATA.corpus
    whole = corpus_room.WholeRules(
        config.near_kinds,
        config.near_similarity,
        config.kind_priority,
        config.line_kinds,
        config.most_line_documents,
        config.contamination_score,
    )
    out.mkdir()
    corpus_room.build_corpus(raw, out, run.tasks, config.rules(), whole, lambda *args: None, None, workers)
    return hashes(out)


def test_order_of_the_records_changes_nothing(run, tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    for name in ("files", "sources.json"):
        (raw / name).symlink_to(run.root / "raw/content" / name)
    index = pq.read_table(run.root / "raw/content/index.parquet")
    order = list(range(len(index)))
    random.Random(1).shuffle(order)
    pq.write_table(index.take(order), raw / "index.parquet")
    assert rebuild(run, raw, tmp_path / "again", workers=1) == hashes(run.root / "corpus/content")


@pytest.mark.slow
def test_number_of_workers_changes_nothing(run, tmp_path):
    again = rebuild(run, run.root / "raw/content", tmp_path / "again", workers=2)
    assert again == hashes(run.root / "corpus/content")


def test_raw_bytes_are_equal_when_made_again(run, config, tmp_path):
    step = s1.raw_data(config)
    step.run(context(step, {}, tmp_path / "raw"))
    assert hashes(tmp_path / "raw/content") == hashes(run.root / "raw/content")


def test_shards_hold_the_texts_and_stream(run):
    folder = run.root / "shards/content"
    facts = json.loads((folder / "shards.json").read_text())
    assert sum(facts["weights"].values()) == pytest.approx(1)
    tokenizer = Tokenizer.load(run.root / "tokenizer/content/tokenizer.json")
    stream = TokenStream(folder, facts["weights"], 32, 4, seed=0)
    first = stream.sets[0]
    text = tokenizer.decode(first.tokens[: int(first.ends[0])])
    document = first.documents.to_pylist()[0]
    corpus = pq.read_table(run.root / "corpus/content/documents" / f"{document['source']}.parquet").to_pylist()
    assert text == next(row["text"] for row in corpus if row["id"] == document["id"])
    tokens, segments = stream.batch(0)
    assert tokens.shape == segments.shape == (4, 33)
    assert tokens.max() < tokenizer.vocab_size
    rows, bytes_per_token = heldout_rows(folder, "site", 32, 4)
    assert len(rows) > 0 and 1 < bytes_per_token < 8
    for source in facts["sources"]:
        train, held = (
            set(pq.read_table(folder / source / split / "docs.parquet").column("id").to_pylist())
            for split in ("train", "heldout")
        )
        assert held and not train & held


def test_traffic_and_mixture_of_an_earlier_turn(run, tmp_path):
    row = pq.read_table(run.root / "corpus/content/documents/talk.parquet").to_pylist()[:2]
    (tmp_path / "traffic/content/documents").mkdir(parents=True)
    table = pa.Table.from_pylist([{**r, "source": "log", "id": f"x{n}"} for n, r in enumerate(row)], DOCUMENT_SCHEMA)
    pq.write_table(table, tmp_path / "traffic/content/documents/log.parquet")
    (tmp_path / "mixture/content").mkdir(parents=True)
    (tmp_path / "mixture/content/mixture.json").write_text('{"weights": {"synthetic_addition": 0.9}}')
    data = DATA.model_copy(update={"weights": {**DATA.weights, "traffic": 0.1}})
    step = s2.shards(data, s1.raw_data, s1.raw_data)
    inputs = {name: made(tmp_path / name) for name in ("traffic", "mixture")}
    inputs |= {name: made(run.root / name) for name in ("corpus", "tokenizer")}
    step.run(context(step, inputs, tmp_path / "shards"))
    weights = json.loads((tmp_path / "shards/content/shards.json").read_text())["weights"]
    before = run.metrics["shards"]["weights"]
    assert weights["traffic"] > 0
    assert weights["synthetic_addition"] > 2 * before["synthetic_addition"]
    assert weights["site"] < before["site"]


@pytest.mark.parametrize("empty", s2.TRAFFIC)
def test_one_of_two_traffic_logs_may_have_given_no_document(run, tmp_path, empty: str):
    for name in s2.TRAFFIC:
        (tmp_path / name / "content/documents").mkdir(parents=True)
    (full,) = set(s2.TRAFFIC) - {empty}
    rows = pq.read_table(run.root / "corpus/content/documents/talk.parquet").to_pylist()[:2]
    pq.write_table(pa.Table.from_pylist(rows, DOCUMENT_SCHEMA), tmp_path / full / "content/documents/log.parquet")
    data = DATA.model_copy(update={"weights": {**DATA.weights, "traffic": 0.1}})
    step = s2.shards(data, s1.raw_data, s1.raw_data)
    inputs = {name: made(tmp_path / name) for name in s2.TRAFFIC}
    inputs |= {name: made(run.root / name) for name in ("corpus", "tokenizer")}
    assert step.run(context(step, inputs, tmp_path / "shards"))["weights"]["traffic"] > 0


def test_the_stage_names_the_rule_of_every_step_that_rejects():
    named = re.findall(r"^(\w+) +(noria\.data\.\S+)", s2.__doc__ or "", re.MULTILINE)
    assert [step for step, _ in named] == list(corpus_room.STEPS)
    assert all(callable(resolve_name(rule)) for _, rule in named)


def test_config_refuses_what_it_cannot_mean(config):
    raw = config.model_dump()
    with pytest.raises(ValidationError, match="licence 'MIT', which `licences` does not allow"):
        s1.Config(**{**raw, "licences": ("Apache-2.0",)})
    source = {**raw["sources"][0], "path": None}
    with pytest.raises(ValidationError, match="needs either a package, or a path"):
        s1.SourceConfig(**source)
    with pytest.raises(ValueError, match="unknown kinds"):
        s2.CorpusConfig(quality={"blogs": {}}).rules()
    assert s2.CorpusConfig(quality={"crawl": {"least_words": 7}}).rules().of("crawl").least_words == 7
