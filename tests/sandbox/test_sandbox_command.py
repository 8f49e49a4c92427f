"""`noria sandbox check` and `noria sandbox abuse`: tables for people, JSON and exit codes for scripts."""

from __future__ import annotations

import json

import pytest

from noria.cli import status_of
from noria.sandbox import abuse
from noria.sandbox.abuse import Attempt


def test_check_tells_what_this_machine_gives(capsys):
    assert status_of(["sandbox", "check", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["bubblewrap"]["available"] and set(found) == {"bubblewrap", "landlock (weaker)"}
    assert status_of(["sandbox", "check"]) == 0
    assert "namespaces" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("body", "code", "verdict"),
    [("return open(secret).read()", 0, "held"), ("return 'escaped'", 1, "escaped"), ("retrun", 1, "unproven")],
)
def test_abuse_exits_with_1_unless_every_attempt_is_denied_as_expected(capsys, monkeypatch, body, code, verdict):
    monkeypatch.setattr(abuse, "CLASSES", {"planted": (Attempt("one", body, ("ENOENT",)),)})
    assert status_of(["sandbox", "abuse", "--json"]) == code
    found = json.loads(capsys.readouterr().out)
    assert [row["verdict"] for row in found["results"]] == [verdict] * 2
    assert found["classes"]["planted"][verdict] == 2
    assert status_of(["sandbox", "abuse"]) == code
    assert "planted" in capsys.readouterr().out


def test_a_class_that_does_not_exist_is_bad_use(capsys):
    assert status_of(["sandbox", "abuse", "--class", "nonsense"]) == 2
    assert "file system" in capsys.readouterr().err
