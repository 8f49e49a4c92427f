"""The example on the page of stage 6 runs and prints what the page says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from noria import grading

PAGE = Path(__file__).parents[2] / "docs" / "stage6_evaluation.md"


def test_the_example_prints_what_the_page_says(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    text = PAGE.read_text()
    monkeypatch.setattr(grading, "GRADERS", dict(grading.GRADERS))
    (source,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(source, {"__name__": "page"})
    (promised,) = re.findall(r"It prints `(.*?)`", text)
    assert capsys.readouterr().out.strip() == promised
