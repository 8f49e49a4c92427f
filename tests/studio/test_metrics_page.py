"""docs/metrics.md explains every metric that a training step logs, and none that there is not."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from noria.grading import monitors
from noria.posttraining import preference, reinforce, watch
from noria.posttraining.rewards import TrainingGrader
from noria.stages import s7_agent_harness, step_costs
from noria.studio.report.model_sections import MONITORS
from noria.studio.training_metrics import OVER_ALL_STEPS, SHOWN_AS
from noria.training import TokenBatch, loop, measures
from noria.training.objectives import Objective
from noria.training.step import Gradient, step_metrics
from noria.training.terms import WEIGHTS

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
EXPLAINED = [name for name, *_ in re.findall(r"^\| `([^`]+)` \| (.+) \| (.+) \|$", PAGE, re.MULTILINE)]
# Whoever logs a metric writes its name as a key in one of these.
LOGGING: tuple[Callable[..., Any], ...] = (
    reinforce.reinforce,
    reinforce.sample_step,
    reinforce.rollout_metrics,
    watch.watcher,
    watch._distances,
    loop.train,
    loop._balance,
    TrainingGrader.monitor,
    monitors.lengths,
    s7_agent_harness._monitor,
    preference._with_reference_point,
    step_costs.StepCosts.of_step,
)


def keys(function: Callable[..., Any]) -> Iterator[str]:
    """Names that a function writes as keys, in a display or by assignment; `any` stands for what is put into one."""
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))):
        if isinstance(node, ast.Dict):
            found = node.keys
        elif isinstance(node, ast.DictComp):
            found = [node.key]
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
            found = [node.slice]
        else:
            continue
        for key in found:
            if isinstance(key, ast.Constant) and isinstance(key.value, str):
                yield key.value
            elif isinstance(key, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "any" for part in key.values)
                yield "".join(map(str, parts))


def logged() -> set[str]:
    ones = {name: 1.0 for names in measures.SUMS.values() for name in names}
    measured = measures.metrics(ones, dict.fromkeys(measures.SUMS, 1.0), Objective())
    batch = TokenBatch(torch.zeros(1, 2, dtype=torch.int64), torch.ones(1, 1))
    of_step = step_metrics(Gradient(dict.fromkeys(WEIGHTS, 0.0), 0.0, measured=measured), batch, 0.1, skipped=False)
    return {*of_step, *(name for function in LOGGING for name in keys(function))}


def explains(entry: str, metric: str) -> bool:
    return re.fullmatch(re.sub(r"<\w+>", r"\\w+", entry), metric) is not None


def test_every_metric_that_is_logged_or_shown_is_explained_once():
    assert len(set(EXPLAINED)) == len(EXPLAINED) > 40
    names = logged() | set(MONITORS) | set(SHOWN_AS) | set(OVER_ALL_STEPS)
    assert {"reward", "policy_lag", "clip_fraction", "loss_ce", "heldout", "tokens_per_second"} <= names
    assert not {name for name in names if not any(explains(entry, name) for entry in EXPLAINED)}


def test_nothing_is_explained_that_is_not_logged():
    names = logged()
    assert not {entry for entry in EXPLAINED if not any(explains(entry, name) for name in names)}


def test_what_is_shown_under_another_name_is_found_under_it_too():
    assert all(shown in PAGE for shown in SHOWN_AS.values())
