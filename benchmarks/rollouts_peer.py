"""The peer of `benchmarks/rollouts.py`, run by the Python of its environment: verifiers' loop on a chat endpoint.

Imports nothing of this project. Speaks lines of JSON: its name, then an answer to each order {"rollouts": N}. The
environment is verifiers' StatefulToolEnv with two tools over a small workspace, plain functions, as ours.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import os
import sys
import time
from typing import Any

import verifiers as vf
from datasets import Dataset
from verifiers.types import ClientConfig


class Files(vf.StatefulToolEnv):
    """Each rollout has the workspace of its task."""

    def __init__(self, files: dict[str, str], **more: Any) -> None:
        self.files = files
        super().__init__(tools=[], **more)
        self.add_tool(read, args_to_skip=["files"])
        self.add_tool(listing, args_to_skip=["files"])

    def update_tool_args(
        self, tool_name: str, tool_args: dict, messages: Any, state: Any, **more: Any
    ) -> dict[str, Any]:
        return {**tool_args, "files": self.files}


def read(name: str, files: dict) -> str:
    """The content of the file.

    Args:
        name: the file's name
    """
    return files.get(name, "error: no such file")


def listing(files: dict) -> str:
    """The names of all files, sorted."""
    return "\n".join(sorted(files))


async def run(env: Files, order: dict[str, Any], task: dict[str, Any], client: ClientConfig) -> dict[str, Any]:
    """Seconds and turns of the rollouts ordered."""
    inputs = [
        {"prompt": [{"role": "user", "content": task["prompt"]}], "example_id": number, "answer": ""}
        for number in range(order["rollouts"])
    ]
    started = time.perf_counter()
    done = await env.generate(
        inputs,
        client=client,
        model=task["model"],
        sampling_args={"temperature": 0.0, "max_tokens": task["tokens"]},
        max_concurrent=task["concurrent"],
        state_columns=["trajectory"],
        independent_scoring=True,
        on_progress=lambda *_: None,
    )
    seconds = time.perf_counter() - started
    outputs = done["outputs"] if isinstance(done, dict) else done.outputs
    failed = [output for output in outputs if output.get("error")]
    if failed:
        raise RuntimeError(f"{len(failed)} rollouts failed, the first with {failed[0].get('error')}")
    return {"seconds": seconds, "turns": sum(len(output["trajectory"]) for output in outputs)}


def main() -> None:
    task: dict[str, Any] = json.loads(sys.argv[1])
    os.environ["ROLLOUTS_KEY"] = "none"
    client = ClientConfig(api_base_url=task["url"], api_key_var="ROLLOUTS_KEY", max_retries=0, connect_timeout=60.0)
    dataset = Dataset.from_list([{"question": task["prompt"], "answer": ""}])
    env = Files(task["files"], dataset=dataset, max_turns=task["turns"], score_rollouts=False)
    print(json.dumps({"name": f"verifiers {importlib.metadata.version('verifiers')}"}), flush=True)
    loop = asyncio.new_event_loop()
    for line in sys.stdin:
        answer = loop.run_until_complete(run(env, json.loads(line), task, client))
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
