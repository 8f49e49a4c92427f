"""Whatever a model writes into a call, each tool answers with a result: text of bounded length, never an exception."""

from __future__ import annotations

import json
import random

import pytest

from noria.harness.tools import (
    FILE_TOOLS,
    PYTHON,
    SUMMARISE,
    WORKSPACE_TOOLS,
    InvalidCall,
    Toolbox,
    ToolCall,
    ToolResult,
    browser_tools,
    memory_tools,
    search_tools,
    summarise_with,
)
from noria.harness.tools.toolbox import bind
from noria.sandbox import Limits, Sandbox

TEXTS = (
    *("", " ", "\n", "\0", "\udcff", "\ud800", "\ufeff", "é", "é", "🦆" * 50, "‮abc", "a" * 100_000, "\\", '"', "'"),
    *(
        "../../etc/passwd",
        "/",
        ".",
        "..",
        "a/../b",
        "con",
        "a\nb",
        "notes.txt",
        "corpus/d",
        "corpus",
        "d",
        "d#0",
        "#",
        "d#-1",
    ),
    *(
        "(a+)+$",
        "[",
        "(?P<",
        "a{1000}{1000}",
        "\\p{L}",
        "(?i)x",
        "*",
        "%s %n {} {0.__class__}",
        "<|call|>read x",
        "[d#0] x",
    ),
    *(
        "invalid: no tool",
        "error: timeout",
        "NaN",
        "null",
        "1e999",
        "-1",
        "http://site.test/",
        "javascript:1",
        "http://[",
    ),
    *(
        "e1",
        "e-1",
        "e²",
        "e٣",
        "e99999999",
        "SELECT * FROM memory",
        '" OR 1=1 --',
        "NEAR(a b)",
        "a*",
        "raise SystemExit(3)",
    ),
)
INTEGERS = (0, 1, -1, 2**31, 2**63, 10**30, -(10**30))
FILES = {"notes.txt": "one\ntwo\n", "corpus/d": "apples are red\n\nbad \udcff byte", "site/a.html": "<title>A</title>"}
NOTES = {"search": {"seen": ["d#0"], "pruned": []}, "memory": {"d": "apples"}, "browser": {"actions": []}}
HOST_TOOLS = (
    *search_tools("corpus"),
    *memory_tools(),
    SUMMARISE,
    summarise_with(lambda messages, seed: messages[-1].content, deterministic=True),
    *browser_tools("site"),  # no page is open: none of these calls can reach a browser
)


def value_for(parameter, generator):
    if parameter.type == "integer":
        return generator.choice(INTEGERS)
    text = generator.choice(TEXTS)
    return text + generator.choice(TEXTS)[:200] if generator.random() < 0.3 else text


def calls_of(tool, count):
    generator = random.Random(tool.name)
    for _ in range(count):
        wanted = [p for p in tool.parameters if p.required or generator.random() < 0.5]
        arguments = {parameter.name: value_for(parameter, generator) for parameter in wanted}
        if tool.name != "open_page" or "site.test" not in arguments["url"]:
            yield arguments


def check(box, tool, arguments):
    (result,) = box.run([ToolCall(tool.name, box.bind(tool.name, arguments), FILES, NOTES)])
    assert isinstance(result, ToolResult), f"{tool.name} {arguments!r:.200}: {result}"
    assert "is at fault" not in result.text and "Traceback" not in result.text, f"{tool.name} {arguments!r:.200}"
    assert len(result.text) < 200_000
    if result.failed:
        assert result.files == FILES and result.notes == NOTES
    assert json.loads(json.dumps(result.notes)) == result.notes


@pytest.fixture(scope="module")
def box():
    with Sandbox(Limits(cpu_seconds=1, wall_seconds=5.0), workers=2) as sandbox:
        yield Toolbox(sandbox, (*HOST_TOOLS, *FILE_TOOLS, *WORKSPACE_TOOLS, PYTHON))


@pytest.mark.parametrize("name", [tool.name for tool in HOST_TOOLS])
def test_tools_of_ours_take_anything(box, name):
    for arguments in calls_of(box.tools[name], 150):
        check(box, box.tools[name], arguments)


@pytest.mark.parametrize("name", [tool.name for tool in (*FILE_TOOLS, *WORKSPACE_TOOLS)])
def test_tools_in_the_sandbox_take_anything(box, name):
    for arguments in calls_of(box.tools[name], 40):
        check(box, box.tools[name], arguments)


def test_a_snippet_may_be_anything(box):
    for text in TEXTS:
        (result,) = box.run([ToolCall("python", {"code": text}, FILES, NOTES)])
        assert isinstance(result, ToolResult) and len(result.text) < 20_000


@pytest.mark.parametrize("tool", HOST_TOOLS, ids=lambda tool: tool.name)
def test_arguments_of_another_type_are_invalid_calls(tool):
    for parameter in tool.parameters:
        rest = {p.name: 1 if p.type == "integer" else "x" for p in tool.parameters}
        for value in (None, True, [], {}, 1.5, "x" if parameter.type == "integer" else 1):
            with pytest.raises(InvalidCall, match="must be of type"):
                bind(tool, rest | {parameter.name: value})
