from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from noria.grading.formula import FormulaError, compute, names_in
from noria.grading.grader_language import GraderError, parse, required_fields, run
from noria.grading.similarity import MEASURES, bleu, gleu, rouge_l
from tests.tiny_model import write_tiny_model

ITEM = {"answer": "Paris", "facts": [{"name": "Seine"}]}


def check(operation: str, reference: str = "{{item.answer}}") -> dict[str, Any]:
    text = "{{ sample.output_text }}"
    return {"type": "string_check", "name": "x", "operation": operation, "input": text, "reference": reference}


@pytest.mark.parametrize(
    ("operation", "said", "reward"),
    [
        ("eq", "Paris", 1.0),
        ("eq", "paris", 0.0),
        ("ne", "paris", 1.0),
        ("ne", "Paris", 0.0),
        ("like", "It is Paris.", 1.0),
        ("like", "It is paris.", 0.0),
        ("ilike", "It is paris.", 1.0),
        ("ilike", "It is Rome.", 0.0),
    ],
)
def test_string_checks(operation: str, said: str, reward: float) -> None:
    assert run(parse(check(operation)), ITEM, said)["reward"] == reward


def test_templates_read_nested_fields_and_json_replies() -> None:
    body = check("eq", "{{item.facts[0].name}}") | {"input": "{{sample.output_json.river}}"}
    grader = parse({"grader": body})
    assert required_fields(grader) == ["facts[0].name"]
    assert run(grader, ITEM, '{"river": "Seine"}')["reward"] == 1.0
    result = run(grader, ITEM, "the Seine")
    assert result["reward"] is None and result["metadata"]["errors"]["sample_parse_error"] is True


def test_a_run_has_the_shape_of_the_wire() -> None:
    result = run(parse(check("eq")), ITEM, "Paris")
    assert set(result) == {"reward", "sub_rewards", "metadata", "model_grader_token_usage_per_model"}
    assert {"name", "type", "errors", "execution_time", "scores", "token_usage"} <= set(result["metadata"])
    assert not any(value for value in result["metadata"]["errors"].values())
    json.dumps(result)


@pytest.mark.parametrize("name", sorted(MEASURES))
def test_similarity_is_one_for_equal_texts_and_zero_for_strangers(name: str) -> None:
    text = "the quick brown fox jumps over the lazy dog"
    assert MEASURES[name](text, text) == pytest.approx(1.0)
    assert MEASURES[name]("qqqq", "zz") == 0.0
    assert 0.0 < MEASURES[name]("the quick brown fox jumps over a cat", text) < 1.0
    assert MEASURES[name]("", text) == 0.0


def test_similarities_by_hand() -> None:
    # Longest common subsequence "the fox" of 3 and 4 words: precision 2/3, recall 2/4.
    assert rouge_l("the red fox", "the fox is old") == pytest.approx(4 / 7)
    assert MEASURES["rouge_1"]("a a b", "a b b") == pytest.approx(2 / 3)
    # n-grams of "a b c": 3 + 2 + 1; of "a b d": as many; shared: a, b, "a b".
    assert gleu("a b c", "a b d") == pytest.approx(3 / 6)
    # Precisions 2/2, (1+1)/(1+1), 1, 1; brevity exp(1 - 4/2).
    assert bleu("a b", "a b c d") == pytest.approx(2.718281828**-1)


def test_a_multi_grader_computes_its_formula_and_names_its_parts() -> None:
    body = {
        "type": "multi",
        "name": "both",
        "graders": {"exact": check("eq"), "near": check("ilike")},
        "calculate_output": "0.8 * exact + 0.2 * max(near, 0)",
    }
    result = run(parse(body), ITEM, "paris")
    assert result["reward"] == pytest.approx(0.2) and result["sub_rewards"] == {"exact": 0.0, "near": 1.0}


@pytest.mark.parametrize("formula", ["__import__('os')", "a.b", "a if b else c", "[1]", "f(a)", "a +", "'x'", "min()"])
def test_a_formula_is_arithmetic_and_nothing_else(formula: str) -> None:
    with pytest.raises(FormulaError):
        names_in(formula)


def test_formulas() -> None:
    assert compute("2 ^ 3 - -a / 2", {"a": 4.0}) == 10.0
    for formula in ("1 / a", "log(a)", "sqrt(a - 1)", "10 ^ 999 * b", "missing"):
        with pytest.raises(FormulaError):
            compute(formula, {"a": 0.0, "b": 1e300})


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (check("eq") | {"colour": 1}, "colour"),
        (check("eq", "{{answer}}"), "reference: {{answer}} is no template"),
        ({"type": "multi", "name": "m", "graders": {"a": check("eq")}, "calculate_output": "a + b"}, "names b"),
        ({"type": "multi", "name": "m", "graders": {}, "calculate_output": "1"}, "graders is empty"),
        ({"type": "python", "name": "p", "source": "x = 1"}, "no function grade"),
        ({"type": "score_model", "name": "s", "model": "m", "input": [{"role": "user", "content": "?"}],
          "range": [1, 0]}, "range goes from low to high"),
        ("a text", "grader"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_grader_is_said_by_field(body: Any, said: str) -> None:
    with pytest.raises(GraderError) as caught:
        parse(body)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("return len(sample['output_text']) / item['most']", ""),
        ("return 1 / 0", "python_grader_runtime_error"),
        ("return [1]", "python_grader_runtime_error"),
        ("return open('/etc/passwd').read()", "python_grader_runtime_error"),
    ],
)
def test_python_runs_in_the_sandbox_and_fails_with_a_typed_error(body: str, kind: str) -> None:
    grader = parse({"type": "python", "name": "p", "source": f"def grade(sample, item):\n    {body}\n"})
    result = run(grader, {"most": 10}, "Paris")
    assert result["reward"] == (None if kind else 0.5)
    assert [name for name, value in result["metadata"]["errors"].items() if value is True] == ([kind] if kind else [])


class Judge(BaseHTTPRequestHandler):
    asked: dict[str, Any] = {}

    def do_POST(self) -> None:
        asked = Judge.asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        said = "I give it 0.75" if "Paris" in asked["messages"][-1]["content"] else "no idea"
        body = json.dumps({"choices": [{"message": {"content": said}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def test_a_model_behind_an_endpoint_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    text = [{"type": "input_text", "text": "Rate"}, "{{sample.output_text}}"]
    body = {"type": "score_model", "name": "s", "model": "judge", "range": None,
            "sampling_params": {"max_completions_tokens": 9, "top_p": 0.5},
            "input": [{"role": "user", "content": text, "type": "message"}]}  # fmt: skip
    grader = parse(body)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    assert run(grader, {}, "Paris")["metadata"]["errors"]["model_grader_server_error"] is True
    server = HTTPServer(("127.0.0.1", 0), Judge)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{server.server_port}/v1")
        assert run(grader, {}, "Paris")["reward"] == 0.75
        messages = [{"role": "user", "content": "Rate\nParis"}]
        expected = {"model": "judge", "messages": messages, "max_completion_tokens": 9, "top_p": 0.5}
        assert expected == Judge.asked  # as chat/completions spells it
        assert run(grader, {}, "Rome")["metadata"]["errors"]["model_grader_parse_error"] is True
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_model_folder_is_asked_by_our_own_engine(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "judge")
    body = {"type": "score_model", "name": "s", "model": str(folder), "range": [0, 1],
            "input": [{"role": "user", "content": "{{sample.output_text}}"}]}  # fmt: skip
    result = run(parse(body), {}, "Paris")
    assert result["reward"] is not None or result["metadata"]["errors"]["model_grader_parse_error"] is True


def test_a_run_has_exactly_the_fields_that_openai_gives_it() -> None:
    from openai.types.fine_tuning.alpha.grader_run_response import GraderRunResponse, Metadata, MetadataErrors

    def names(model: Any) -> set[str]:
        return {field.alias or name for name, field in model.model_fields.items()}

    result = run(parse(check("eq")), {"answer": "Paris"}, "Paris")
    assert set(result) == names(GraderRunResponse)
    assert set(result["metadata"]) == names(Metadata)
    assert set(result["metadata"]["errors"]) == names(MetadataErrors)
    told = GraderRunResponse.model_validate(result)
    assert told.reward == 1.0 and told.metadata.type == "string_check"


@pytest.mark.parametrize(
    ("changed", "field", "said"),
    [
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input", "only text"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input.0.role", "assistant"),
        ({"sampling_params": {"max_tokens": 3}}, "sampling_params.max_tokens", "not permitted"),
        ({"range": [1, 0]}, "range", "from low to high"),
    ],
)
def test_what_a_score_model_cannot_do_is_refused_by_field(changed: dict[str, Any], field: str, said: str) -> None:
    body = {"type": "score_model", "name": "s", "model": "judge", "input": [{"role": "user", "content": "x"}]}
    assert parse(body).range == (0.0, 1.0)
    with pytest.raises(GraderError, match=said) as refused:
        parse(body | changed)
    assert str(refused.value).startswith(field)
