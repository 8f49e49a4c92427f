from __future__ import annotations

import random

import numpy as np
import pytest

from noria.data.decontaminate import TaskIndex
from noria.data.dedup import best_of, drop_lines, exact_key, near_clusters, repeated_lines, signatures
from noria.data.mixture import bounded_by_epochs, mixture_weights
from noria.data.words import hash_words
from noria.types import GraderRef, Message, Task


def prose(seed: int, words: int = 200) -> str:
    generator = random.Random(seed)
    return " ".join(f"w{generator.randrange(5000)}" for _ in range(words))


def altered(text: str, every: int) -> str:
    return " ".join(f"z{i}" if i % every == every - 1 else word for i, word in enumerate(text.split()))


def clusters_of(texts, ids, similarity=0.7):
    return near_clusters(*signatures(hash_words(texts)), ids, similarity)


def test_near_copies_cluster_and_others_do_not():
    texts = [prose(1), altered(prose(1), 100), prose(2), "too short", prose(3), altered(prose(3), 4)]
    found = clusters_of(texts, list("abcdef"))
    assert found.tolist() == [0, 0, 2, 3, 4, 5]


def test_dedup_does_not_depend_on_order():
    texts = [text for seed in range(8) for text in (prose(seed), altered(prose(seed), 90), altered(prose(seed), 70))]
    ids = [f"id{number:02d}" for number in range(len(texts))]
    quality = [float(number % 5) for number in range(len(texts))]
    kept = []
    for shuffle in range(4):
        order = list(range(len(texts)))
        random.Random(shuffle).shuffle(order)
        names = [ids[row] for row in order]
        clusters = clusters_of([texts[row] for row in order], names)
        keep = best_of(clusters.tolist(), [0] * len(order), [quality[row] for row in order], names)
        kept.append({name for name, stays in zip(names, keep, strict=True) if stays})
        assert {names[cluster] for cluster in clusters} == {f"id{3 * seed:02d}" for seed in range(8)}
    assert all(one == kept[0] for one in kept)
    assert len(kept[0]) == 8


def test_the_best_member_is_kept():
    keep = best_of(["a", "a", "a", "b"], [1, 0, 0, 1], [9.0, 1.0, 2.0, 0.0], ["w", "x", "y", "z"])
    assert keep.tolist() == [False, False, True, True]


def test_exact_key_ignores_white_space_only():
    assert exact_key("a  b\nc") == exact_key("a b c") != exact_key("a b d")


def test_lines_in_many_documents_fall_away():
    footer = "Copyright of the people who made this page"
    texts = [f"{prose(seed, 5)}\n{footer}\nshort" for seed in range(5)]
    lines = repeated_lines(texts, most_documents=4)
    assert lines == {footer}
    assert drop_lines(texts[0], lines) == f"{prose(0, 5)}\nshort"
    assert repeated_lines(texts, most_documents=5) == set()


def task(name: str, prompt: str, answer: str, family: str = "bench") -> Task:
    return Task(name, (Message("user", prompt),), GraderRef("maths", "1"), answer, family, "maths")


LONG = "A farmer has seventeen sheep and buys nine more at the market before all but eight run away. How many are left?"


def test_planted_contamination_is_found_and_clean_text_is_not():
    index = TaskIndex([task("t1", LONG, "8"), task("t2", prose(9, 40), "42", "other")])
    texts = [
        f"{prose(1, 50)} {LONG} {prose(2, 50)}",
        prose(3, 400),
        prose(9, 40) + " the answer is 42",
        LONG[:45] + " something else entirely",
    ]
    hits = {hit.row: hit for hit in index.find(texts, least=0.5)}
    assert set(hits) == {0, 2}
    assert (hits[0].benchmark, hits[0].task_id, hits[0].score) == ("bench", "t1", 0.75)
    assert (hits[2].benchmark, hits[2].score) == ("other", 1.0)


def test_short_tasks_must_stand_alone():
    index = TaskIndex([task("t", "What is 3 + 1?", "4"), task("u", "Is it?", "yes")])
    texts = ["What is 3 + 1 - 2?", "First. What is 3 + 1? It is 4.", "What is 3 + 12?", "what is 3 + 1\n4"]
    assert [hit.row for hit in index.find(texts, least=0.5)] == [1, 3]
    assert index.unprobed() == {"bench": 1}


def test_a_template_that_all_tasks_share_is_no_contamination():
    shared = (
        "Read the following passage with great care, then answer the question that comes after it as well as you can."
    )
    tasks = [task(f"t{i}", f"{shared} {prose(i, 30)}", str(i)) for i in range(50)]
    assert TaskIndex(tasks).find([f"{shared} {prose(1000, 30)}"], least=0.5) == []


def test_no_tasks_no_hits():
    assert TaskIndex([]).find(["some text"], 0.5) == []


def test_mixture_shares_a_kind_by_size_and_takes_overrides():
    kinds = {"a": "crawl", "b": "crawl", "c": "books", "d": "books"}
    weights = mixture_weights(kinds, {"a": 300, "b": 100, "c": 7, "d": 0}, {"crawl": 0.8, "books": 0.2})
    assert weights == pytest.approx({"a": 0.6, "b": 0.2, "c": 0.2})
    changed = mixture_weights(kinds, {"a": 300, "b": 100, "c": 7}, {"crawl": 0.8, "books": 0.2}, {"c": 1.2, "x": 9})
    assert changed == pytest.approx({"a": 0.3, "b": 0.1, "c": 0.6})
    sizes = {"a": 300, "b": 100}
    assert mixture_weights(kinds, sizes, {"crawl": 1.0}, size_exponent=0.0) == pytest.approx({"a": 0.5, "b": 0.5})
    with pytest.raises(ValueError, match="no source"):
        mixture_weights(kinds, {"a": 1}, {"books": 1.0})


def test_epoch_bound_moves_weight_to_larger_sources():
    weights = bounded_by_epochs({"a": 0.5, "b": 0.5}, {"a": 100, "b": 10_000}, 1000, 2.0)
    assert weights == pytest.approx({"a": 0.2, "b": 0.8})
    assert sum(bounded_by_epochs({"a": 0.5, "b": 0.5}, {"a": 1, "b": 1}, 1000, 1.0).values()) == pytest.approx(1)


def test_signatures_agree_as_often_as_shingles_overlap():
    one, other = prose(1, 2000), altered(prose(1, 2000), 50)
    values, _ = signatures(hash_words([one, other]))
    shingles = [{tuple(w[i : i + 5]) for i in range(len(w) - 4)} for w in (one.split(), other.split())]
    jaccard = len(shingles[0] & shingles[1]) / len(shingles[0] | shingles[1])
    assert np.mean(values[0] == values[1]) == pytest.approx(jaccard, abs=0.15)
