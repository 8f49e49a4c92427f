"""docs/reading.md promises short paths: each file it names exists, and a path is at most ten files and 1,500 lines."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_every_reading_path_is_short():
    sections = (ROOT / "docs" / "reading.md").read_text().split("\n## ")[1:]
    assert sections
    for section in sections:
        files = [ROOT / "src" / "noria" / name for name in re.findall(r"^\| `([\w/.]+)` \|", section, re.MULTILINE)]
        assert 3 <= len(files) <= 10, section.splitlines()[0]
        assert sum(len(file.read_text().splitlines()) for file in files) <= 1500, section.splitlines()[0]
