"""The trace pages: what the server answers, and what a browser shows of hostile, long, binary and broken traces."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest
import uvicorn
from starlette.testclient import TestClient

from noria.harness.traces import Entry, Library, TraceWriter
from noria.studio.traces import standalone, trace_app
from noria.types import Message
from tests.browser import open_page
from tests.harness.made_up_traces import HOSTILE, entry, long_trace, task, with_sub_agents

LONG = "a long line " * 2000


def hostile_everywhere() -> Entry:
    """Each text that can be anybody's holds markup."""
    one = entry(3, 1.0, step=3, note=HOSTILE)
    nodes = list(one.trace.nodes)
    nodes[0] = replace(nodes[0], message=Message("user", HOSTILE))
    nodes[1] = replace(nodes[1], message=Message("assistant", f"<think>{HOSTILE}</think>{HOSTILE}"))
    use = replace(
        nodes[2].use, tool=HOSTILE, arguments={HOSTILE: HOSTILE}, files={HOSTILE: HOSTILE}, notes={HOSTILE: HOSTILE}
    )
    nodes[2] = replace(nodes[2], message=Message("tool", HOSTILE + LONG + HOSTILE), use=use, agent=HOSTILE)
    trace = replace(
        one.trace, nodes=tuple(nodes), harness=HOSTILE, outcome=HOSTILE, sandbox=HOSTILE, facts={HOSTILE: 1.0}
    )
    score = replace(one.score, evidence=HOSTILE, components={HOSTILE: 1.0})
    return replace(one, trace=trace, score=score, task=replace(one.task, family=HOSTILE, answer=HOSTILE))


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Iterator[Library]:
    folder = tmp_path_factory.mktemp("page")
    with TraceWriter(folder / "run") as writer:
        writer.append([with_sub_agents(), Entry(long_trace(6), task()), hostile_everywhere()])
        writer.append([entry(n, n % 4 / 3 if n % 7 else None, step=n // 10) for n in range(120)])
    with Library(folder / "run", folder / "i.sqlite") as opened:
        yield opened


@pytest.fixture(scope="module")
def client(library) -> TestClient:
    return TestClient(trace_app(library, "made-up", lambda token: f" t{token}"), base_url="http://127.0.0.1")


def test_a_page_of_the_list_is_what_the_query_finds(client, library):
    found = client.get("/api/traces?family=even&score_min=0.5&order=score&descending=true&size=7&page=1").json()
    wanted = [one for _, one in library.entries() if one.task.family == "even" and (one.score.value or 0) >= 0.5]
    assert found["total"] == len(wanted) > 14 and found["page"] == 1 and len(found["rows"]) == 7
    assert all(row["family"] == "even" and row["score"] >= 0.5 for row in found["rows"])
    assert client.get("/api/about").json()["facets"]["family"]["odd"] == 60


@pytest.mark.parametrize("query", ["score_min=x", "score_min=nan", "page=-1", "size=a", "order=text", "unknown=1"])
def test_a_query_that_cannot_be_read_is_refused_with_its_reason(client, query):
    reply = client.get(f"/api/traces?{query}")
    assert reply.status_code == 400 and reply.json()["error"]


def test_sizes_and_numbers_beyond_reason_are_bounded(client):
    assert client.get("/api/traces?size=99999999&step_min=-99999999999999999999999").json()["size"] == 500
    assert client.get(f"/api/traces?page={10**30}").json()["rows"] == []
    assert client.get("/api/trace/999").status_code == client.get(f"/api/trace/{10**30}").status_code == 404
    assert client.get("/api/trace/1/prompt/0").status_code == client.get("/api/trace/1/prompt/99").status_code == 404
    assert client.get("/page/..%2fserver.py").status_code == client.get("/page/server.py").status_code == 404


def test_a_call_tells_its_view_tokens_and_exact_prompt(client, library):
    node = client.get("/api/trace/2").json()["nodes"][3]
    call = library.entry(2).trace.nodes[3].call
    assert node["call"]["view"] == [0, 1, 2] and node["call"]["read"] == len(call.prompt_ids)
    assert [token[0] for token in node["call"]["tokens"]] == list(call.token_ids)
    assert [token[1] for token in node["call"]["tokens"]] == list(call.logprobs)
    assert client.get("/api/trace/2/prompt/3").json() == [[token, f" t{token}"] for token in call.prompt_ids]


def test_other_pages_and_names_are_kept_out(client):
    assert client.get("/api/about", headers={"host": "evil.example"}).status_code == 403
    policy = client.get("/").headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy


@pytest.fixture(scope="module")
def address(library) -> Iterator[str]:
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(trace_app(library, "made-up"), log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join()
    listening.close()


def nothing_ran(page, errors) -> None:
    assert page.evaluate("window.hacked") is None and errors == []
    assert page.locator("main img, main script").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.slow
def test_the_list_filters_pages_and_keeps_the_question_in_the_address(address):
    with open_page() as (page, errors):
        page.goto(address)
        page.wait_for_selector(".rows")
        assert page.locator(".rows tbody tr").count() == 50
        page.select_option("select[name=family]", "odd")
        page.wait_for_selector(".pager :text('of 60')")
        page.click(".pager button:has-text('next')")
        page.wait_for_selector(".pager :text('51 to 60')")
        assert "family=odd" in page.url and "page=1" in page.url
        page.fill("input[name=text]", "needle17")
        page.press("input[name=text]", "Enter")
        page.wait_for_selector(".pager :text('of 1')")
        page.go_back()
        page.wait_for_selector(".pager :text('51 to 60')")
        page.fill("input[name=text]", "absent")
        page.press("input[name=text]", "Enter")
        page.wait_for_selector(".empty:has-text('Clear a filter')")
        nothing_ran(page, errors)


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_hostile_and_long_texts_are_shown_as_text(address, width):
    with open_page(width) as (page, errors):
        page.goto(f"{address}/trace/3")
        page.wait_for_selector(".node")
        for summary in page.locator("summary").all():
            summary.click()
        shown = page.inner_text("main")
        assert shown.count("<script>window.hacked = 1</script>") > 8 and "⟨2028⟩⟨202e⟩" in shown
        assert len(page.inner_text("#node2")) < 8000
        page.click("#node2 button:has-text('show all')")
        assert page.inner_text("#node2 > .text").count("a long line") == 2000
        nothing_ran(page, errors)
        page.goto(address)
        page.wait_for_selector(".rows")
        nothing_ran(page, errors)


@pytest.mark.slow
def test_a_trace_shows_its_graph_tokens_and_undecodable_bytes(address):
    with open_page() as (page, errors):
        page.goto(f"{address}/trace/1")
        page.wait_for_selector(".node")
        assert page.locator(".graph :is(circle, rect)").count() == page.locator(".node").count() == 12
        assert page.locator(".graph path.merge").count() == 8 and page.locator(".node.sub").count() == 6
        assert page.locator(".budget .call").count() == 5
        page.goto(f"{address}/trace/2")
        page.wait_for_selector("#node2")
        assert "⟨\\xff⟩⟨00⟩" in page.inner_text("#node2 > .text")
        page.click("#node1 .sampled summary")
        assert page.locator("#node1 .tokens span").count() == 20
        page.click("#node1 button:has-text('exact prompt')")
        page.wait_for_selector("#node1 .tokens >> nth=1")
        assert page.locator("#node1 .tokens >> nth=1").locator("span").count() == 200
        nothing_ran(page, errors)


@pytest.mark.slow
def test_a_trace_that_is_not_there_and_a_damaged_one_are_told(tmp_path):
    with TraceWriter(tmp_path / "run") as writer:
        writer.append([entry(0)])
        writer.append([entry(1)])
    path = tmp_path / "run" / "traces.blocks"
    with Library(tmp_path / "run", tmp_path / "i.sqlite") as library:
        client = TestClient(trace_app(library, "t"), base_url="http://127.0.0.1")
        raw = bytearray(path.read_bytes())
        raw[60] ^= 0xFF  # damaged after it was indexed
        path.write_bytes(raw)
        reply = client.get("/api/trace/1")
        assert reply.status_code == 404 and "byte 0" in reply.json()["error"]
        assert client.get("/api/trace/2").status_code == 200
    with Library(tmp_path / "run", tmp_path / "other.sqlite") as library:
        about = TestClient(trace_app(library, "t"), base_url="http://127.0.0.1").get("/api/about").json()
        assert about["damaged"] == 1 and "damaged" in about["damages"][0]


def test_a_folder_whose_run_has_not_begun_has_an_empty_list(tmp_path):
    TraceWriter(tmp_path / "run").close()
    with Library(tmp_path / "run", tmp_path / "i.sqlite") as library:
        client = TestClient(trace_app(library, "t"), base_url="http://127.0.0.1")
        assert client.get("/api/traces").json()["total"] == 0 and client.get("/api/about").json()["damages"] == []


@pytest.mark.slow
def test_one_trace_is_a_file_of_its_own_that_runs_nothing_of_it(library, tmp_path):
    for number in (1, 2, 3):
        path = tmp_path / f"{number}.html"
        path.write_text(standalone(library.entry(number), library.row(number)), encoding="utf-8")
        with open_page() as (page, errors):
            requests: list[str] = []
            page.on("request", lambda request: requests.append(request.url))  # noqa: B023
            page.goto(path.as_uri())
            page.wait_for_selector(".node")
            assert page.locator(".node").count() == len(library.entry(number).trace.nodes)
            assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
            nothing_ran(page, errors)
            page.evaluate("document.body.append(Object.assign(document.createElement('script'), {text: 'hacked = 3'}))")
            assert page.evaluate("window.hacked") is None  # the policy refuses any script but its own
