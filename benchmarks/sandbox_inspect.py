"""A peer of `benchmarks/sandbox.py`, run by the Python of its environment: commands in Inspect's local sandbox.

Imports nothing of this project. Speaks lines of JSON: its name, then the seconds of each order {commands, at_once}.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import sys
import time


async def main() -> None:
    from inspect_ai.util._sandbox.local import LocalSandboxEnvironment

    print(json.dumps({"name": f"inspect_ai {importlib.metadata.version('inspect_ai')}, local"}), flush=True)
    box = LocalSandboxEnvironment()
    try:
        for line in sys.stdin:
            order = json.loads(line)
            gate = asyncio.Semaphore(order["at_once"])

            async def run(command: list[str], gate: asyncio.Semaphore = gate) -> str:
                async with gate:
                    return (await box.exec(command, timeout=10, concurrency=False)).stdout

            started = time.perf_counter()
            outputs = await asyncio.gather(*(run(command) for command in order["commands"]))
            print(json.dumps({"seconds": time.perf_counter() - started, "outputs": outputs}), flush=True)
    finally:
        box.directory.cleanup()


asyncio.run(main())
