"""A chain of four toy steps that takes a few seconds: what `benchmarks.chaos --quick` kills in place of a recipe.

`python -m benchmarks.chaos_chain --store DIR` behaves as `noria run` does, with the real store and executor.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from noria.artifacts import Executor, Step, StepContext, Store


class Rounds(BaseModel):
    """`rounds` of hashing a state, `pause_seconds` each; saved after each round if `saves`."""

    rounds: int = 12
    saves: bool = True


PAUSE_SECONDS = 0.05


def hash_on(context: StepContext) -> Mapping[str, Any]:
    """Starts from the hash of the inputs; each round's state depends on all rounds before, as training does."""
    saved = context.progress / "state.json"
    seen = "".join((artifact.content / "000.txt").read_text() for artifact in context.inputs.values())
    states = json.loads(saved.read_text()) if saved.exists() else [hashlib.sha256(seen.encode()).hexdigest()]
    while len(states) <= context.config.rounds:
        states.append(hashlib.sha256(states[-1].encode()).hexdigest())
        if context.config.saves:
            part = saved.with_suffix(".part")
            part.write_text(json.dumps(states))
            part.replace(saved)
        context.report(len(states), context.config.rounds, "rounds")
        time.sleep(PAUSE_SECONDS)
    for index, state in enumerate(reversed(states)):
        (context.content / f"{index:03d}.txt").write_text(state)
    return {"last": states[-1]}


def steps() -> list[Step]:
    raw = Step("raw", "s1_raw_data", "raw_data", 1, Rounds(saves=False), hash_on)
    corpus = Step("corpus", "s2_data", "corpus", 1, Rounds(), hash_on, {"raw": raw})
    model = Step("model", "s4_pretraining", "model", 1, Rounds(rounds=24), hash_on, {"corpus": corpus})
    verdict = Step("verdict", "s9_deployment", "verdict", 1, Rounds(), hash_on, {"model": model, "raw": raw})
    return [raw, corpus, model, verdict]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, required=True)
    Executor(Store(parser.parse_args().store), "chaos-chain").run(steps())
