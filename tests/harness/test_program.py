"""Program files: what loads, and what is said of those that do not."""

from __future__ import annotations

import pytest

from noria.harness import ProgramError, load_program


def test_programs_that_come_with_noria_load_by_name_and_carry_their_digest():
    plain, files = load_program("plain"), load_program("files")
    assert plain.version != files.version and files.label.startswith("files@")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("class Harness:\n  def view(self, state): return ()\n", "no method tools, observe"),
        ("x = 1\n", "no class Harness"),
        ("class Harness:\n  def view(self state)", "mine.py:2: SyntaxError"),
        ("import math\n\n1 / 0\n", "mine.py:3: ZeroDivisionError"),
        ("import json\n\njson.loads('{')\n", "mine.py:3: JSONDecodeError"),
    ],
)
def test_a_file_that_is_no_program_is_refused_with_its_line(tmp_path, source, message):
    (tmp_path / "mine.py").write_text(source)
    with pytest.raises(ProgramError, match=message):
        load_program(tmp_path / "mine.py")


def test_a_program_that_is_not_there_names_those_that_are():
    with pytest.raises(
        ProgramError, match=r"^no harness program 'nothing': give a .py file, or .*files, memory, .*plain"
    ):
        load_program("nothing")


def test_a_program_file_that_is_not_there_is_told_by_its_path_once():
    with pytest.raises(ProgramError, match=r"^gone/mine\.py: No such file or directory$"):
        load_program("gone/mine.py")
