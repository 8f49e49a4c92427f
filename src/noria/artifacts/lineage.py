"""Where an artifact came from, down to the record in a raw file, and what a source or a user ever reached.

The graph is that of the manifests: role -> key. An artifact with content/documents/<source>.parquet knows its documents
(rows of DOCUMENT_SCHEMA) and so answers for itself which sources it holds, as does raw data by content/sources.json; an
artifact with neither is taken to have seen what its inputs saw. A user is whom the column or field `user` in the files
of a traffic artifact names, spelled as it is there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from noria.artifacts.aliases import AliasMove, append_line, now, read_lines
from noria.artifacts.errors import StoreError, Unknown
from noria.artifacts.manifest import Manifest
from noria.artifacts.store import Store

TRAFFIC = "traffic"
SOURCES = "sources.json"
QUOTED_CHARACTERS = 500
_ORIGIN_COLUMNS = ["id", "licence", "origin"]
Graph = Mapping[str, Manifest]
What = Literal["source", "user"]


@dataclass(frozen=True)
class Ancestor:
    """An artifact on the way down: what it was (`role`) to the nearest one made from it (`parent`, a key), and how many
    steps below the start it lies."""

    manifest: Manifest
    role: str
    depth: int
    parent: str = ""


@dataclass(frozen=True)
class RawRecords:
    """The documents of one source that an artifact took from one raw file: how many, and where in the file they lie.
    `raw` is the artifact that has the file, empty if none in the store has."""

    artifact: str
    raw: str
    source: str
    file: str
    documents: int
    first_offset: int
    last_offset: int


@dataclass(frozen=True)
class OriginRow:
    """Where one document lies: raw file, record offset and length in bytes, the artifact that says so, and the one
    (`raw`) that has the file. `text` is the start of the document where it was asked for."""

    artifact: str
    raw: str
    document: str
    source: str
    licence: str
    file: str
    offset: int
    length: int
    text: str = ""


@dataclass(frozen=True)
class Reached:
    """What a source or user reached: artifacts, nearest first, and every move of an alias onto one of them."""

    artifacts: tuple[Manifest, ...]
    releases: tuple[AliasMove, ...]


@dataclass(frozen=True)
class Mark:
    """A request to forget, on one artifact that it affects."""

    what: What
    name: str
    key: str
    reason: str
    time: str


def upstream(store: Store, key: str) -> list[Ancestor]:
    """`key` and all it was made from, each once, nearest first."""
    graph = _graph(store)
    if key not in graph:
        raise Unknown(f"there is no artifact {key} in {store.root}")
    found, waiting, seen = [], [Ancestor(graph[key], "", 0)], {key}
    while waiting:
        node = waiting.pop(0)
        found.append(node)
        for role, other in sorted(node.manifest.inputs.items()):
            if other in graph and other not in seen:
                seen.add(other)
                waiting.append(Ancestor(graph[other], role, node.depth + 1, node.manifest.key))
    return found


def closure(graph: Graph, keys: set[str]) -> set[str]:
    """`keys` and everything upstream of them that the graph holds."""
    waiting, found = list(keys), set()
    while waiting:
        key = waiting.pop()
        if key in graph and key not in found:
            found.add(key)
            waiting += graph[key].inputs.values()
    return found


def raw_records(store: Store, key: str) -> list[RawRecords]:
    """For `key` and its ancestors that hold documents: each raw file with the number and place of its documents."""
    import pyarrow.compute as compute
    import pyarrow.parquet as parquet

    graph = _graph(store)
    found = []
    for node in upstream(store, key):
        for source, path in _document_files(store, node.manifest):
            table = parquet.read_table(path, columns=["origin"])
            origin = table["origin"].combine_chunks()
            columns = {name: compute.struct_field(origin, name) for name in ("file", "offset")}
            grouped = (
                _table(columns).group_by("file").aggregate([("offset", "count"), ("offset", "min"), ("offset", "max")])
            )
            for row in sorted(grouped.to_pylist(), key=lambda row: row["file"]):
                place = (row["file"], row["offset_count"], row["offset_min"], row["offset_max"])
                raw = _where_it_lies(graph, node.manifest, row["file"])
                found.append(RawRecords(node.manifest.key, raw, source, *place))
    return found


def origins(store: Store, key: str, *, source: str = "", limit: int = 100) -> list[OriginRow]:
    """Origin rows of a source, or of all by turns (so that the first few are of different sources), among what `key`
    was made from.

    Of several artifacts that hold a document, the most upstream one is quoted: the nearest to the raw file.
    """
    import pyarrow.parquet as parquet

    graph = _graph(store)
    found: dict[str, dict[str, OriginRow]] = {}  # source -> document -> row
    for node in reversed(upstream(store, key)):
        for name, path in _document_files(store, node.manifest):
            rows = found.setdefault(name, {}) if source in ("", name) else {}
            if source in ("", name) and len(rows) < limit:
                for row in parquet.read_table(path, columns=_ORIGIN_COLUMNS).slice(0, limit).to_pylist():
                    rows.setdefault(row["id"], _origin(graph, node.manifest, name, row))
    by_turns = zip_longest(*(rows.values() for rows in found.values()))
    return [row for turn in by_turns for row in turn if row is not None][:limit]


def quote(store: Store, key: str, document: str) -> OriginRow:
    """The origin of the document with this id, or the only one whose id starts so, and the start of its text.

    Raises Unknown where no document, or several, among what `key` was made from fit.
    """
    import pyarrow.compute as compute
    import pyarrow.parquet as parquet

    graph = _graph(store)
    fits = compute.starts_with(compute.field("id"), pattern=document)
    found: dict[str, OriginRow] = {}
    for node in reversed(upstream(store, key)):
        for name, path in _document_files(store, node.manifest):
            for row in parquet.read_table(path, columns=[*_ORIGIN_COLUMNS, "text"], filters=fits).to_pylist():
                found.setdefault(row["id"], _origin(graph, node.manifest, name, row))
    if document in found:
        return found[document]
    if not found:
        raise Unknown(f"no document {document!r} is among what {graph[key].step} {key} was made from")
    if len(found) > 1:
        some = ", ".join(sorted(found)[:5])
        raise Unknown(f"{document} fits {len(found)} documents, e.g. {some}. Give more characters of the id")
    return next(iter(found.values()))


def _origin(graph: Graph, holder: Manifest, source: str, row: Mapping[str, Any]) -> OriginRow:
    place = row["origin"]
    raw = _where_it_lies(graph, holder, place["file"])
    text = (row.get("text") or "")[:QUOTED_CHARACTERS]
    where = (place["file"], place["offset"], place["length"])
    return OriginRow(holder.key, raw, row["id"], source, row["licence"], *where, text)


def _where_it_lies(graph: Graph, holder: Manifest, file: str) -> str:
    """The key of the artifact, `holder` or the nearest above it, that has this file; empty if none has."""
    waiting, seen = [holder], {holder.key}
    for manifest in waiting:  # grows while it is walked
        if file in manifest.files:
            return manifest.key
        above = [graph[key] for _, key in sorted(manifest.inputs.items()) if key in graph and key not in seen]
        seen |= {other.key for other in above}
        waiting += above
    return ""


def downstream(store: Store, name: str, what: What = "source") -> Reached:
    """Everything that saw a source or user, and every release (present or past) among it.

    Raises Unknown, with the names that there are, for one that no artifact holds.
    """
    graph = _graph(store)
    holds = (
        (lambda manifest: _holds_source(store, manifest, name))
        if what == "source"
        else (lambda manifest: _holds_user(store, manifest, name))
    )
    affected = _spread(graph, holds)
    if not affected:
        known = sorted({source for manifest in graph.values() for source in _sources(store, manifest)})
        hint = f" Sources here: {', '.join(known) or 'none'}" if what == "source" else ""
        raise Unknown(f"no artifact in {store.root} holds the {what} {name!r}.{hint}")
    keys = {manifest.key for manifest in affected}
    return Reached(tuple(affected), tuple(move for move in store.aliases.all_moves() if move.key in keys))


def forget(store: Store, what: What, name: str, reason: str = "") -> Reached:
    """Mark everything that a source or user reached. Nothing is deleted: the marks show in plans and lineage until
    the artifacts are made anew without it."""
    reached = downstream(store, name, what)
    known = {(mark.what, mark.name, mark.key) for mark in marks(store)}
    for manifest in reached.artifacts:
        if (what, name, manifest.key) not in known:
            append_line(_marks_file(store), asdict(Mark(what, name, manifest.key, reason, now())))
    return reached


def marks(store: Store) -> list[Mark]:
    """All marks, oldest first."""
    return [Mark(**line) for line in read_lines(_marks_file(store))]


def marks_of(store: Store, key: str) -> list[Mark]:
    return [mark for mark in marks(store) if mark.key == key]


def _spread(graph: Graph, holds: Callable[[Manifest], bool | None]) -> list[Manifest]:
    """The artifacts that hold something, by their own word (True, False) or, where they have none, by their inputs."""
    seen: dict[str, bool] = {}
    affected = []
    for manifest in _inputs_first(graph):
        own = holds(manifest)
        seen[manifest.key] = any(seen.get(key, False) for key in manifest.inputs.values()) if own is None else own
        if seen[manifest.key]:
            affected.append(manifest)
    return affected


def _inputs_first(graph: Graph) -> Iterator[Manifest]:
    done: set[str] = set()
    for start in sorted(graph.values(), key=lambda manifest: manifest.created):
        waiting = [start]
        while waiting:
            missing = [graph[key] for key in waiting[-1].inputs.values() if key in graph and key not in done]
            if missing:
                waiting += missing
                continue
            manifest = waiting.pop()
            if manifest.key not in done:
                done.add(manifest.key)
                yield manifest


def _holds_source(store: Store, manifest: Manifest, name: str) -> bool | None:
    sources = _sources(store, manifest)
    return name in sources if sources else None


def _sources(store: Store, manifest: Manifest) -> set[str]:
    """The sources that an artifact is known to hold documents of; empty where it does not say.

    It says so by its documents or, for raw data, by content/sources.json with a key a source.
    """
    held = {source for source, path in _document_files(store, manifest) if _rows(path)}
    if held or SOURCES not in manifest.files:
        return held
    return set(json.loads((store.artifacts / manifest.key / "content" / SOURCES).read_text(encoding="utf-8")))


def _holds_user(store: Store, manifest: Manifest, user: str) -> bool | None:
    if manifest.kind != TRAFFIC:
        return None
    folder = store.artifacts / manifest.key / "content"
    return any(_file_names_user(folder / name, user) for name in manifest.files)


def _file_names_user(path: Path, user: str) -> bool:
    if path.suffix == ".jsonl":
        with path.open(encoding="utf-8") as lines:
            return any(json.loads(line).get("user") == user for line in lines if line.strip())
    if path.suffix == ".parquet":
        import pyarrow.parquet as parquet

        if "user" in parquet.read_schema(path).names:
            return parquet.read_table(path, columns=["user"], filters=[("user", "=", user)]).num_rows > 0
    return False


def _document_files(store: Store, manifest: Manifest) -> Iterator[tuple[str, Path]]:
    """(source, file) of each content/documents/<source>.parquet."""
    for name in sorted(manifest.files):
        path = PurePosixPath(name)
        if path.parts[0] == "documents" and path.suffix == ".parquet":
            yield "/".join(path.with_suffix("").parts[1:]), store.artifacts / manifest.key / "content" / name


def _rows(path: Path) -> int:
    import pyarrow.parquet as parquet

    return parquet.read_metadata(path).num_rows


def _table(columns: Mapping[str, Any]) -> Any:
    import pyarrow

    return pyarrow.table(dict(columns))


def _graph(store: Store) -> Graph:
    graph, problems = store.manifests()
    if problems:
        raise StoreError(f"lineage needs every manifest, and {len(problems)} can't be read: {problems[0]}")
    return graph


def _marks_file(store: Store) -> Path:
    return store.root / "marks.jsonl"
