"""Retrieval over small corpora: BM25, dense vectors, and both fused by reciprocal rank. Equal inputs, equal ranks.

`Index(chunks)` ranks; `chunks_of` cuts documents. An embedder is any function of texts to rows of numbers; the one
that comes with noria, `fit_lsa`, knows no language: it finds words that are spelled alike or that keep like company in
this very corpus. Give a neural one for meaning.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from scipy import sparse  # late: importing it costs more than the rest of the harness

# (texts) -> vectors_CD, one row a text
Embedder = Callable[[Sequence[str]], NDArray[np.float64]]

K1, B = 1.2, 0.75  # the usual values: Robertson & Zaragoza 2009, section 3.3
RRF_K = 60  # Cormack, Clarke, Buettcher 2009: chosen there on a pilot, flat around it
DECIMALS = 6  # of a score that count: sums differ in the last bits between machines, and a rank must not


@dataclass(frozen=True)
class Chunk:
    """A piece of a document that is found and shown as one. `id` is DOCUMENT#NUMBER, counted from 0."""

    id: str
    document: str
    text: str


def chunks_of(documents: Mapping[str, str], most_words: int = 120) -> list[Chunk]:
    """Documents (id -> text) in the order of their ids, cut at paragraphs, then lines, into at most `most_words` words.

    A line of more words is cut within. No text is lost but the blanks at cuts.
    """
    chunks = []
    for document in sorted(documents):
        pieces: list[str] = []
        size = 0
        for part in _parts(documents[document], most_words):
            words = len(part.split())
            if pieces and size + words <= most_words:
                pieces[-1] += part
                size += words
            else:
                pieces.append(part)
                size = words
        texts = [piece.strip("\n") for piece in pieces if piece.strip()]
        chunks += [Chunk(f"{document}#{number}", document, text) for number, text in enumerate(texts)]
    return chunks


def _parts(text: str, most_words: int) -> list[str]:
    parts = []
    for paragraph in re.split(r"(?<=\n)(?=\s*\n)", text):
        lines = [paragraph] if len(paragraph.split()) <= most_words else paragraph.splitlines(True)
        for line in lines:
            words = line.split(" ")
            parts += [" ".join(words[at : at + most_words]) for at in range(0, len(words), most_words)]
    return parts


def words_of(text: str) -> list[str]:
    """Lower-case runs of letters and digits; a Chinese, Japanese or Korean character is a word of its own."""
    return re.findall(r"[぀-ヿ㐀-鿿가-힯]|[^\W_぀-ヿ㐀-鿿가-힯]+", text.lower())


class BM25:
    """Okapi BM25 over texts. Robertson & Zaragoza, "The Probabilistic Relevance Framework" (2009), equation 3.15:

        score(q, c) = sum over terms t of q:  idf(t) * tf * (k1 + 1) / (tf + k1 * (1 - b + b * |c| / mean |c|))
        idf(t)      = log(1 + (C - n_t + 0.5) / (n_t + 0.5))

    with tf the count of t in c, and n_t the number of the C texts that hold t. The 1 within the logarithm keeps the
    weight of a term in more than half of all texts above zero (as Lucene has it).
    """

    def __init__(self, texts: Sequence[str]) -> None:
        from scipy import sparse

        counts = [Counter(words_of(text)) for text in texts]
        self.terms = {term: number for number, term in enumerate(sorted(set().union(*counts)))}
        rows = np.repeat(np.arange(len(texts)), [len(count) for count in counts])
        columns = np.array([self.terms[term] for count in counts for term in count], dtype=np.int64)
        tf = np.array([value for count in counts for value in count.values()], dtype=np.float64)
        length_C = np.array([sum(count.values()) for count in counts], dtype=np.float64)
        held_V = np.bincount(columns, minlength=len(self.terms))
        idf_V = np.log1p((len(texts) - held_V + 0.5) / (held_V + 0.5))
        norm_C = K1 * (1 - B + B * length_C / max(1.0, length_C.mean() if len(texts) else 1.0))
        weights = idf_V[columns] * tf * (K1 + 1) / (tf + norm_C[rows])
        self.weights_CV = sparse.csc_array((weights, (rows, columns)), shape=(len(texts), len(self.terms)))

    def scores(self, query: str) -> NDArray[np.float64]:
        """scores_C; a term that the query repeats counts as often."""
        asked_V = np.zeros(len(self.terms))
        for term, count in Counter(words_of(query)).items():
            if term in self.terms:
                asked_V[self.terms[term]] = count
        return np.asarray(self.weights_CV @ asked_V)


def fit_lsa(texts: Sequence[str], dimensions: int = 128, buckets: int = 1 << 13) -> Embedder:
    """An embedder fitted to `texts`: latent semantic analysis (Deerwester et al. 1990) of hashed character n-grams.

    Each word's n-grams of 3 to 5 characters, its ends marked, are counted in `buckets` by CRC-32, damped and weighted
    as log(1 + tf) * idf, and projected on the first `dimensions` right singular vectors of the texts' own matrix.
    Rows have length 1, or 0 for a text of unknown n-grams alone.
    """
    counts_CV = _gram_counts(texts, buckets)
    held_V = np.asarray((counts_CV > 0).sum(axis=0)).ravel()
    idf_V = np.log((1 + len(texts)) / (1 + held_V)) * (held_V > 0)

    def weighted(counts: sparse.csr_array) -> sparse.csr_array:
        damped = counts.log1p()
        damped.data *= idf_V[damped.indices]
        lengths = np.sqrt(np.asarray(damped.multiply(damped).sum(axis=1)).ravel())
        damped.data /= np.repeat(np.where(lengths > 1e-9, lengths, 1.0), np.diff(damped.indptr))
        return damped

    directions_VD = _directions(weighted(counts_CV), dimensions)

    def embed(asked: Sequence[str]) -> NDArray[np.float64]:
        rows = weighted(_gram_counts(asked, buckets))
        vectors_CD = np.asarray(rows @ directions_VD)
        lengths = np.linalg.norm(vectors_CD, axis=1, keepdims=True)
        return vectors_CD / np.where(lengths > 1e-9, lengths, 1.0)

    return embed


def _directions(matrix_CV: sparse.csr_array, dimensions: int) -> NDArray[np.float64]:
    """The leading right singular vectors, by subspace iteration from a fixed random start (Halko et al. 2011, 4.4)."""
    width = min(dimensions + 10, *matrix_CV.shape)
    basis_VD = np.random.default_rng(0).standard_normal((matrix_CV.shape[1], width))
    for _ in range(4):
        basis_VD, _ = np.linalg.qr(matrix_CV.T @ (matrix_CV @ basis_VD))
    _, sizes, turn_DD = np.linalg.svd(matrix_CV @ basis_VD, full_matrices=False)
    kept = sizes > 1e-9 * max(1.0, sizes.max(initial=0.0))
    return np.asarray(basis_VD @ turn_DD.T[:, kept][:, :dimensions])


def _gram_counts(texts: Sequence[str], buckets: int) -> sparse.csr_array:
    from scipy import sparse

    rows, columns = [], []
    for row, text in enumerate(texts):
        for word in words_of(text):
            marked = f"<{word}>"
            grams = [marked[at : at + n] for n in (3, 4, 5) for at in range(len(marked) - n + 1)]
            columns += [zlib.crc32(gram.encode()) % buckets for gram in grams]
            rows += [row] * len(grams)
    counts = sparse.coo_array((np.ones(len(rows)), (rows, columns)), shape=(len(texts), buckets))
    return sparse.csr_array(counts)  # equal places are summed


def fuse(rankings: Sequence[Sequence[int]], k: int = RRF_K) -> list[int]:
    """Reciprocal rank fusion: items by the sum over rankings of 1 / (k + rank), rank from 1; ties by item."""
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, item in enumerate(ranking, 1):
            scores[item] = scores.get(item, 0.0) + 1 / (k + rank)
    return sorted(scores, key=lambda item: (-round(scores[item], 12), item))


class Index:
    """Chunks made searchable. `embed` None: `fit_lsa` on these chunks."""

    def __init__(self, chunks: Sequence[Chunk], embed: Embedder | None = None, depth: int = 100) -> None:
        self.chunks, self.depth = tuple(chunks), depth
        self.place = {chunk.id: place for place, chunk in enumerate(self.chunks)}
        texts = [chunk.text for chunk in self.chunks]
        self._bm25 = BM25(texts)
        self._embed = embed or fit_lsa(texts)
        self._vectors_CD = self._embed(texts) if texts else np.zeros((0, 1))

    def sparse_ranking(self, query: str) -> list[int]:
        """Places of chunks by BM25, best first; those without any of the query's words are left out."""
        return _ranked(self._bm25.scores(query), self.depth)

    def dense_ranking(self, query: str) -> list[int]:
        """Places of chunks by cosine, best first; only those on the query's side."""
        if not self.chunks:
            return []
        return _ranked(self._vectors_CD @ self._embed([query])[0], self.depth)

    def search(self, query: str, count: int, without: frozenset[str] = frozenset()) -> list[Chunk]:
        """The best `count` chunks by both, those `without` left out."""
        left_out = {self.place[name] for name in without if name in self.place}
        rankings = [
            [place for place in ranking if place not in left_out]
            for ranking in (self.sparse_ranking(query), self.dense_ranking(query))
        ]
        return [self.chunks[place] for place in fuse(rankings)[:count]]


def _ranked(scores_C: NDArray[np.float64], depth: int) -> list[int]:
    rounded = np.round(scores_C, DECIMALS)
    order = np.argsort(-rounded, kind="stable")  # ties stay in the chunks' own order
    return [int(place) for place in order[:depth] if rounded[place] > 0]
