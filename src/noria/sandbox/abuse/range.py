"""Where attempts are made: one sandbox, a secret on the host, and checks after each attempt that nothing came of it."""

from __future__ import annotations

import secrets
import socket
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from noria.sandbox.abuse.attempt import Attempt, Mode, source
from noria.sandbox.box import Candidate, Outcome, Sandbox
from noria.sandbox.bubblewrap import interpreter
from noria.sandbox.check import Kind
from noria.sandbox.limits import MEGABYTE, Limits, Profile

LIMITS = Limits(cpu_seconds=1, wall_seconds=3.0, memory_bytes=256 * MEGABYTE)
# held: denied as expected. escaped: it succeeded, or something came of it. unproven: it ended in another way, so it
# never reached its act. allowed: it succeeded where this kind of sandbox or this profile does not promise to stop it.
Verdict = Literal["held", "escaped", "unproven", "allowed"]
SEEN = "seen: "  # before what a program has seen, in its output
GIVEN = {"given": b"a file of the task\n"}
HONEST = """
import builtins, json, math, os, time
def f(x):
    time.sleep(0.02)
    return [sorted([x, 1, 2]), json.loads(json.dumps(math.sqrt(4))), hasattr(builtins, 'planted'), os.listdir('.')]
# {token}
"""
HONEST_VALUES = [[1, 2, 3], 2.0, False, []]


@dataclass(frozen=True)
class Result:
    """What became of an attempt: `seen` is how it ended, `why` says what came of it where it did not hold."""

    attempt: str
    mode: Mode
    verdict: Verdict
    seen: str
    why: str = ""


class Range:
    """Use as a context manager. Raises SandboxUnavailable where this machine does not give the `kind` asked for."""

    def __init__(self, kind: Kind | None = None, profile: Profile | None = None) -> None:
        self.box = Sandbox(LIMITS, workers=1, profile=profile, kind=kind)
        self._folder = tempfile.TemporaryDirectory(prefix="noria-abuse-")
        self._token = f"noria-secret-{secrets.token_hex(12)}"
        self.secret = Path(self._folder.name) / "secret.txt"
        self.secret.write_text(self._token)
        # Another program's socket, which needs no path.
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(f"\0{self.secret}")
        self._listener.listen(64)
        # A tmpfs or folder of the host that others can read: only the sandbox keeps a candidate from it.
        Path(self._folder.name).chmod(0o755)
        self._honest = Candidate(HONEST.replace("{token}", self._token), "f", [[3]])
        self._before = self._surroundings()
        self._check_others()

    def __enter__(self) -> Range:
        return self

    def __exit__(self, *_: object) -> None:
        self.box.close()
        self._listener.close()
        self._folder.cleanup()

    def make(self, attempt: Attempt, mode: Mode) -> Result:
        """One attempt, and whether anything came of it."""
        servers = self.box.servers
        outcome = self._run(attempt, mode)
        seen = _seen(outcome, mode)
        reached = seen == "escaped" or not self.hidden(outcome)
        why = "the act succeeded" if reached else self._consequence(outcome, seen, servers)
        if why:
            allowed = self._allowed(attempt) if seen == "escaped" else ""
            return Result(attempt.name, mode, "allowed" if allowed else "escaped", seen, allowed or why)
        if seen not in attempt.denied:
            return Result(
                attempt.name, mode, "unproven", seen, f"expected one of {', '.join(map(repr, attempt.denied))}"
            )
        return Result(attempt.name, mode, "held", seen)

    def hidden(self, outcome: Outcome) -> bool:
        """Whether the secret is in nothing that came out."""
        texts = [outcome.output, outcome.error, str(outcome.values), *outcome.files, *outcome.skipped]
        return not any(self._token in text for text in texts) and not any(
            self._token.encode() in content for content in outcome.files.values()
        )

    def _allowed(self, attempt: Attempt) -> str:
        """Why this sandbox does not promise to stop it; empty where it does."""
        if attempt.weaker and self.box.report.kind == "landlock":
            return attempt.weaker
        profile, field = self.box.profile, attempt.opened_by
        opened = field and getattr(profile, field) != getattr(Profile(), field)
        return f"the profile {profile.name!r} allows it" if opened else ""

    def _run(self, attempt: Attempt, mode: Mode) -> Outcome:
        if mode == "function":
            return self.box.run_function(Candidate(source(attempt), "f", [[str(self.secret)]]), GIVEN)
        call = f"{SEEN!r}.encode() + f({str(self.secret)!r}).encode('utf-8', 'replace')"
        program = f"{source(attempt)}\nos.write(1, b'\\n' + {call} + b'\\n')"
        return self.box.run_command([*interpreter(), "-c", program], GIVEN)

    def _consequence(self, outcome: Outcome, seen: str, servers: tuple[int, ...]) -> str:
        """What came of it that must not; empty for nothing."""
        if outcome.status in ("sandbox", "refused"):
            return f"the sandbox failed, so the attempt has no outcome: {outcome.error}"
        if seen != "out of memory" and self.box.servers != servers:
            return "the server ended"
        if strange := [path for path in outcome.files if not _is_plain(path)]:
            return f"paths came out that are none: {strange[:3]}"
        if len(outcome.output) > LIMITS.output_bytes:
            return "more output came out than allowed"
        if self._surroundings() != self._before:
            return "files of the host changed"
        return self._check_others()

    def _check_others(self) -> str:
        """An honest candidate still gets its own values, in an empty workspace."""
        outcome = self.box.run_functions([self._honest])[0]
        return "" if outcome.values == [HONEST_VALUES] else f"an honest candidate then got {outcome}"

    def _surroundings(self) -> Mapping[str, object]:
        usr = {name: Path("/usr", name).exists() for name in ("planted", "a")}
        folder = {path.name: path.read_bytes() for path in self.secret.parent.iterdir()}
        shown = {path: Path(path).stat() for path in ("/usr/bin/env", "/dev/null")}
        owned = {path: (info.st_mode, info.st_uid) for path, info in shown.items()}
        return usr | folder | owned | {"/planted": Path("/planted").exists()}


def _seen(outcome: Outcome, mode: Mode) -> str:
    if outcome.status == "timeout":
        return "timeout"
    if outcome.status == "crash":
        if "memory" in outcome.error:
            return "out of memory"
        return f"signal {-outcome.exit_code}" if outcome.exit_code < 0 else "crash"
    if outcome.status != "ok":
        return outcome.error.partition(":")[0] if outcome.error.partition(":")[0].isidentifier() else "error"
    if mode == "function":
        return str((outcome.values or [""])[0])
    said = [line for line in outcome.output.split("\n") if line.startswith(SEEN)]
    return said[-1].removeprefix(SEEN) if said else f"exit {outcome.exit_code}"


def _is_plain(path: str) -> bool:
    return (
        not path.startswith("/")
        and ".." not in PurePosixPath(path).parts
        and all(character >= " " for character in path)
    )
