"""A few of many, evenly over their order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def spread(items: Sequence[T], most: int) -> list[T]:
    """At most `most` of the items, evenly over all (and so over what they are sorted by)."""
    return list(items) if len(items) <= most else [items[place * len(items) // most] for place in range(most)]
