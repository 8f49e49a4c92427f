"""Foreign agents against our endpoint: the openai client in a tool loop, recorded exactly; and graphs from lists."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import openai
import pytest

from noria.data.chat_tokenizer import load_chat_tokenizer
from noria.deployment.api_keys import key_digest
from noria.deployment.gateway import GatewayOptions, background
from noria.harness.message_graph import RecordedCall, RecordedReply, conversation_trace
from noria.harness.recording import RecordingError, RecordingServer, recorded_traces, recording
from noria.inference import Engine
from noria.model import load_model
from noria.posttraining.annotate import lay_out, rows_of
from noria.posttraining.sft import trace_examples
from noria.training.step import target_logprobs
from noria.types import Message, Node, Trace
from tests.inference.imported_model import TAGS, write_imported_model

READ = {
    "type": "function",
    "function": {"name": "read", "parameters": {"type": "object", "properties": {"name": {"type": "string"}}}},
}
FORCED = {"type": "function", "function": {"name": "read"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_imported_model(tmp_path_factory.mktemp("model"), TAGS)


@pytest.fixture
def server(folder: Path, tmp_path: Path) -> Iterator[RecordingServer]:
    tokenizer = load_chat_tokenizer(folder)
    with recording(Engine(load_model(folder), tokenizer.end, 4), tokenizer, tmp_path / "recorded") as made:
        yield made


def tool_loop(base_url: str, turns: int, stream: bool = False) -> list[dict]:
    """An agent as anyone would write it with the openai package: it calls a tool each turn, then answers."""
    client = openai.OpenAI(base_url=base_url, api_key="any", max_retries=0)
    messages: list[dict] = [{"role": "system", "content": "You read files."}, {"role": "user", "content": "find it"}]
    for turn in range(turns):
        reply = client.chat.completions.create(
            model="noria", messages=messages, tools=[READ], tool_choice=FORCED, seed=turn, max_tokens=200
        )
        message = reply.choices[0].message
        messages.append(message.model_dump(exclude_none=True))
        for call in message.tool_calls or ():
            messages.append({"role": "tool", "tool_call_id": call.id, "content": "nothing there"})
    settings = {"model": "noria", "messages": messages, "tools": [READ], "max_tokens": 12, "seed": 5}
    if stream:
        said = "".join(
            chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**settings, stream=True)
        )
    else:
        said = client.chat.completions.create(**settings).choices[0].message.content or ""
    return [*messages, {"role": "assistant", "content": said}]


@pytest.mark.parametrize("stream", [False, True])
def test_an_agent_of_the_openai_client_leaves_an_exact_trace(server: RecordingServer, folder: Path, stream: bool):
    messages = tool_loop(server.base_url("task7@2"), turns=2, stream=stream)
    (trace,) = server.traces()
    assert trace.task_id == "task7" and trace.facts["turns"] == 3 and trace.facts["rewrites"] == 0
    assert [node.message.role for node in trace.nodes] == [message["role"] for message in messages]
    assert all(node.parents == ((place - 1,) if place else ()) for place, node in enumerate(trace.nodes))
    # Log-probabilities are those of the model at the recorded ids, after the recorded prompts.
    batch = lay_out(rows_of([trace], [True]), pad=0)
    assert batch.w_rl is not None and batch.behaviour_logprob is not None
    again = target_logprobs(load_model(folder), batch, temperature=trace.facts["temperature"])
    off = (again - batch.behaviour_logprob)[batch.w_rl > 0]
    trained = int((batch.w_rl > 0).sum())
    assert trained == trace.facts["sampled_tokens"]
    last = [node.call for node in trace.nodes if node.call][-1]
    assert off[-len(last.token_ids) :].abs().max() < 1e-4
    # Every sampled token is trained on once, as sampled.
    examples = trace_examples(trace)
    kept = [t for one in examples for t, on in zip(one.token_ids, one.trained, strict=True) if on]
    assert kept == [token for node in trace.nodes if node.call for token in node.call.token_ids]
    assert Trace.from_json(trace.to_json()) == trace


def test_agents_are_told_apart_by_url_or_header_and_others_are_not_recorded(server: RecordingServer):
    body = {"model": "noria", "max_tokens": 3, "messages": [{"role": "user", "content": "hello"}]}
    plain = f"{server.address}/v1/chat/completions"
    assert httpx.post(f"{server.base_url('a')}/chat/completions", json=body).status_code == 200
    assert httpx.post(plain, json=body, headers={"X-Noria-Trace": "b"}).status_code == 200
    assert httpx.post(plain, json=body).status_code == 200
    assert [trace.task_id for trace in server.traces()] == ["a", "b"]
    assert httpx.get(f"{server.base_url('a')}/models").json()["data"][0]["id"] == "noria"
    for wrong in ("a%2fb", ".hidden", "x" * 200):
        assert httpx.post(f"{server.address}/traces/{wrong}/v1/chat/completions", json=body).status_code in (400, 404)
    with pytest.raises(ValueError, match="name"):
        server.base_url("a/b")
    assert sorted(path.name for path in server.recorder.folder.iterdir()) == ["a.jsonl", "b.jsonl"]


def test_keys_guard_named_traces_as_they_guard_all_else(folder: Path, tmp_path: Path):
    options = GatewayOptions(
        tmp_path / "log.sqlite", port=0, record=tmp_path / "recorded", keys={key_digest("k" * 20): "ann"}
    )
    body = {"model": "noria", "max_tokens": 2, "messages": [{"role": "user", "content": "hello"}]}
    with background(folder, options) as address:
        url = f"{address}/traces/t1/v1/chat/completions"
        assert httpx.post(url, json=body).status_code == 401
        assert httpx.post(url, json=body, headers={"Authorization": "Bearer " + "k" * 20}).status_code == 200
    assert [trace.task_id for trace in recorded_traces(tmp_path / "recorded")] == ["t1"]


def test_a_recording_that_is_broken_names_its_line(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"messages": [], "replies": []}\n')
    with pytest.raises(RecordingError, match=r"a\.jsonl:1"):
        recorded_traces(tmp_path)
    with pytest.raises(RecordingError, match="no folder"):
        recorded_traces(tmp_path / "gone")


# -- graphs --


def said(role: str, text: str) -> Message:
    return Message(role, text)  # type: ignore[arg-type]


def call(messages: list[Message], text: str, finish: str = "stop") -> RecordedCall:
    number = sum(map(ord, text))
    reply = RecordedReply((1, 2, len(messages)), (number,), (-0.5,), finish, text, said("assistant", text))
    return RecordedCall(tuple(messages), (reply,), {"temperature": 1.0})


TASK = [said("system", "s"), said("user", "u")]


def chain(*texts: str) -> list[Message]:
    """Calls and results by turns."""
    return [said("assistant" if place % 2 == 0 else "tool", text) for place, text in enumerate(texts)]


def shown(trace: Trace, node: Node) -> list[str]:
    return [trace.nodes[place].message.content for place in node.parents]


def test_equal_results_of_different_calls_are_different_nodes():
    history = [*TASK, *chain("list", "ok", "list", "ok")]
    trace = conversation_trace("n", "t", [call(TASK, "list"), call(history[:4], "list"), call(history, "done")])
    assert [node.message.content for node in trace.nodes] == ["s", "u", "list", "ok", "list", "ok", "done"]
    assert trace.nodes[6].parents == (5,) and trace.facts["rewrites"] == 0


def test_dropped_messages_leave_the_kept_ones_the_same_nodes():
    full = [*TASK, *chain("list", "ok", "read", "ok", "list", "ok")]
    pruned = [*TASK, *full[4:]]
    calls = [*(call(full[:end], full[end].content) for end in (2, 4, 6)), call(full, "more"), call(pruned, "done")]
    trace = conversation_trace("n", "t", calls)
    assert len(trace.nodes) == 10 and trace.facts["rewrites"] == 1
    assert trace.nodes[-1].parents == (0, 1, 4, 5, 6, 7)  # the later results, which were kept


def test_a_summary_is_a_node_of_its_own_between_those_it_stands_between():
    full = [*TASK, *chain("look", "a lot", "look again", "more")]
    summed = [TASK[0], said("user", "summary: a lot"), *full[4:]]
    trace = conversation_trace(
        "n",
        "t",
        [
            call(TASK, "look"),
            call(full[:4], "look again"),
            call(summed, "next"),
            call([*summed, said("assistant", "next"), said("tool", "x")], "done"),
        ],
    )
    assert [node.message.content for node in trace.nodes].count("look again") == 1
    assert shown(trace, trace.nodes[-1]) == ["s", "summary: a lot", "look again", "more", "next", "x"]


def test_two_conversations_under_one_name_stay_two_chains():
    other = [said("system", "helper"), said("user", "part")]
    calls = [call(TASK, "ask"), call(other, "part done"), call([*TASK, *chain("ask", "part done")], "done")]
    trace = conversation_trace("n", "t", calls)
    assert [node.parents for node in trace.nodes if node.call] == [(1,), (4,), (6,)]
    assert trace.reply == "done"


def test_a_reply_sent_back_without_its_thinking_or_blanks_is_the_same_node():
    first = call(TASK, "<think>hm</think> look ")
    trace = conversation_trace("n", "t", [first, call([*TASK, *chain("look", "ok")], "done")])
    assert [node.message.content for node in trace.nodes][2] == "<think>hm</think> look "
    assert trace.nodes[4].parents == (3,) and len(trace.nodes) == 5


def test_several_choices_are_siblings_and_a_reply_that_was_cut_says_so():
    one = call(TASK, "a", finish="length")
    two = replace(one, replies=(one.replies[0], replace(one.replies[0], text="b", echo=said("assistant", "b"))))
    trace = conversation_trace("n", "t", [two])
    assert [node.parents for node in trace.nodes] == [(), (0,), (1,), (1,)]
    assert trace.outcome == "truncated" and conversation_trace("n", "t", []).outcome == "aborted"


def test_recorded_lines_are_json_of_what_was_asked(server: RecordingServer):
    tool_loop(server.base_url("a"), turns=0)
    (line,) = (server.recorder.folder / "a.jsonl").read_text().splitlines()
    assert json.loads(line)["messages"][1] == {"role": "user", "content": "find it"}
