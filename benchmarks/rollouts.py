"""Multi-turn rollouts with tools: our loop against verifiers' on the same chat endpoint, and without any endpoint.

    python -m venv /tmp/verifiers && /tmp/verifiers/bin/pip install verifiers==0.1.14
    python -m benchmarks.rollouts --peer /tmp/verifiers/bin/python [--rollouts 256] [--repetitions 7] [--json]
    python -m benchmarks.rollouts --peer ... --quick        # smaller

`noria serve` answers in a process of its own, with a small model that was trained, in a few seconds, to call `read
apple` whatever it is told: so every rollout has the same turns on both sides, and what differs is the loop around
them. Both read the file with a plain Python function. verifiers' loop is that of its `StatefulToolEnv`, which runs in
the client's process; from 0.4 on it starts a process for each rollout, which is not measured here. The rows without an
endpoint are the way that training takes: token in, token out, the engine in the same process.

Exits with 1 where either side made another number of turns than asked for.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import Row, paired_row, show
from benchmarks.serve_load import server
from noria.data.tokenizer import Tokenizer, train_tokenizer
from noria.harness import (
    FILE_TOOLS,
    Budget,
    ChatPolicy,
    Endpoint,
    EndpointPolicy,
    Sampling,
    ScriptedPolicy,
    Toolbox,
    load_program,
    rollout,
    rollouts,
)
from noria.harness.policy import TokenPolicy
from noria.harness.tools import HostTool, Parameter, ToolCall, ToolResult, Tools
from noria.inference import Engine
from noria.model import ModelConfig, Transformer, load_model, save_model
from noria.posttraining.sft import SftConfig, fine_tune, trace_examples
from noria.sandbox import Sandbox
from noria.types import GraderRef, Message, Task, Trace

ROOT = Path(__file__).parent.parent
PROMPT, FILES = "find apple", {"apple": "see pear", "pear": "value 42"}
TURNS, TOKENS = 6, 16
CONTEXT = 256
CONCURRENT = 64  # rollouts at a time, on both sides


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True, help="the Python of an environment with verifiers==0.1.14")
    parser.add_argument("--rollouts", type=int, default=256)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="64 rollouts, 2 repetitions")
    options = parser.parse_args()
    if options.quick:
        options.rollouts, options.repetitions = 64, 2
    with tempfile.TemporaryDirectory(prefix="noria-rollouts-") as work:
        folder = write_model(Path(work) / "model")
        rows = measure(folder, Path(work), options.peer, options.rollouts, options.repetitions)
    show("rollouts", rows, as_json=options.json, quick=options.quick, turns=TURNS, concurrent=CONCURRENT)
    return 0


def measure(folder: Path, work: Path, python: str, count: int, repetitions: int) -> list[Row]:
    """Every way once a repetition, after one that warms up; each way's rollouts a second."""
    tokenizer, model = Tokenizer.load(folder / "tokenizer.json"), load_model(folder)
    with server(folder, work / "traffic.sqlite", CONCURRENT) as (serving, port), Sandbox() as box:
        url = f"http://127.0.0.1:{port}/v1"
        endpoint = EndpointPolicy(Endpoint(url, "model", connections=CONCURRENT))
        engine = TokenPolicy(Engine(model, tokenizer.end), tokenizer)
        plain, boxed = Toolbox(box, HOST_TOOLS), Toolbox(box, FILE_TOOLS)
        with endpoint, peer(python, url, work) as (name, ask, peer_process):
            ways: dict[str, Callable[[int], float]] = {
                "theirs": ask,
                "endpoint": lambda number: ours(endpoint, plain, number),
                "endpoint, sandbox": lambda number: ours(endpoint, boxed, number),
                "engine": lambda number: ours(engine, plain, number),
                "engine, sandbox": lambda number: ours(engine, boxed, number),
            }
            for way in ways.values():
                way(CONCURRENT)
            speeds: dict[str, list[float]] = {way: [] for way in ways}
            busy: dict[str, list[float]] = {way: [] for way in ways}
            for _ in range(repetitions):
                for way, run in ways.items():
                    processes = (serving.pid, peer_process if way == "theirs" else os.getpid())
                    before = processor_seconds(processes)
                    speeds[way].append(count / run(count))
                    busy[way].append((processor_seconds(processes) - before) / count)
    case = f"{count} rollouts of {TURNS} turns, {CONCURRENT} at a time"
    unit = "rollouts/s"

    def row(what: str, mine: str, other: str, peer_name: str) -> Row:
        return paired_row(f"{case}: {what}", peer_name, speeds[mine], speeds[other], unit, lower_is_better=False)

    work_row = paired_row(
        f"{case}: over the endpoint, client and server together",
        name,
        busy["endpoint"],
        busy["theirs"],
        "processor seconds a rollout",
        lower_is_better=True,
    )
    return [
        row("over the endpoint", "endpoint", "theirs", name),
        work_row,
        row("over the endpoint, tools in the sandbox", "endpoint, sandbox", "theirs", name),
        row("token in, token out", "engine", "theirs", f"{name} over the endpoint"),
        row("token in, token out", "engine", "endpoint", "ours over the endpoint"),
        row("token in, token out, tools in the sandbox", "engine, sandbox", "engine", "plain tools"),
    ]


def ours(policy: ChatPolicy, tools: Tools, count: int) -> float:
    """Seconds of `count` rollouts."""
    jobs = ((task(number), number) for number in range(count))
    budget = Budget(turns=TURNS, tokens_per_turn=TOKENS, context=CONTEXT)
    started = time.perf_counter()
    made = rollouts(
        jobs, policy, load_program("files"), budget=budget, tools=tools, sampling=Sampling(0.0), concurrent=CONCURRENT
    )
    check(count, sum(turns(trace) for trace in made))
    return time.perf_counter() - started


def processor_seconds(processes: Sequence[int]) -> float:
    """What they have used so far, in user and system mode; Linux tells it of any process."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in processes]
    return sum(int(each[11]) + int(each[12]) for each in fields) / os.sysconf("SC_CLK_TCK")


def turns(trace: Trace) -> int:
    return int(trace.facts["turns"])


def check(count: int, made: float) -> None:
    if made != count * TURNS:
        raise SystemExit(f"{count} rollouts made {made} turns, not {count * TURNS}: the two sides did not do the same")


@contextlib.contextmanager
def peer(python: str, url: str, work: Path) -> Iterator[tuple[str, Callable[[int], float], int]]:
    """Its name, what runs so many rollouts with it and gives the seconds, and its process."""
    order = {
        "url": url,
        "model": "model",
        "prompt": PROMPT,
        "files": FILES,
        "turns": TURNS,
        "tokens": TOKENS,
        "concurrent": CONCURRENT,
    }
    log = work / "peer.txt"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [python, str(ROOT / "benchmarks" / "rollouts_peer.py"), json.dumps(order)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1"},
        )

    def answer() -> dict[str, Any]:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith('{"'):
                return json.loads(line)
        raise SystemExit(f"the peer failed; is verifiers==0.1.14 where --peer says?\n{log.read_text()[-2000:]}")

    def ask(count: int) -> float:
        assert process.stdin is not None
        process.stdin.write(json.dumps({"rollouts": count}) + "\n")
        process.stdin.flush()
        done = answer()
        check(count, done["turns"])
        return done["seconds"]

    try:
        yield answer()["name"], ask, process.pid
    finally:
        process.kill()
        process.wait()


def task(number: int) -> Task:
    return Task(
        str(number), (Message("user", PROMPT),), GraderRef("none", "0"), "", "files", "agent", hidden={"files": FILES}
    )


def read(call: ToolCall) -> ToolResult:
    return ToolResult(call.files.get(call.arguments["name"], "error: no such file"), call.files, call.notes)


def listing(call: ToolCall) -> ToolResult:
    return ToolResult("\n".join(sorted(call.files)), call.files, call.notes)


HOST_TOOLS = (
    HostTool("read", "The content of the file.", (Parameter("name", "the file's name"),), read),
    HostTool("list", "The names of all files, sorted.", (), listing),
)


def write_model(folder: Path) -> Path:
    """A model that calls `read apple` at each turn, learnt from traces of a script that does."""
    tokenizer = train_tokenizer([f"{PROMPT} read list see value pear 42 error no such file"] * 20, 320)
    shape = {"vocab_size": tokenizer.vocab_size, "width": 64, "layers": 2, "heads": 2, "kv_heads": 1}
    model = Transformer(ModelConfig(**shape, ffn_width=128, context=CONTEXT), seed=0)
    script = ScriptedPolicy(lambda one: lambda messages, seed: "<|call|>read apple", tokenizer)
    budget = Budget(turns=TURNS, tokens_per_turn=TOKENS, context=CONTEXT)
    with Sandbox() as box:
        tools = Toolbox(box, HOST_TOOLS)
        (trace,) = rollout([task(0)], [0], script, None, load_program("files"), budget=budget, tools=tools)
    torch.set_num_threads(1)
    settings = SftConfig(epochs=60, batch_tokens=CONTEXT, learning_rate=5e-3)
    fine_tune(model, trace_examples(trace), settings, tokenizer.pad, 0)
    folder.mkdir(parents=True)
    source = folder.with_name("tokenizer.json")
    tokenizer.save(source)
    save_model(folder, model, source)
    return folder


if __name__ == "__main__":
    sys.exit(main())
