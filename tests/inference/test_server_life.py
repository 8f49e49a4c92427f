"""A server under load, with clients that leave, an engine that fails, and a stop in mid-reply."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from noria.inference.openai_api import ServerLimits
from tests.inference.live_server import LiveServer, live_server, wait_until
from tests.tiny_model import write_tiny_model

ENDLESS = 100  # tokens: of the tiny model's context of 128, more than any of these tests waits for


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=30) as client:
        yield client


def in_background(work: Callable[[], httpx.Response]) -> tuple[threading.Thread, list[httpx.Response]]:
    replies: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: replies.append(work()), daemon=True)
    thread.start()
    return thread, replies


def test_full_server_refuses_with_a_time_to_retry_and_takes_on_again(folder: Path, client: httpx.Client) -> None:
    with live_server(folder, ServerLimits(live_choices=2)) as live:
        live.engine.gate.clear()
        thread, replies = in_background(lambda: live.ask(client, n=2))
        wait_until(lambda: live.chat.driver.live == 2)
        refused = live.ask(client)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert int(refused.headers["retry-after"]) >= 1
        ready = httpx.get(live.url + "/ready")
        assert (ready.status_code, ready.json()["reason"]) == (503, "full")
        assert httpx.get(live.url + "/health").status_code == 200
        live.engine.gate.set()
        thread.join(30)
        assert replies[0].status_code == 200 and len(replies[0].json()["choices"]) == 2
        assert httpx.get(live.url + "/ready").status_code == live.ask(client).status_code == 200
        assert live.metric('noria_requests_total{endpoint="chat",outcome="full"}') == 1
        assert live.metric('noria_requests_total{endpoint="chat",outcome="ok"}') == 2


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_request(folder: Path, stream: bool) -> None:
    with live_server(folder) as live:
        live.engine.gate.clear()
        leaver = httpx.Client(timeout=httpx.Timeout(30, read=0.2))
        with pytest.raises(httpx.ReadTimeout), leaver:
            with leaver.stream(
                "POST", live.url + "/v1/chat/completions", json={**body(live), "stream": stream, "n": 3}
            ) as response:
                for _ in response.iter_lines():
                    pass
        wait_until(lambda: all(handle.aborted for handle in live.chat.driver._sinks))
        live.engine.gate.set()
        wait_until(lambda: live.chat.driver.live == 0 and live.recorded)
        assert all(len(choice.token_ids) < ENDLESS for choice in live.recorded[0].choices)
        assert live.metric('noria_requests_total{endpoint="chat",outcome="disconnected"}') == 1


def test_half_a_body_is_a_client_that_left_and_no_error(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with live_server(folder) as live:
        host, _, port = live.url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port))) as half:
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            half.sendall(f"{head}Content-Length: 1000\r\n\r\n{{".encode())
        wait_until(lambda: live.metric('noria_requests_total{endpoint="chat",outcome="disconnected"}') == 1)
    assert caplog.records == []


def body(live: LiveServer) -> dict[str, object]:
    return {"model": "noria", "messages": [{"role": "user", "content": "hello"}], "max_tokens": ENDLESS}


def test_engine_error_is_a_500_and_shows_in_health_until_a_step_succeeds(folder: Path, client: httpx.Client) -> None:
    with live_server(folder) as live:
        live.engine.fault = RuntimeError("out of luck")
        failed = live.ask(client)
        assert (failed.status_code, failed.json()["error"]["type"]) == (500, "server_error")
        assert "out of luck" not in failed.text  # the log has it
        health = httpx.get(live.url + "/health")
        assert (health.status_code, health.json()["status"]) == (503, "failing")
        assert httpx.get(live.url + "/ready").status_code == 503
        assert live.ask(client).status_code == 200
        assert httpx.get(live.url + "/health").status_code == 200
        assert live.metric('noria_requests_total{endpoint="chat",outcome="failed"}') == 1
        assert live.metric("noria_engine_failures_total") == 1


def test_engine_error_in_a_stream_is_its_last_event(folder: Path, client: httpx.Client) -> None:
    with live_server(folder) as live:
        live.engine.fault = RuntimeError("out of luck")
        events = [line for line in live.ask(client, stream=True).text.splitlines() if line]
        assert json.loads(events[-1].removeprefix("data: "))["error"]["type"] == "server_error"


def test_stopped_server_lets_running_replies_end(folder: Path, client: httpx.Client) -> None:
    with live_server(folder) as live:
        live.engine.gate.clear()
        thread, replies = in_background(lambda: live.ask(client, max_tokens=20))
        wait_until(lambda: live.chat.driver.live == 1)
        live.server.should_exit = True
        wait_until(lambda: live.chat.stopping)
        with pytest.raises(httpx.ConnectError):
            httpx.get(live.url + "/health")
        live.engine.gate.set()
        thread.join(30)
        assert replies[0].status_code == 200 and replies[0].json()["usage"]["completion_tokens"] > 0


def test_what_outlasts_the_drain_is_told_so(folder: Path, client: httpx.Client) -> None:
    with live_server(folder, drain_seconds=0.0) as live:
        live.engine.gate.clear()
        thread, replies = in_background(lambda: live.ask(client, stream=True, max_tokens=ENDLESS))
        wait_until(lambda: live.chat.driver.live == 1)
        live.server.should_exit = True
        wait_until(lambda: live.chat.stopping)
        live.engine.gate.set()
        thread.join(30)
        last = [line for line in replies[0].text.splitlines() if line][-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "server_stopping"


def test_metrics_are_prometheus_text_and_add_up(folder: Path, client: httpx.Client) -> None:
    with live_server(folder) as live:
        used = [live.ask(client, n=2, max_tokens=9, ignored=None).status_code]  # an unknown parameter
        reply = live.ask(client, n=2, max_tokens=9).json()["usage"]
        assert used == [400]
        text = httpx.get(live.url + "/metrics")
        assert text.headers["content-type"].startswith("text/plain; version=0.0.4")
        names = {line.split()[2] for line in text.text.splitlines() if line.startswith("# TYPE")}
        for line in text.text.splitlines():
            if not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                assert (
                    name.partition("{")[0].removesuffix("_bucket").removesuffix("_sum").removesuffix("_count") in names
                )
                float(value)
        assert live.metric("noria_completion_tokens_total") == reply["completion_tokens"]
        assert live.metric("noria_prompt_tokens_total") == reply["prompt_tokens"]
        assert live.metric("noria_time_to_first_token_seconds_count") == 1
        assert live.metric('noria_time_to_first_token_seconds_bucket{le="+Inf"}') == 1
        assert live.metric("noria_inter_token_seconds_count") <= reply["completion_tokens"] - 2
        assert live.metric('noria_requests_total{endpoint="chat",outcome="refused"}') == 1
        assert live.metric("noria_choices_live") == live.metric("noria_choices_running") == 0
        assert live.metric("noria_healthy") == 1
