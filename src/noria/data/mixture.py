"""How much of each source a model sees: weights by kind, shared within a kind by size, bounded by repetition."""

from __future__ import annotations

from collections.abc import Mapping

from noria.data.shards import normalised


def mixture_weights(
    kinds: Mapping[str, str],
    sizes: Mapping[str, int],
    kind_weights: Mapping[str, float],
    override: Mapping[str, float] | None = None,
    size_exponent: float = 1.0,
) -> dict[str, float]:
    """Weights that sum to 1 over the sources of non-zero size (bytes or tokens).

    A kind's weight is shared among its sources in proportion to size ** `size_exponent`: 1 in proportion, 0 equally;
    below 1 lifts small sources, as for small languages in multilingual training (XLM-R, arXiv 1911.02116, uses 0.3).
    `override` then replaces the weights of the sources that it names (loop B). Raises ValueError if nothing has a
    weight.
    """
    shares = {source: size**size_exponent for source, size in sizes.items() if size > 0}
    by_kind: dict[str, float] = {}
    for source, share in shares.items():
        by_kind[kinds[source]] = by_kind.get(kinds[source], 0.0) + share
    weights = {
        source: kind_weights.get(kinds[source], 0.0) * share / by_kind[kinds[source]]
        for source, share in shares.items()
    }
    if not sum(weights.values()) > 0:
        raise ValueError(f"no source with text has a weight: kinds {sorted(by_kind)}, weights {dict(kind_weights)}")
    named = {source: weight for source, weight in (override or {}).items() if source in weights}
    return normalised({**normalised(weights), **named})


def bounded_by_epochs(
    weights: Mapping[str, float], tokens: Mapping[str, int], budget_tokens: int, most_epochs: float
) -> dict[str, float]:
    """Weights with which `budget_tokens` see no source more than `most_epochs` times; the rest goes to the others.

    Up to 4 epochs cost almost nothing (arXiv 2305.16264). If all are at their bound, the bounds in proportion.
    """
    limits = {source: most_epochs * tokens[source] / budget_tokens for source in weights}
    if sum(limits.values()) <= 1:
        return normalised(limits)
    fixed: dict[str, float] = {}
    while True:
        free = {source: weight for source, weight in weights.items() if source not in fixed}
        room = 1 - sum(fixed.values())
        total = sum(free.values())
        over = [source for source, weight in free.items() if weight / total * room > limits[source]]
        if not over:
            return normalised(fixed | {source: weight / total * room for source, weight in free.items()})
        fixed |= {source: limits[source] for source in over}
