"""What a call changed of a workspace or of notes, and what they are with such changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """key -> value of what is new or other in `after`; None for what is gone."""
    if before is after:
        return {}
    found = {key: value for key, value in after.items() if key not in before or before[key] != value}
    return found | {key: None for key in before if key not in after}


def changed(before: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in {**before, **changes}.items() if value is not None}
