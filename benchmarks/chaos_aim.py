"""Run a module as `python -m` would, and kill its whole process group at one instant of one artifact's publication.

    python -m benchmarks.chaos_aim '{"key": ..., "moment": "before rename", "later": [...]}' noria run ...

Publication is three renames, each a few hundred microseconds after the other: too short to hit from outside. Python
announces each rename to audit hooks before it happens (PEP 578), so the kill lands there every time and the code under
test stays as it is. A rename of an artifact in `later` means that the moment did not come: then it kills at once.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Any


def moment_of_rename(source: Path, target: Path) -> tuple[str, str] | None:
    """(key, moment) that a rename from `source` to `target` is about to end; None if it is no part of publication."""
    if target.name == "manifest.json" and target.parent.name == "artifact":
        return target.parents[2].name, "before manifest"  # work/<key>/<code>/artifact/manifest.json
    if target.parent.name == "artifacts":
        return target.name, "before rename"
    if source.parent.name == "work":
        return source.name, "before clean-up"
    return None


def arm(aim: dict[str, Any]) -> None:
    """From now on, end this process group with -9 when the rename that `aim` describes is about to happen."""
    wanted, later = (aim["key"], aim["moment"]), set(aim["later"])

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event != "os.rename":
            return
        moment = moment_of_rename(*(Path(os.fsdecode(path)) for path in arguments[:2]))
        if moment and (moment == wanted or moment[0] in later):
            os.killpg(os.getpgid(0), signal.SIGKILL)

    sys.addaudithook(hook)


if __name__ == "__main__":
    _, described, module, *rest = sys.argv
    arm(json.loads(described))
    sys.argv = [module, *rest]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
