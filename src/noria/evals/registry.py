"""The registry of evaluation tasks: held-out tasks of every family, equally many a domain."""

from __future__ import annotations

from collections.abc import Callable

from noria.evals.tasks import FAMILIES, FamilyExhausted, generate
from noria.types import Task

ALIGNMENT_FAMILIES = ("helpful", "safety")


def held_out_tasks(
    items_per_domain: int, seed: int, report: Callable[[int, str], None] = lambda done, family: None
) -> list[Task]:
    """`items_per_domain` held-out tasks of each domain, split evenly among its families, alignment families included.

    What a small family can't give, the others of its domain give. Raises FamilyExhausted where none can.
    """
    tasks: list[Task] = []
    for families in domains().values():
        tasks += _of_domain(families, items_per_domain, seed)
        report(len(tasks), families[-1])
    return tasks


def domains() -> dict[str, list[str]]:
    """The families of each domain."""
    found: dict[str, list[str]] = {}
    for family in FAMILIES.values():
        found.setdefault(family.domain, []).append(family.name)
    return found | {name: [name] for name in ALIGNMENT_FAMILIES}


def _of_domain(families: list[str], total: int, seed: int) -> list[Task]:
    # The first families take one more where the count does not divide evenly.
    shares = {name: (total + len(families) - 1 - place) // len(families) for place, name in enumerate(families)}
    drawn = {name: _at_most(name, share, seed) for name, share in shares.items()}
    missing = total - sum(map(len, drawn.values()))
    if missing:
        able = [name for name in families if len(drawn[name]) == shares[name]] or families
        drawn[able[0]] = generate(able[0], len(drawn[able[0]]) + missing, seed, "heldout")
    return [task for name in families for task in drawn[name]]


def _at_most(family: str, count: int, seed: int) -> list[Task]:
    """`count` tasks, or about as many as the family has."""
    while True:
        try:
            return generate(family, count, seed, "heldout") if count else []
        except FamilyExhausted:
            count = count * 4 // 5
