"""Where traces lie, and with what they were made: a folder, or an artifact with its recorded configuration."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noria.artifacts import Artifact, Store, StoreError, Unknown

if TYPE_CHECKING:
    from noria.data.chat_tokenizer import ChatTokenizer
    from noria.harness.environments.environment import Environment
    from noria.harness.program import Program
    from noria.harness.rollout import Budget
    from noria.harness.traces import Entry


@dataclass(frozen=True)
class Place:
    folder: Path
    title: str
    artifact: Artifact | None = None
    inputs: tuple[Artifact, ...] = ()


@dataclass(frozen=True)
class Given:
    """What a user said of how the traces were made; None is found out."""

    tokenizer: Path | None = None
    environment: str | None = None
    program: str | None = None
    turns: int | None = None
    tokens_per_turn: int | None = None
    context: int | None = None

    def check(self) -> None:
        """Before any trace is read. Raises NotKnown with all that is wrong."""
        from noria.harness.code_file import CodeFileError
        from noria.harness.environment_file import load_environment
        from noria.harness.program import load_program

        loads: list[tuple[Any, Callable[[Any], object]]] = [
            (self.tokenizer, _tokenizer),
            (self.environment, load_environment),
            (self.program, load_program),
        ]
        wrong = []
        for value, load in loads:
            try:
                if value is not None:
                    load(value)
            except (NotKnown, CodeFileError) as error:
                wrong.append(str(error))
        if wrong:
            raise NotKnown("\n".join(wrong))


class NotKnown(Unknown):
    """What is needed to run a trace again is not recorded; the message names the option that tells it."""


def find_place(reference: str, store: Store) -> Place:
    """A folder; else the artifact of a key, alias or step's name. Raises Unknown, StoreError for a lost artifact."""
    if Path(reference).is_dir():
        return Place(_only(Path(reference)), reference)
    try:
        key = store.resolve(reference)
    except StoreError as error:
        raise Unknown(f"there is no folder {reference}, and as an artifact: {error}") from error
    artifact = store.get(key)
    if artifact is None:
        raise StoreError(f"{reference} points to {key}, which is not in {store.root}: run its recipe again")
    inputs = tuple(found for found in map(store.get, artifact.manifest.inputs.values()) if found)
    return Place(_only(artifact.content.parent), f"{artifact.manifest.step or reference} {key[:12]}", artifact, inputs)


def tokenizer_of(place: Place, given: Given) -> ChatTokenizer | None:
    """The one given, or the first that is found with the traces or with what they were made from. Raises NotKnown."""
    if given.tokenizer is not None:
        return _tokenizer(given.tokenizer)
    folders = [place.folder, *(one.content for one in (place.artifact, *place.inputs) if one)]
    found = next((folder for folder in folders if (folder / "tokenizer.json").is_file()), None)
    return None if found is None else _tokenizer(found)


def required_tokenizer(place: Place, given: Given) -> ChatTokenizer:
    found = tokenizer_of(place, given)
    if found is None:
        raise NotKnown(f"no tokenizer.json lies with {place.title}: give the model's folder with --tokenizer")
    return found


def _tokenizer(path: Path) -> ChatTokenizer:
    """Of a model's folder or its tokenizer.json, this project's or an imported model's."""
    from noria.data.chat_tokenizer import load_chat_tokenizer
    from noria.data.tokenizer import Tokenizer

    try:
        if path.is_dir() or path.name == "tokenizer.json":
            return load_chat_tokenizer(path if path.is_dir() else path.parent)
        return Tokenizer.load(path)
    except (OSError, ValueError) as error:
        raise NotKnown(
            f"no tokenizer for these traces: {error}. Give with --tokenizer this project's tokenizer.json, or an "
            "imported model's folder with tokenizer.json and tokenizer_config.json"
        ) from error


def environment_of(entry: Entry, given: Given) -> Environment:
    """The one given, or that whose name is the family of the entry's task."""
    from noria.harness.environment_file import environment_names, load_environment

    name = given.environment or (entry.task.family.removeprefix("agent_") if entry.task else "")
    if not given.environment and name not in environment_names():
        raise NotKnown(f"trace {entry.trace.id} is of family {name!r}, no environment's: give it with --environment")
    return load_environment(name)


def program_of(entry: Entry, place: Place, given: Given, environment: Environment) -> Program:
    """The one given; else that of the version which the trace recorded; else one of its name.

    Sources are looked for with the artifact, in the folder, among noria's programs and in the environment. The name is
    that in the trace, which only replays under the same one. Raises NotKnown where there is none.
    """
    from noria.harness import load_program
    from noria.harness.bootstrap import MARK, bootstrapped

    harness = entry.trace.harness
    name = harness.partition("@")[0]
    own = name.removesuffix(MARK)
    if given.program:
        loaded = load_program(given.program)
        found = [replace(loaded, name=own) if given.program.endswith(".py") else loaded]
    else:
        found = list(_programs(name, place, environment))
    if name != own:
        found = [program if program.bootstrap else bootstrapped(program) for program in found]
    if not found:
        raise NotKnown(
            f"trace {entry.trace.id} was made by the program {harness}, whose source lies neither with the traces "
            "(program.py) nor with noria: give it with --program"
        )
    return next((program for program in found if program.label == harness), found[0])


def _programs(name: str, place: Place, environment: Environment) -> Iterator[Program]:
    """Those that may have made traces of `name`: of this name, or of the one that it has without the bootstrap."""
    from noria.harness import load_program, program_from_source
    from noria.harness.bootstrap import MARK
    from noria.harness.program import PROGRAMS

    own = name.removesuffix(MARK)
    if source := _recorded(place).get("program_source"):
        yield program_from_source(source, own)
    for path in (place.folder / "program.py", place.folder.parent / "program.py"):
        if path.is_file():
            yield program_from_source(path.read_text(encoding="utf-8"), own, str(path))
    if own.isidentifier() and (PROGRAMS / f"{own}.py").is_file():
        yield load_program(own)
    if environment.harness.name in (own, name):
        yield environment.harness


def budget_of(place: Place, given: Given, environment: Environment) -> Budget:
    """Each bound: the one given, the one recorded with the artifact, the environment's."""
    recorded = _recorded(place)
    found: dict[str, Any] = {}
    for name in ("turns", "tokens_per_turn"):
        value = getattr(given, name) or recorded.get(name)
        found |= {name: value} if value else {}
    if recorded or given.context:
        found["context"] = given.context or _context(place)
    return replace(environment.budget, **found)


def _recorded(place: Place) -> dict[str, Any]:
    config = place.artifact.manifest.config if place.artifact else {}
    return config if isinstance(config, dict) else {}


def _context(place: Place) -> int:
    """The context of the model that made the traces, which bounded them; none where no model did."""
    from noria.harness.budget import UNBOUNDED

    for one in place.inputs:
        path = one.content / "config.json"
        if path.is_file():
            return int(json.loads(path.read_text(encoding="utf-8")).get("context", UNBOUNDED))
    return UNBOUNDED


def _only(folder: Path) -> Path:
    """The folder that holds all traces below `folder`, so that an index beside them is used."""
    from noria.harness.traces.sources import find_sources

    paths = {source.path.parent for source in find_sources(folder)}
    return paths.pop() if len(paths) == 1 else folder
