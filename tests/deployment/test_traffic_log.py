"""The traffic log: consent decides what is written, nothing grows without bound, nothing sent is lost."""

from __future__ import annotations

import http.client
import json
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from noria.deployment.traffic import (
    Retention,
    TrafficError,
    TrafficLog,
    export_jsonl,
    read_jsonl,
    read_replies,
)
from noria.inference.serving import ServedChoice, ServedRequest
from noria.types import Message
from tests.tiny_model import write_tiny_model

SERVER = """
import sys
from pathlib import Path
from noria.deployment.gateway import GatewayOptions, serve
serve(Path(sys.argv[1]), GatewayOptions(Path(sys.argv[2]), port=0), on_ready=lambda url: print(url, flush=True))
"""


def redact(text: str) -> tuple[str, dict[str, int]]:
    return text.replace("a@b.example", "<EMAIL>"), {"email": text.count("a@b.example")}


def served(
    request_id: str, consent: str = "train", user: str = "u", text: str = "fine", ask: str = "hello"
) -> ServedRequest:
    choice = ServedChoice(text, (1, 2), (-0.5, -0.25), "stop")
    sampling = {"seed": 1, "stop": ["secret"]}
    return ServedRequest(request_id, user, consent, (Message("user", ask),), sampling, 5, (choice,), 0.1, 0.05)


def log_at(path: Path, **options: object) -> TrafficLog:
    return TrafficLog(path, "policy", redact, **options)  # type: ignore[arg-type]


def test_without_consent_no_text_reaches_the_disk(tmp_path: Path) -> None:
    log = log_at(tmp_path / "t.sqlite")
    log.record(served("r", "none", user="jane@doe.example", text="my-own-words", ask="another-phrase"))
    log.close()
    raw = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    for text in (b"my-own-words", b"another-phrase", b"jane", b"secret"):
        assert text not in raw
    row = read_replies(tmp_path / "t.sqlite")[0]
    assert (row.messages, row.reply, row.token_ids, row.logprobs, row.prompt_digest) == (None,) * 5
    assert row.completion_tokens == 2


def test_text_is_redacted_before_it_is_stored_and_ids_that_spell_it_are_not(tmp_path: Path) -> None:
    log = log_at(tmp_path / "t.sqlite")
    log.record(served("r", text="write to a@b.example", ask="am a@b.example"))
    log.close()
    assert b"a@b.example" not in b"".join(path.read_bytes() for path in tmp_path.iterdir())
    row = read_replies(tmp_path / "t.sqlite")[0]
    assert row.reply == "write to <EMAIL>" and row.messages == (Message("user", "am <EMAIL>"),)
    assert row.token_ids is None and row.redactions == 2


def test_a_clean_reply_keeps_its_ids_and_logprobs(tmp_path: Path) -> None:
    log = log_at(tmp_path / "t.sqlite")
    log.record(served("r"))
    assert next(log.replies()).token_ids == (1, 2)
    log.close()


def test_only_training_consent_leaves_the_log_as_text(tmp_path: Path) -> None:
    log = log_at(tmp_path / "t.sqlite")
    for tier in ("none", "store", "train"):
        log.record(served(tier, tier, user=tier))
    export_jsonl(list(log.replies()), tmp_path / "out.jsonl")
    rows = {reply.consent: (offset, length, reply) for offset, length, reply in read_jsonl(tmp_path / "out.jsonl")}
    assert rows["store"][2].reply is None and rows["train"][2].reply == "fine"
    offset, length, _ = rows["train"]
    assert json.loads((tmp_path / "out.jsonl").read_bytes()[offset : offset + length])["reply"] == "fine"
    log.close()


def test_export_does_not_depend_on_arrival_ids_or_clocks(tmp_path: Path) -> None:
    files = []
    for name, order in (("a", ("x", "y")), ("b", ("y", "x"))):
        log = log_at(tmp_path / f"{name}.sqlite", clock=iter(range(100, 900)).__next__)
        for user in order:
            log.record(served(f"{name}-{user}", user=user, text=user))
        export_jsonl(list(log.replies()), tmp_path / name)
        log.close()
        files.append((tmp_path / name).read_bytes())
    assert files[0] == files[1]


def test_user_is_deleted_with_replies_and_signals_and_bytes(tmp_path: Path) -> None:
    log = log_at(tmp_path / "t.sqlite")
    log.record(served("r1", user="goes", text="goodbye-words"))
    log.record(served("r2", user="stays"))
    assert log.signal("r1", "thumbs_up")
    assert log.delete_user("goes") == 1
    log.close()
    assert b"goodbye-words" not in b"".join(path.read_bytes() for path in tmp_path.iterdir())
    db = sqlite3.connect(tmp_path / "t.sqlite")
    assert [
        db.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("requests", "replies", "signals")
    ] == [1, 1, 0]
    db.close()


def test_old_rows_go_and_the_file_stays_bounded(tmp_path: Path) -> None:
    now = [0.0]
    log = log_at(tmp_path / "t.sqlite", retention=Retention(days=1, max_bytes=200_000), clock=lambda: now[0])
    log.record(served("old"))
    now[0] = 2 * 86400.0
    assert log.purge() == 1
    for index in range(200):
        now[0] += 1
        log.record(served(f"r{index}", text="long " * 1000))
    log.purge()
    log.close()
    assert (tmp_path / "t.sqlite").stat().st_size < 400_000
    left = {row[0] for row in sqlite3.connect(tmp_path / "t.sqlite").execute("SELECT request_id FROM requests")}
    assert "r199" in left and "r0" not in left


def test_clicking_again_replaces_the_thumb(tmp_path: Path) -> None:
    log = log_at(tmp_path / "t.sqlite")
    log.record(served("r"))
    for name in ("thumbs_up", "regenerated", "thumbs_down", "thumbs_down"):
        assert log.signal("r", name)
    assert next(log.replies()).signals == ("regenerated", "thumbs_down")
    assert not log.signal("unknown", "thumbs_up")
    log.close()


def test_foreign_and_newer_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database " * 100)
    with pytest.raises(TrafficError, match="not a traffic log"):
        log_at(tmp_path / "text")
    db = sqlite3.connect(tmp_path / "new.sqlite")
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(TrafficError, match="newer"):
        log_at(tmp_path / "new.sqlite")


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
def test_a_reply_that_was_sent_survives_kill_9(tmp_path: Path, stream: bool) -> None:
    folder = write_tiny_model(tmp_path / "model", 64)
    command = [sys.executable, "-c", SERVER, str(folder), str(tmp_path / "t.sqlite")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        assert process.stdout
        port = int(process.stdout.readline().strip().rpartition(":")[2])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        message = {"role": "user", "content": "hello"}
        body = {
            "model": "noria",
            "messages": [message],
            "max_tokens": 5,
            "stream": stream,
            "metadata": {"consent": "train"},
        }
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if stream:
            while b'"finish_reason":"' not in response.readline():
                pass
        else:
            response.read()
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    rows = read_replies(tmp_path / "t.sqlite")
    assert len(rows) == 1 and rows[0].messages == (Message("user", "hello"),)
