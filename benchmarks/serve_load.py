"""Many clients at once on `noria serve`: is every reply the right one, is none lost, does the memory stay flat?

    python -m benchmarks.serve_load [--clients 200] [--seconds 300] [--model DIR] [--json]
    python -m benchmarks.serve_load --quick         # under a minute

A server in a process of its own (a small random model, unless --model names another) is asked each prompt alone,
greedily; those replies are the reference. Then all clients ask at once, without a pause. Of their requests 15% are left
in the middle and 15% are malformed; the server takes on fewer than the clients ask for, so some get a 429 and return.
In the end the server must have no reply in flight, must be well, and must stop when told to.

Exits with 1 where a reply was lost, wrong or another prompt's, a malformed body not refused with a 4xx, the log lacks a
reply, or resident memory grew by more than 5% from the second fifth of the run to the last (judged in runs of a minute
or more).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks.load_clients import Tally, Target, client, read_whole
from benchmarks.report import Row, show
from noria.data.tokenizer import train_tokenizer
from noria.deployment.traffic import read_replies
from noria.inference.metrics import resident_bytes
from noria.model import ModelConfig, Transformer, save_model

ROOT = Path(__file__).parent.parent
MAX_TOKENS = 48
GROWTH_LIMIT = 1.05
WARM_SECONDS = 60.0  # pools, compiled kernels and caches fill for a while: a shorter run does not judge memory
SAMPLE_SECONDS = 0.5
WORDS = (
    "the quick brown fox jumps over a lazy dog while seven old wizards quietly mix strong tea near cold hills".split()
)


@dataclass
class Memory:
    """Resident bytes of the server over the run, and seconds since its start."""

    seconds: list[float] = field(default_factory=list)
    resident: list[float] = field(default_factory=list)

    def fifth(self, which: int) -> float:
        """Mean of one fifth of the run."""
        return mean(self.resident[len(self.resident) * which // 5 : len(self.resident) * (which + 1) // 5])

    def slope(self) -> float:
        """Bytes a minute, by least squares over the last four fifths."""
        skip = len(self.seconds) // 5
        return 60 * slope(self.seconds[skip:], self.resident[skip:])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--model", type=Path, help="a model folder; a small random model if not given")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="20 seconds, 60 prompts")
    options = parser.parse_args()
    if options.quick:
        options.seconds, options.prompts = 20.0, 60
    with tempfile.TemporaryDirectory(prefix="noria-serve-load-") as work:
        folder = options.model or write_model(Path(work) / "model")
        rows, failures = measure(folder, Path(work), options.clients, options.seconds, options.prompts)
    show("serve_load", rows, as_json=options.json, quick=options.quick, clients=options.clients, failures=failures)
    for failure in failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    return 1 if failures else 0


def measure(folder: Path, work: Path, clients: int, seconds: float, prompts: int) -> tuple[list[Row], list[str]]:
    """The rows, and what went wrong in words."""
    log, most_live = work / "traffic.sqlite", max(1, clients * 3 // 4)
    with server(folder, log, most_live) as (process, port):
        asked = [f"{number}: " + " ".join(WORDS[number % 7 :: number % 3 + 1]) for number in range(prompts)]
        target = Target("127.0.0.1", port, "model", asked, [], MAX_TOKENS)
        references, alone = reference_replies(target)
        target = Target(target.host, port, target.model, asked, references, MAX_TOKENS)
        started = time.monotonic()
        tally, memory = asyncio.run(load(target, clients, seconds, process.pid))
        together = tally.tokens / (time.monotonic() - started)
        idle = wait_for_idle(port)
        health, _ = get(port, "/health")
        process.send_signal(signal.SIGTERM)
        stopped = process.wait(60)
    logged = len({reply.prompt_digest for reply in read_replies(log)}), len(read_replies(log))
    rows = table(tally, memory, together / alone, len(set(references)), prompts, logged[1])
    return rows, failures_of(tally, memory, idle, health, stopped, logged[1], prompts)


def table(tally: Tally, memory: Memory, speed: float, distinct: int, prompts: int, logged: int) -> list[Row]:
    count, alone = tally.counts, "the same server, one client"
    answered = sum(count[outcome] for outcome in ("right", "wrong", "mixed", "cut"))

    def share(case: str, peer: str, ours: float, theirs: float) -> Row:
        return Row(case, peer, ours, theirs, "requests", ours / theirs if theirs else None, n=int(theirs))

    first, early, late = memory.fifth(0) / 2**20, memory.fifth(1), memory.fifth(4)
    return [
        share("answered / asked", "asked", answered, count["asked"]),
        share("replies equal to the one alone", alone, count["right"], answered),
        share("malformed refused with a 4xx", "malformed", count["malformed, answered"], count["malformed"]),
        share("replies in the log / answered", "answered and prompts alone", logged, answered + prompts),
        Row("distinct replies of distinct prompts", "prompts", distinct, prompts, "replies", distinct / prompts),
        Row("clients that left", "-", count["left"], 0, "requests"),
        Row("429, then asked again", "-", count["full"], 0, "requests"),
        Row("resident memory, last fifth", "second fifth", late / 2**20, early / 2**20, "MiB", early / late),
        *(
            Row(f"resident memory, fifth {which + 1}", "first fifth", memory.fifth(which) / 2**20, first, "MiB")
            for which in range(1, 5)
        ),
        Row("slope of resident memory", "flat", memory.slope() / 2**20, 0, "MiB/minute", n=len(memory.seconds)),
        Row("tokens/s of all clients", alone, speed, 1, "of one client's", speed),
    ]


def failures_of(
    tally: Tally, memory: Memory, idle: bool, health: int, stopped: int, logged: int, prompts: int
) -> list[str]:
    """What must not be. Replies whose client left are logged too, so the log may hold more than were answered."""
    count = tally.counts
    bad = ("lost", "refused", "wrong", "mixed", "cut", "malformed, wrong status", "malformed, wrong answer")
    found = [f"{count[outcome]} {outcome}" for outcome in bad if count[outcome]]
    if not count["right"]:
        found.append("no reply was right")
    if count["malformed"] != count["malformed, answered"]:
        found.append(f"{count['malformed'] - count['malformed, answered']} malformed requests without an answer")
    if logged < count["right"] + prompts:
        found.append(f"the log has {logged} replies of at least {count['right'] + prompts}")
    judged = memory.seconds[-1] >= WARM_SECONDS
    if judged and memory.fifth(4) > GROWTH_LIMIT * memory.fifth(1):
        found.append(f"memory grew from {memory.fifth(1) / 2**20:.1f} to {memory.fifth(4) / 2**20:.1f} MiB")
    if not idle:
        found.append("replies were still in flight after every client had gone")
    if health != 200:
        found.append(f"/health answered {health}")
    if stopped not in (0, -signal.SIGTERM):
        found.append(f"the server ended with status {stopped}")
    return [*found, *tally.problems]


async def load(target: Target, clients: int, seconds: float, process: int) -> tuple[Tally, Memory]:
    """All clients at once, and the server's memory meanwhile."""
    tally, memory, clock = Tally(), Memory(), asyncio.get_running_loop().time
    started = clock()

    async def watch() -> None:
        while True:
            memory.seconds.append(clock() - started)
            memory.resident.append(resident_bytes(process))
            await asyncio.sleep(SAMPLE_SECONDS)

    watching = asyncio.create_task(watch())
    await asyncio.gather(*(client(target, seed, tally, started + seconds) for seed in range(clients)))
    watching.cancel()
    return tally, memory


def reference_replies(target: Target) -> tuple[list[str], float]:
    """The reply to each prompt with nobody else there, and tokens a second."""
    replies, tokens, started = [], 0, time.monotonic()
    connection = http.client.HTTPConnection(target.host, target.port, timeout=120)
    for prompt in range(len(target.prompts)):
        body = json.dumps(target.body(prompt, stream=False))
        connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        text, used = read_whole(connection.getresponse().read())
        replies.append(text or "")
        tokens += used
    connection.close()
    return replies, tokens / (time.monotonic() - started)


@contextlib.contextmanager
def server(folder: Path, log: Path, most_live: int) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """`noria serve` in a process of its own, and its port."""
    command = [sys.executable, "-m", "noria", "serve", str(folder), "--port", "0", "--name", "model"]
    limits = ["--max-live", str(most_live), "--traffic", str(log), "--store", str(log.parent / "store")]
    path = os.pathsep.join(map(str, (ROOT / "src", os.environ.get("PYTHONPATH", ""))))
    with (log.parent / "server.txt").open("w") as said:
        process = subprocess.Popen(
            [*command, *limits], stdout=subprocess.PIPE, stderr=said, text=True, env={**os.environ, "PYTHONPATH": path}
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if "http://" not in line:
            raise SystemExit(f"the server did not start:\n{(log.parent / 'server.txt').read_text()[-2000:]}")
        yield process, int(line.partition("http://127.0.0.1:")[2].split()[0])
    finally:
        process.kill()
        process.wait()


def wait_for_idle(port: int, patience_seconds: float = 30.0) -> bool:
    """Whether the server comes to rest: requests of clients that have left end at its next step."""
    deadline = time.monotonic() + patience_seconds
    while time.monotonic() < deadline:
        if "\nnoria_choices_live 0\n" in get(port, "/metrics")[1]:
            return True
        time.sleep(0.1)
    return False


def get(port: int, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path)
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    return response.status, text


def write_model(folder: Path) -> Path:
    """A small random model whose replies differ from prompt to prompt."""
    tokenizer = train_tokenizer([" ".join(WORDS) + " 0123456789: "] * 20, 400)
    shape = {"vocab_size": tokenizer.vocab_size, "width": 64, "layers": 2, "heads": 2, "kv_heads": 1}
    model = Transformer(ModelConfig(**shape, ffn_width=128, context=256), seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    folder.mkdir(parents=True)
    source = folder.with_name("tokenizer.json")
    tokenizer.save(source)
    save_model(folder, model, source)
    return folder


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Of the least-squares line through (xs, ys)."""
    middle, centre = mean(xs), mean(ys)
    spread = sum((x - middle) ** 2 for x in xs)
    return sum((x - middle) * (y - centre) for x, y in zip(xs, ys, strict=True)) / spread if spread else 0.0


if __name__ == "__main__":
    sys.exit(main())
