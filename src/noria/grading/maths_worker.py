"""A process that compares expressions with math-verify: one JSON line in ({"gold", "answer"}), one out ({"equal"}).

Run by path and not imported: parsing an answer that a model wrote can take forever or all memory, and math-verify's own
timeout is a signal, which works in no thread but the main one. The parent stops the process when its time is up.
"""

from __future__ import annotations

import json
import logging
import resource
import sys

MEMORY_BYTES = 2 << 30


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    logging.disable(logging.WARNING)  # math-verify warns on every call that its own timeout is off
    import math_verify

    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        gold = math_verify.parse(f"${request['gold']}$", parsing_timeout=None)
        answer = math_verify.parse(f"${request['answer']}$", parsing_timeout=None)
        equal = bool(gold and answer) and math_verify.verify(gold, answer, timeout_seconds=None)
        print(json.dumps({"equal": equal, "gold_parsed": bool(gold)}), flush=True)


if __name__ == "__main__":
    main()
