"""What a Harbor task's Dockerfile asks for, as far as our sandbox can give it: a folder, files in it, known programs.

There is no image here: the sandbox shows the host's /usr. So a build step that would change anything but files is
refused, with its line, unless it only asks for what is there already.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

# They say how a container starts, or speak to people; no tool call sees them.
WITHOUT_EFFECT = frozenset({"CMD", "ENTRYPOINT", "LABEL", "MAINTAINER", "EXPOSE", "ARG", "USER", "SHELL", "STOPSIGNAL"})
HARMLESS_VARIABLES = re.compile(r"(PYTHON\w+|PIP_\w+|DEBIAN_FRONTEND|LANG|LC_\w+|TZ)$")
TEST_PACKAGES = frozenset({"pytest", "pytest-json-ctrf"})  # the grader brings what it has of these
SYSTEM = re.compile(r"(^|/)(python|ubuntu|debian|buildpack-deps)(:|@|$)")
QUIET = re.compile(r"(apt-get update|apt-get clean|rm -rf? /var/lib/apt/lists/\S*|mkdir( -p)? \S+( \S+)*|true)$")


class NotRunnable(ValueError):
    """The task needs what the sandbox has not; the message says what."""


@dataclass(frozen=True)
class Image:
    """`workdir` is where agents start; `files` maps absolute paths in the image to files of the build context."""

    workdir: PurePosixPath
    files: dict[PurePosixPath, Path]


def read_dockerfile(environment: Path) -> Image:
    """Raises NotRunnable."""
    dockerfile = environment / "Dockerfile"
    others = sorted(path.name for path in environment.glob("*compose*"))
    if others:
        raise NotRunnable(f"environment/{others[0]}: several containers")
    if not dockerfile.is_file():
        raise NotRunnable("environment/Dockerfile is missing: its image would have to be pulled")
    workdir: PurePosixPath | None = None
    files: dict[PurePosixPath, Path] = {}
    for number, word, rest in _instructions(dockerfile.read_text(encoding="utf-8")):
        where = f"environment/Dockerfile:{number}"
        if word == "FROM":
            if not SYSTEM.search(rest.split()[0]):
                raise NotRunnable(f"{where}: the image {rest.split()[0]} is no plain Debian, Ubuntu or Python")
        elif word == "WORKDIR":
            workdir = (workdir or PurePosixPath("/")) / rest.strip("\"'")
        elif word in ("COPY", "ADD"):
            files |= _copied(environment, rest, workdir, where)
        elif word == "ENV":
            name = re.split(r"[ =]", rest, maxsplit=1)[0]
            if not HARMLESS_VARIABLES.match(name):
                raise NotRunnable(f"{where}: the variable {name}")
        elif word == "RUN":
            for command in re.split(r"\s*(?:&&|;)\s*", rest):
                if reason := _not_here(command.strip()):
                    raise NotRunnable(f"{where}: {reason}")
        elif word not in WITHOUT_EFFECT:
            raise NotRunnable(f"{where}: {word}")
    if workdir is None or workdir == PurePosixPath("/"):
        raise NotRunnable("environment/Dockerfile: no WORKDIR, so that agents work in /")
    return Image(workdir, files)


def _instructions(text: str) -> Iterator[tuple[int, str, str]]:
    """(line, instruction, the rest) with continued lines joined."""
    held, began = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("#") or not (line.strip() or held):
            continue
        began = began or number
        held += line.rstrip().removesuffix("\\") + " "
        if line.rstrip().endswith("\\"):
            continue
        word, _, rest = held.strip().partition(" ")
        yield began, word.upper(), rest.strip()
        held, began = "", 0


def _copied(environment: Path, rest: str, workdir: PurePosixPath | None, where: str) -> dict[PurePosixPath, Path]:
    *sources, target = [word for word in shlex.split(rest) if not word.startswith("--chown")]
    if not sources or any(word.startswith(("--", "[", "http")) for word in sources):
        raise NotRunnable(f"{where}: COPY {rest}")
    into = (workdir or PurePosixPath("/")) / target
    found: dict[PurePosixPath, Path] = {}
    for source in sources:
        paths = (
            sorted(environment.glob(source.strip("/").removeprefix("./") or "*")) if source != "." else [environment]
        )
        if not paths:
            raise NotRunnable(f"{where}: {source} is not in the build context")
        for path in paths:
            if path.is_dir():
                inside = (one for one in sorted(path.rglob("*")) if one.is_file() and one != environment / "Dockerfile")
                found |= {into / one.relative_to(path).as_posix(): one for one in inside}
            else:
                is_folder = target.endswith(("/", ".")) or len(sources) > 1 or into == workdir
                found[into / path.name if is_folder else into] = path
    return found


def _not_here(command: str) -> str:
    """Why a build command can't be taken as done; empty where it asks for nothing that is not here."""
    if not command or QUIET.match(command):
        return ""
    words = [word for word in shlex.split(command) if not word.startswith("-")]
    if words[:2] in (["apt-get", "install"], ["apt", "install"]):
        absent = [word for word in words[2:] if not shutil.which(word) and word not in ("ca-certificates",)]
        return f"the system package {absent[0]}" if absent else ""
    if words[:2] in (["pip", "install"], ["pip3", "install"]) or words[1:4] == ["-m", "pip", "install"]:
        wanted = [re.split(r"[=<>~!\[;]", word)[0].lower() for word in words[words.index("install") + 1 :]]
        absent = [word for word in wanted if word not in TEST_PACKAGES and not _is_standard(word)]
        return f"the Python package {absent[0]}" if absent else ""
    return f"RUN {command[:80]}"


def _is_standard(package: str) -> bool:
    return package in ("pip", "setuptools", "wheel") and importlib.util.find_spec(package) is not None
