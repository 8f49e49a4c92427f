from __future__ import annotations

import enum
from pathlib import Path

import pytest
from pydantic import BaseModel

from noria.artifacts import Numerics, canonical_json
from noria.artifacts.identity import changes, step_key


class Colour(enum.Enum):
    RED = "red"


class Inner(BaseModel):
    rate: float = 1
    names: frozenset[str] = frozenset("ba")


class Config(BaseModel):
    inner: Inner = Inner()
    colour: Colour = Colour.RED
    sizes: tuple[int, ...] = (2, 1)


def test_canonical_json_has_one_spelling():
    assert canonical_json(Config()) == ('{"colour":"red","inner":{"names":["a","b"],"rate":1},"sizes":[2,1]}')
    assert canonical_json(Inner(rate=1.0)) == canonical_json(Inner()), "a default is not coerced, a given value is"
    assert canonical_json({"b": 1, "a": -0.0}) == canonical_json({"a": 0.0, "b": 1}) == '{"a":0,"b":1}'


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": [1, float("nan")]}, r"config\.a\[1\] is nan"),
        ({"a": Path("/data")}, r"config\.a is a path; where a file lies is no identity"),
        ({"a": {1: 2}}, r"config\.a has the key 1; keys must be strings"),
        ({"a": object()}, r"config\.a is a object, which has no stable spelling"),
    ],
)
def test_what_has_no_stable_spelling_is_refused_with_its_field(value, message):
    with pytest.raises(TypeError, match=message):
        canonical_json(value)


def test_everything_that_changes_numbers_changes_the_key(chain):
    base = chain()[-1]
    assert base.key == chain()[-1].key and len(base.key) == 32
    variants = [chain(seed=1)[-1], chain(learning_rate=0.03)[-1], chain(threads=2)[-1]]
    arguments = (base.kind, base.version, base.config, base.numerics, base.input_keys)
    keys = {
        base.key,
        *(step.key for step in variants),
        step_key("other", *arguments[1:]),
        step_key(base.kind, 2, *arguments[2:]),
        step_key(*arguments[:3], None, base.input_keys),
        step_key(*arguments[:3], Numerics(dtype="bfloat16"), base.input_keys),
        step_key(*arguments[:4], {"other_role": base.input_keys["counts"]}),
    }
    assert len(keys) == 9


def test_name_stage_and_run_function_are_no_identity(chain):
    assert chain()[-1].key == chain(run=lambda context: {})[-1].key


def test_changes_name_the_field_with_old_and_new():
    old = {"config": {"rate": True, "gone": 2, "same": [1]}, "kind": "model"}
    new = {"config": {"rate": 1, "same": [1], "fresh": "x"}, "kind": "model"}
    assert [str(change) for change in changes(old, new)] == [
        'config.fresh: (absent) -> "x"',
        "config.gone: 2 -> (absent)",
        "config.rate: true -> 1",
    ]
