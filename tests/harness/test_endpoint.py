"""A chat endpoint as the policy: what is sent, what is recorded, and what becomes of a server that fails."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from noria.harness import FILE_TOOLS, Budget, Endpoint, EndpointPolicy, SubAgents, load_program, replay, rollout
from noria.harness.endpoint import read_reply, wire_messages
from noria.harness.policy import ModelFailed
from noria.posttraining import trace_examples
from noria.types import GraderRef, Message, Node, Task, Trace
from tests.inference.live_server import live_server
from tests.tiny_model import write_tiny_model

BUDGET = Budget(turns=5, tokens_per_turn=32)
FILES = {"apple": "see pear", "pear": "value 42"}


def task(name="t") -> Task:
    return Task(
        name, (Message("user", "find apple"),), GraderRef("g", "1"), "42", "f", "agent", hidden={"files": FILES}
    )


def completion(content=None, *calls, finish="stop", **more):
    wire = [
        {"id": f"x{i}", "type": "function", "function": {"name": n, "arguments": a}} for i, (n, a) in enumerate(calls)
    ]
    message = {"role": "assistant", "content": content, **({"tool_calls": wire} if wire else {}), **more}
    usage = {"prompt_tokens": 11, "completion_tokens": 3}
    return 200, {"choices": [{"message": message, "finish_reason": finish}], "usage": usage}


class Scripted:
    """An endpoint that answers request number n with `answers(n, body)`: (status, JSON or bytes) or None to hang up."""

    def __init__(self, answers):
        self.bodies, self.headers = [], []
        outer, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(outer.bodies)
                    outer.bodies.append(body)
                    outer.headers.append(dict(self.headers))
                answer = answers(number, body)
                if answer is None:
                    self.close_connection = True
                    return
                status, content = answer
                raw = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(raw)))
                if status == 429:
                    self.send_header("Retry-After", "7")
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()
        self.pauses = []

    def policy(self, **more):
        url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        return EndpointPolicy(Endpoint(url, "m", **{"connections": 4, **more}), self.pauses.append)

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def serve():
    made = []

    def start(*answers):
        made.append(Scripted(answers[0] if callable(answers[0]) else lambda number, body: answers[number]))
        return made[-1]

    yield start
    for server in made:
        server.close()


def run(server, tools, tasks=None, program="files", budget=BUDGET, **more):
    tasks = tasks or [task()]
    with server.policy(**more) as policy:
        program = load_program(program)
        traces = rollout(tasks, list(range(len(tasks))), policy, None, program, budget=budget, tools=tools)
        for one, trace in zip(tasks, traces, strict=True):
            again = Trace.from_json(trace.to_json())
            assert replay(one, again, None, program, budget, policy=policy, tools=FILE_TOOLS) == trace == again
    return traces


def test_a_chase_over_an_endpoint_is_recorded_with_its_counts_and_without_ids(serve, tools):
    server = serve(
        completion("let me see", ("read", '{"name": "apple"}'), ("list", "{}"), reasoning_content="hm"),
        completion(None, ("read", '{"name": "pear"}')),
        completion("42"),
    )
    (trace,) = run(server, tools, api_key="secret")
    assert trace.outcome == "finished" and trace.answer == "42" and trace.facts["tool_calls"] == 3
    first = next(node for node in trace.nodes if node.call)
    assert first.call.prompt_ids == first.call.token_ids == first.call.logprobs == ()
    assert first.call.endpoint.model == "m" and first.call.endpoint.prompt_tokens == 11
    assert first.call.endpoint.calls == (("read", '{"name": "apple"}'), ("list", "{}"))
    assert first.message.content.startswith("<think>hm</think>let me see\n<tool_call>")
    assert trace.facts["sampled_tokens"] == 9
    sent = server.bodies[1]["messages"]
    assert [message["role"] for message in sent] == ["user", "assistant", "tool", "tool"]
    assert sent[1]["content"] == "let me see"  # thinking and calls are not sent back as text
    assert [call["id"] for call in sent[1]["tool_calls"]] == [message["tool_call_id"] for message in sent[2:]]
    assert [message["content"] for message in sent[2:]] == ["see pear", "apple\npear"]
    assert server.bodies[0]["tools"][0]["function"]["parameters"]["required"] == ["name"]
    assert server.bodies[0]["max_tokens"] == 32 and server.headers[0]["Authorization"] == "Bearer secret"
    with pytest.raises(ValueError, match="no token ids"):
        trace_examples(trace)


def test_the_key_is_not_shown():
    assert "secret" not in repr(Endpoint("http://localhost:1/v1", "m", "secret"))


def test_busy_and_broken_servers_are_asked_again(serve, tools):
    """After growing pauses, or as long as they say; where an idle connection was closed, on a new one at once."""
    server = serve((429, {}), (503, {}), None, completion("42"))
    (trace,) = run(server, tools)
    assert trace.outcome == "finished" and server.pauses == [7.0, 1.0]


@pytest.mark.parametrize(
    ("answer", "asked", "reason"),
    [
        ((500, {"error": "down"}), 3, "status 500"),
        ((400, {"error": {"message": "too long"}}), 1, "too long"),
        ((200, b"not json"), 1, "not the form"),
        ((200, {"choices": []}), 1, "not the form"),
        (None, None, "RemoteDisconnected"),
    ],
)
def test_what_still_fails_ends_its_trace_and_no_other(serve, tools, answer, asked, reason):
    def answers(number, body):
        return answer if body["messages"][0]["content"] == "bad" else completion("42")

    bad = Task("b", (Message("user", "bad"),), GraderRef("g", "1"), "", "f", "agent")
    server = serve(answers)
    traces = run(server, tools, [task("1"), bad, task("2")], attempts=3)
    assert [trace.outcome for trace in traces] == ["finished", "model_error", "finished"]
    assert reason in traces[1].nodes[-1].message.content and asked in (None, len(server.bodies) - 2)


def test_calls_that_make_no_sense_are_invalid_and_sent_back_in_a_form_that_servers_take(serve, tools):
    server = serve(
        completion(None, ("read", "{broken"), ("drop", "{}"), ("read", '{"name": 1}')), completion("", finish="stop")
    )
    (trace,) = run(server, tools)
    assert trace.facts["invalid_calls"] == 3 and trace.outcome == "finished" and trace.answer == ""
    sent = server.bodies[1]["messages"][1]["tool_calls"]
    assert [call["function"]["arguments"] for call in sent] == ["{}", "{}", '{"name": 1}']


def test_a_reply_that_was_cut_off_is_truncated(serve, tools):
    (trace,) = run(serve(completion("4", finish="length")), tools)
    assert trace.outcome == "truncated"


def sized(prompt_tokens, *what):
    status, body = completion(*what)
    return status, body | {"usage": {"prompt_tokens": prompt_tokens, "completion_tokens": 10}}


@pytest.mark.parametrize(
    ("context", "outcome", "asked"),
    [(70, "finished", 3), (69, "context_limit", 3), (49, "context_limit", 2), (29, "context_limit", 1)],
)
def test_the_context_of_a_budget_is_kept_by_the_counts_of_the_endpoint(serve, tools, context, outcome, asked):
    call = ("read", '{"name": "apple"}')
    server = serve(sized(20, None, call), sized(40, None, call), sized(60, "42"))
    (trace,) = run(server, tools, budget=Budget(turns=5, tokens_per_turn=32, context=context))
    assert (trace.outcome, len(server.bodies)) == (outcome, asked)
    # The next prompt is not counted yet, but it is no shorter than the last.
    assert [body["max_tokens"] for body in server.bodies] == [min(32, context - known) for known in (0, 20, 40)][:asked]


@pytest.mark.parametrize("bounds", [{"context": 2048}, {"tokens": 100}])
def test_an_endpoint_that_counts_no_tokens_is_refused_where_the_budget_needs_counts(serve, tools, bounds):
    status, body = completion("42")
    answer = status, {key: value for key, value in body.items() if key != "usage"}
    (trace,) = run(serve(answer), tools, budget=Budget(turns=5, tokens_per_turn=32, **bounds))
    assert trace.outcome == "model_error" and "no `usage`" in trace.nodes[-1].message.content
    (trace,) = run(serve(answer), tools)
    assert trace.outcome == "finished" and not next(node.call for node in trace.nodes if node.call).counted


@pytest.mark.parametrize(
    "message",
    [{"content": 5}, {"content": {"text": 5}}, {"content": "x", "tool_calls": [{"function": 1}]}, {"content": [1]}, 7],
)
def test_a_reply_of_another_form_is_a_failure(message):
    raw = json.dumps({"choices": [{"message": message}], "usage": {"prompt_tokens": 1}}).encode()
    assert isinstance(read_reply(raw, "m"), ModelFailed)
    assert isinstance(
        read_reply(b'{"choices": [{"message": {}}], "usage": {"prompt_tokens": Infinity}}', "m"), ModelFailed
    )


def test_a_text_in_parts_is_one_text():
    parts = [{"type": "text", "text": "4"}, {"type": "text", "text": "2"}]
    reply = read_reply(json.dumps({"choices": [{"message": {"content": parts}}]}).encode(), "m")
    assert not isinstance(reply, ModelFailed) and reply.actions[0].content == "42"


def test_a_call_or_result_that_stands_alone_is_sent_as_text():
    reply = read_reply(json.dumps(completion("hm", ("read", "{}"), ("list", "{}"))[1]).encode(), "m")
    assert not isinstance(reply, ModelFailed)
    said = Node((), Message("assistant", reply.actions[0].content), reply.call)
    result = Node((), Message("tool", "r"))
    ask = Node((), Message("user", "q"))
    assert [message["role"] for message in wire_messages([ask, result, ask])] == ["user"] * 3
    alone = wire_messages([ask, said, ask])[1]
    assert "tool_calls" not in alone and "<tool_call>" in alone["content"]
    half = wire_messages([ask, said, result])[1]
    assert len(half["tool_calls"]) == 1 and '"list"' in half["content"]


def test_a_base_url_without_a_scheme_is_refused():
    with pytest.raises(ValueError, match="http"):
        Endpoint("localhost:8000", "m")


def test_helpers_may_live_behind_the_endpoint_too(serve, tools):
    def answers(number, body):
        if body["messages"][0]["role"] == "system":
            return completion("seven")
        said = [message for message in body["messages"] if message["role"] == "tool"]
        if not said:
            made = ("create_subagent", '{"name": "a", "system_prompt": "s"}')
            return completion(None, made, ("assign_task", '{"agent": "a", "prompt": "p"}'))
        return completion(said[-1]["content"])

    server = serve(answers)
    given = SubAgents(load_program("all_tools"), BUDGET)
    with server.policy() as policy:
        traces = rollout(
            [task()], [1], policy, None, load_program("all_tools"), budget=BUDGET, tools=tools, subagents=given
        )
    assert traces[0].answer == "seven" and traces[0].facts["critical_steps"] == 3


def test_norias_own_server_is_such_an_endpoint(tmp_path, tools):
    with live_server(write_tiny_model(tmp_path / "model")) as server:
        policy = EndpointPolicy(Endpoint(f"{server.url}/v1", "noria", connections=2))
        with policy:
            first, again = (
                rollout([task()], [4], policy, None, load_program("files"), budget=BUDGET, tools=tools)[0]
                for _ in range(2)
            )
    call = next(node.call for node in first.nodes if node.call)
    assert call.endpoint.prompt_tokens > 0 and 0 < call.endpoint.sampled_tokens <= 32
    assert first == again  # the seed is sent
