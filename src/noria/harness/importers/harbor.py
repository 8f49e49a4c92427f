"""Harbor task folders (task.toml, instruction.md, environment/, solution/, tests/) as tasks of ours, without Docker.

What our sandbox can stand in for is imported; the rest is refused with its reason. The container's folders become ours:
its working folder is the workspace at /work, /solution a folder in it, and /tests and /logs lie in /tmp while the
tests run; the texts of a task are rewritten accordingly. Nothing of Harbor needs to be installed.

As in Harbor, tests/test.sh judges the folder that the agent left, in a sandbox of its own, and writes a number to
/logs/verifier/reward.txt. That number is computed beside what the agent wrote: such a grader can be fooled by code that
the tests import. Harbor's format has no better; run what it gives through cheats of your own.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from noria.grading import Failure
from noria.harness.environments.environment import call, follow
from noria.harness.importers import harbor_packages
from noria.harness.importers.harbor_image import NotRunnable, read_dockerfile
from noria.harness.importers.imported import Imported, ImportRefused
from noria.harness.reward import Parts
from noria.harness.scripted import Policy
from noria.harness.tools import TERMINAL, WORKSPACE_TOOLS
from noria.harness.trace_grader import TraceGrader, trace_grader
from noria.sandbox import PROGRAMS, Limits, Outcome, Sandbox
from noria.sandbox.limits import MEGABYTE
from noria.types import GraderRef, Message, Task, Trace, digest

FAMILY, DOMAIN = "harbor", "agent"
LIMITS = Limits(
    cpu_seconds=120,
    wall_seconds=300.0,
    memory_bytes=1024 * MEGABYTE,
    file_bytes=8 * MEGABYTE,
    workspace_bytes=64 * MEGABYTE,
    open_files=256,
    processes=64,
    output_bytes=1 << 16,
)
BESIDE = ".harbor"  # where the tests arrive in the workspace; the agent's own files of that name are dropped
MOVED = {"/tests": "/tmp/tests", "/logs": "/tmp/logs", "/solution": f"/work/{BESIDE}/solution"}
NETWORK = re.compile(r"^\s*(?:sudo )?(apt-get|apt|curl|wget|pip3?|uv|uvx|npm|git clone)\b.*$", re.MULTILINE)
CTRF = re.compile(r"--ctrf[ =]\S+")  # a report for people, by a plugin that need not be here


def import_harbor(folder: Path) -> Imported:
    """The task in `folder`, or those in its subfolders. Raises ImportRefused where there is none."""
    found = sorted(path.parent for path in (*folder.glob("task.toml"), *folder.glob("*/task.toml")))
    if not found:
        raise ImportRefused(f"{folder}: neither it nor a folder in it has a task.toml")
    made = grader()
    tasks, refused = [], {}
    for one in found:
        try:
            tasks.append(_task(one, made.ref))
        except NotRunnable as reason:
            refused[one.name] = str(reason)
    return Imported(FAMILY, tuple(tasks), made, (*WORKSPACE_TOOLS, TERMINAL), gold, refused)


def gold(task: Task) -> Policy | None:
    """The task's own solution, run as one command of the terminal."""
    scripts: Mapping[str, str] = task.hidden["solution"]
    if "solve.sh" not in scripts:
        return None
    folder = MOVED["/solution"]
    written = [
        f"mkdir -p {folder}/{PurePosixPath(path).parent}; "
        f"cat > {folder}/{path} <<'{_mark(text)}'\n{text}\n{_mark(text)}"
        for path, text in sorted(scripts.items())
    ]
    command = "\n".join([*written, f"bash {folder}/solve.sh; code=$?; rm -rf /work/{BESIDE}; exit $code"])
    return follow([call("terminal", command), "done"])


def grader() -> TraceGrader:
    return trace_grader(FAMILY, _judge, sys.modules[__name__], harbor_packages, batch=True)


# -- reading --


def _task(folder: Path, ref: GraderRef) -> Task:
    config = _config(folder)
    image = read_dockerfile(folder / "environment")
    moves = {str(image.workdir): "/work", **MOVED}
    files = {}
    for path, source in image.files.items():
        if not path.is_relative_to(image.workdir):
            raise NotRunnable(f"environment/Dockerfile: {path} lies outside the working folder {image.workdir}")
        files[str(path.relative_to(image.workdir))] = source.read_bytes().decode("utf-8", "surrogateescape")
    if sum(map(len, files.values())) > LIMITS.workspace_bytes // 4 or any(
        len(text) > Limits().file_bytes for text in files.values()
    ):
        raise NotRunnable("environment: its files are larger than a workspace of the sandbox")
    tests, solution = _texts(folder / "tests", moves), _texts(folder / "solution", moves)
    if "test.sh" not in tests:
        raise NotRunnable("tests/test.sh is missing")
    for name, text in (("tests/test.sh", tests["test.sh"]), ("solution/solve.sh", solution.get("solve.sh", ""))):
        if wants := NETWORK.search(text):
            raise NotRunnable(f"{name} needs the network: {wants[0].strip()[:80]}")
    instruction = _moved((folder / "instruction.md").read_text(encoding="utf-8"), moves)
    name = config.get("task", {}).get("name", folder.name)
    hidden = {"files": files, "tests": tests, "solution": solution, "name": name}
    hidden["environment"] = config.get("verifier", {}).get("env", {})
    return Task(
        id=digest(FAMILY, json.dumps(hidden, sort_keys=True), instruction),
        messages=(Message("user", instruction.strip()),),
        grader=ref,
        answer="done",
        family=FAMILY,
        domain=DOMAIN,
        hidden=hidden,
    )


def _config(folder: Path) -> dict[str, Any]:
    """task.toml. Raises NotRunnable for what it asks for and we have not."""
    try:
        config = tomllib.loads((folder / "task.toml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise NotRunnable(f"task.toml can't be read: {error}") from error
    environment, verifier = config.get("environment", {}), config.get("verifier", {})
    reasons = {
        "several steps": config.get("steps"),
        "a graphics card": environment.get("gpus") or environment.get("tpu"),
        "Windows": environment.get("os", "linux") != "linux",
        "MCP servers of its own": environment.get("mcp_servers"),
        "a service that must be healthy": environment.get("healthcheck"),
        "variables of its environment": environment.get("env"),
        "a container of its own for the tests": verifier.get("environment_mode") == "separate",
        "the network for its tests": verifier.get("network_mode") in ("public", "allowlist"),
        "secrets of the host": any("$" in str(value) for value in verifier.get("env", {}).values()),
    }
    for reason, asked in reasons.items():
        if asked:
            raise NotRunnable(f"task.toml: {reason}")
    if not (folder / "instruction.md").is_file():
        raise NotRunnable("instruction.md is missing")
    return config


def _texts(folder: Path, moves: Mapping[str, str]) -> dict[str, str]:
    """path -> text of every file, with the container's paths as ours."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts):
        text = path.read_bytes().decode("utf-8", "surrogateescape")
        found[path.relative_to(folder).as_posix()] = _moved(text, moves)
    return found


def _moved(text: str, moves: Mapping[str, str]) -> str:
    names = "|".join(re.escape(path) for path in sorted(moves, key=len, reverse=True))
    return re.sub(rf"(?<![\w./~-])({names})(?![\w-])", lambda found: moves[found[1]], text)


def _mark(text: str) -> str:
    return f"END_{digest(text)[:12]}"


# -- grading --


def _judge(tasks: Sequence[Task], traces: Sequence[Trace]) -> list[Parts | Failure]:
    with Sandbox(LIMITS, profile=PROGRAMS) as box:
        return [_verify(box, task, trace) for task, trace in zip(tasks, traces, strict=True)]


def _verify(box: Sandbox, task: Task, trace: Trace) -> Parts | Failure:
    left = {**task.hidden["files"], **trace.workspace}
    files = {path: text for path, text in left.items() if text is not None and PurePosixPath(path).parts[0] != BESIDE}
    files |= {f"{BESIDE}/tests/{path}": text for path, text in task.hidden["tests"].items()}
    files[f"{BESIDE}/tests/test.sh"] = _without_report(task.hidden["tests"]["test.sh"])
    raw = {path: text.encode("utf-8", "surrogateescape") for path, text in files.items()}
    raw |= {f"{BESIDE}/packages/{path}": content for path, content in harbor_packages.for_tests().items()}
    outcome = box.run_command(["bash", "-c", _script(task.hidden["environment"])], raw)
    if outcome.status in ("timeout", "sandbox"):
        return Failure(outcome.status, outcome.error)
    value = _reward(outcome)
    said = outcome.output[-500:]
    if value is None:
        return Failure("crash", f"the tests wrote no reward ({outcome.status}): {said or outcome.error}")
    return Parts(value if trace.outcome == "finished" else 0.0, evidence=f"{trace.outcome}: {said}")


def _script(variables: Mapping[str, str]) -> str:
    import shlex

    interpreter = shlex.quote(os.path.realpath(sys.executable))
    lines = [
        f"mv {BESIDE} /tmp/beside && mv /tmp/beside/tests /tmp/tests",
        "mkdir -p /tmp/logs/verifier /tmp/logs/agent /tmp/logs/artifacts /tmp/bin",
        # -P: what the agent left in the working folder does not shadow modules of the tests.
        f"for name in python python3; do printf '#!/bin/sh\\nexec {interpreter} -P \"$@\"\\n' > /tmp/bin/$name; done",
        f"printf '#!/bin/sh\\nexec {interpreter} -P -m pytest -p no:cacheprovider \"$@\"\\n' > /tmp/bin/pytest",
        "chmod +x /tmp/bin/*",
        "export PATH=/tmp/bin:/usr/bin:/bin PYTHONPATH=/tmp/beside/packages HOME=/tmp",
        *(f"export {name}={shlex.quote(str(value))}" for name, value in variables.items()),
        "bash /tmp/tests/test.sh 2>&1",
        f"mkdir -p {BESIDE} && cp /tmp/logs/verifier/reward.* {BESIDE}/",
    ]
    return "\n".join(lines)


def _without_report(script: str) -> str:
    return script if harbor_packages.has_report_plugin() else CTRF.sub("", script)


def _reward(outcome: Outcome) -> float | None:
    """reward.txt's number, or reward.json's `reward`, or the mean of its numbers."""
    try:
        if (text := outcome.files.get(f"{BESIDE}/reward.txt")) is not None:
            return float(text.decode())
        if (text := outcome.files.get(f"{BESIDE}/reward.json")) is not None:
            given = {name: float(value) for name, value in json.loads(text).items()}
            return given["reward"] if "reward" in given else sum(given.values()) / len(given)
    except (ValueError, TypeError, AttributeError, ZeroDivisionError):
        return None
    return None
