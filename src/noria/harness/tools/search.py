"""Search over a corpus, a few chunks at a time: `search_corpus`, `grep_corpus`, `read_document`, `prune_chunks`.

    search_tools("corpus")                      # the workspace's files under corpus/: each task can have its own
    search_tools({"apples": "...", "pears": "..."})         # or documents by their ids, the same for every task

A chunk that was shown is not shown again by a later search. Each result ends with how much of the context's budget the
shown chunks fill; once it is full, only pruning goes on. What was shown and pruned is kept, in that order:

    notes["search"] = {"seen": ["apples#0", "pears#3"], "pruned": ["apples#0"]}

Nothing is taken out of the history here: a program that shows `without_pruned(result, pruned)` in place of a result
does that, and the trace keeps what the reward looks at (Chroma's Context-1 has these tools and rules).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any
from urllib.parse import quote

from noria.harness.retrieval import Chunk, Embedder, Index, chunks_of
from noria.harness.tools.text import valid
from noria.harness.tools.toolbox import HostTool, Parameter, ToolCall, ToolError, ToolResult, own_text

NOTES = "search"
MOST_GREPPED = 5
MOST_READ_CHARACTERS = 4096


def about_tokens(text: str) -> int:
    """A guess at the number of tokens: one for each four characters, the usual rule for English."""
    return -(-len(text) // 4)


def search_tools(
    corpus: Mapping[str, str] | str,
    embed: Embedder | None = None,
    count: int = 5,
    budget_tokens: int = 4096,
    count_tokens: Callable[[str], int] = about_tokens,
) -> tuple[HostTool, ...]:
    """The four tools. `count`: chunks that a search gives; `budget_tokens`: what all shown chunks may fill together.

    Raises ValueError for a document id that holds blanks or is empty.
    """
    if isinstance(corpus, str):
        index_of = _workspace_indices(corpus, embed)
    else:
        if bad := [name for name in corpus if not name or any(letter.isspace() for letter in name)]:
            raise ValueError(f"document id {bad[0]!r}: ids are words without blanks")
        whole = Index(chunks_of({name: valid(text) for name, text in corpus.items()}), embed)

        def index_of(files: Mapping[str, str]) -> Index:
            return whole

    shelf = _Shelf(index_of, count, budget_tokens, count_tokens)
    document = Parameter("id", "a document's id, or a chunk's (DOCUMENT#NUMBER) to read from there")
    return (
        HostTool(
            "search_corpus",
            f"search_corpus QUERY: the {count} chunks that fit QUERY best, of those not shown yet",
            (Parameter("query", "words to look for"),),
            shelf.search,
        ),
        HostTool(
            "grep_corpus",
            f"grep_corpus PATTERN: at most {MOST_GREPPED} chunks, of those not shown yet, with a line that matches",
            (Parameter("pattern", "a regular expression (RE2)"),),
            shelf.grep,
        ),
        HostTool("read_document", "read_document ID: a document's chunks in order", (document,), shelf.read),
        HostTool(
            "prune_chunks",
            "prune_chunks IDS: drop chunks that are of no use, to make room",
            (Parameter("ids", "ids of chunks that were shown, with blanks between"),),
            shelf.prune,
        ),
    )


class _Shelf:
    """What the four tools share. It keeps no state: that is in the call's notes."""

    def __init__(
        self,
        index_of: Callable[[Mapping[str, str]], Index],
        count: int,
        budget_tokens: int,
        count_tokens: Callable[[str], int],
    ) -> None:
        self.index_of, self.count = index_of, count
        self.budget_tokens, self.count_tokens = budget_tokens, count_tokens

    def search(self, call: ToolCall) -> ToolResult:
        index = self._room(call)
        seen, _ = _kept(call)
        found = index.search(valid(call.arguments["query"]), self.count, frozenset(seen))
        return self._show(call, index, found, "nothing new fits")

    def grep(self, call: ToolCall) -> ToolResult:
        import pyarrow as pa
        import pyarrow.compute as pc

        index = self._room(call)
        seen, _ = _kept(call)
        # RE2, not re: its time is linear in the text whatever a model writes, and this is not in the sandbox.
        rows = [
            (place, line)
            for place, chunk in enumerate(index.chunks)
            if chunk.id not in seen
            for line in chunk.text.splitlines()
        ]
        try:
            matches = pc.match_substring_regex(
                pa.array([line for _, line in rows], pa.string()), valid(call.arguments["pattern"])
            )
        except pa.ArrowInvalid as error:
            raise ToolError(f"the pattern can't be read: {str(error).partition(': ')[2] or error}"[:200]) from error
        places = list(dict.fromkeys(place for (place, _), hit in zip(rows, matches.to_pylist(), strict=True) if hit))
        more = f"({len(places) - MOST_GREPPED} more chunks match)" if len(places) > MOST_GREPPED else ""
        found = [index.chunks[place] for place in places[:MOST_GREPPED]]
        return self._show(call, index, found, "nothing new matches", more)

    def read(self, call: ToolCall) -> ToolResult:
        index = self._room(call)
        name = call.arguments["id"].strip()
        start = index.place.get(name)
        if start is None:
            start = next((place for place, chunk in enumerate(index.chunks) if chunk.document == name), None)
        if start is None:
            raise ToolError(f"no document {name}"[:200])
        found: list[Chunk] = []
        size, more = 0, ""
        for chunk in index.chunks[start:]:
            if chunk.document != index.chunks[start].document:
                break
            size += len(chunk.text)
            if found and size > MOST_READ_CHARACTERS:
                more = f"(it goes on: read_document {chunk.id})"
                break
            found.append(chunk)
        return self._show(call, index, found, "it is empty", more)

    def prune(self, call: ToolCall) -> ToolResult:
        index = self.index_of(call.files)
        seen, pruned = _kept(call)
        names = list(dict.fromkeys(call.arguments["ids"].replace(",", " ").split()))
        if not names:
            raise ToolError("name at least one chunk")
        if unknown := [name for name in names if name not in seen]:
            raise ToolError(f"never shown: {' '.join(unknown)}"[:200])
        if gone := [name for name in names if name in pruned]:
            raise ToolError(f"pruned before: {' '.join(gone)}"[:200])
        pruned = [*pruned, *names]
        text = f"pruned {len(names)} chunk{'s' * (len(names) > 1)}\n{self._usage(index, seen, pruned)}"
        return ToolResult(text, call.files, _noted(call, seen, pruned))

    def _room(self, call: ToolCall) -> Index:
        """The corpus; refuses where the context is full."""
        index = self.index_of(call.files)
        if self._used(index, *_kept(call)) >= self.budget_tokens:
            raise ToolError(f"{self._usage(index, *_kept(call))}. It is full: prune chunks first")
        return index

    def _show(self, call: ToolCall, index: Index, found: Sequence[Chunk], nothing: str, more: str = "") -> ToolResult:
        seen, pruned = _kept(call)
        names = [chunk.id for chunk in found]
        seen = [*seen, *(name for name in names if name not in seen)]
        pruned = [name for name in pruned if name not in names]  # read again, it takes room again
        # A chunk's own line that looks like a header or the last line is moved off the line's start.
        texts = [re.sub(r"^(?=\[\S+#\d+\]|context: )", " ", chunk.text, flags=re.MULTILINE) for chunk in found]
        shown = [f"[{name}] {text}" for name, text in zip(names, texts, strict=True)] or [nothing]
        last = " ".join(part for part in (self._usage(index, seen, pruned), more) if part)
        return ToolResult(own_text("\n".join([*shown, last])), call.files, _noted(call, seen, pruned))

    def _used(self, index: Index, seen: Sequence[str], pruned: Sequence[str]) -> int:
        there = [index.chunks[index.place[name]].text for name in seen if name not in pruned and name in index.place]
        return sum(self.count_tokens(text) for text in there)

    def _usage(self, index: Index, seen: Sequence[str], pruned: Sequence[str]) -> str:
        used, chunks = self._used(index, seen, pruned), len(seen) - len(pruned)
        return f"context: {used} of {self.budget_tokens} tokens in {chunks} chunk{'s' * (chunks != 1)}"


def _kept(call: ToolCall) -> tuple[list[str], list[str]]:
    notes = call.notes.get(NOTES, {})
    return list(notes.get("seen", ())), list(notes.get("pruned", ()))


def _noted(call: ToolCall, seen: list[str], pruned: list[str]) -> dict[str, Any]:
    return {**call.notes, NOTES: {"seen": seen, "pruned": pruned}}


def _workspace_indices(folder: str, embed: Embedder | None) -> Callable[[Mapping[str, str]], Index]:
    """The index of a workspace's files under `folder`; kept for the workspaces of the latest calls."""
    start = folder.strip("/") + "/"

    @lru_cache(maxsize=64)
    def index(documents: tuple[tuple[str, str], ...]) -> Index:
        return Index(chunks_of(dict(documents)), embed)

    def index_of(files: Mapping[str, str]) -> Index:
        found = {
            quote(path.removeprefix(start), safe="/", errors="replace"): valid(text)
            for path, text in files.items()
            if path.startswith(start)
        }
        if not found:
            raise ToolError(f"there are no files under {folder}")
        return index(tuple(sorted(found.items())))

    return index_of
