"""vLLM behind the engine's protocol. Needs an environment that has it: NORIA_VLLM_PYTHON names its interpreter."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from noria.inference import Engine, Request, RequestTooLong, SamplingParams, score
from noria.inference.vllm import VllmEngine, VllmFailed
from noria.model import ModelConfig, Transformer, load_model
from noria.model.huggingface import export_folder
from tests.inference.imported_model import write_imported_model

PYTHON = os.environ.get("NORIA_VLLM_PYTHON", "")
needs_vllm = pytest.mark.skipif(not PYTHON, reason="NORIA_VLLM_PYTHON names no interpreter that has vLLM")
# Both compute in fp32; sums in another order move a log-probability in the sixth digit.
LOGPROB_BOUND = 1e-3
CONTEXT = 64
# As SmolLM2, in small; vLLM's attention has no heads narrower than 32.
LLAMA = ModelConfig(
    vocab_size=259,
    width=64,
    layers=2,
    heads=2,
    kv_heads=1,
    ffn_width=64,
    context=1024,
    activation="swiglu",
    qk_norm=False,
)
PROMPTS = [[5, 9, 100, 31], [7], [200, 3, 3, 3, 80, 41, 12]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_imported_model(tmp_path_factory.mktemp("ours"), config=LLAMA)


@pytest.fixture(scope="module")
def model(folder: Path) -> Transformer:
    return load_model(folder)


@pytest.fixture(scope="module")
def exported(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    export_folder(folder, target := tmp_path_factory.mktemp("exported") / "model")
    return target


@pytest.fixture(scope="module")
def vllm(exported: Path) -> Iterator[VllmEngine]:
    with VllmEngine(exported, -1, PYTHON, context=CONTEXT, max_rows=8, precision="float32") as engine:
        yield engine


@needs_vllm
@pytest.mark.slow
def test_greedy_replies_are_those_of_our_engine(vllm: VllmEngine, model: Transformer) -> None:
    params = SamplingParams(max_tokens=12, temperature=0.0)
    requests = [Request(prompt, params) for prompt in PROMPTS]
    for theirs, ours in zip(vllm.generate(requests), Engine(model, -1).generate(requests), strict=True):
        assert theirs.token_ids == ours.token_ids and theirs.finish == ours.finish == "length"
        assert theirs.logprobs == pytest.approx(ours.logprobs, abs=LOGPROB_BOUND)


@needs_vllm
@pytest.mark.slow
def test_logprobs_of_samples_are_those_our_model_gives(vllm: VllmEngine, model: Transformer) -> None:
    requests = [Request(prompt, SamplingParams(max_tokens=12, seed=seed)) for seed, prompt in enumerate(PROMPTS)]
    first, again = vllm.generate(requests), vllm.generate(requests)
    assert [reply.token_ids for reply in first] == [reply.token_ids for reply in again]
    for prompt, reply in zip(PROMPTS, first, strict=True):
        (scores,) = score(model, [[*prompt, *reply.token_ids]])
        assert list(reply.logprobs) == pytest.approx(scores[len(prompt) - 1 :], abs=LOGPROB_BOUND)


@needs_vllm
@pytest.mark.slow
def test_stop_id_stream_and_abort(vllm: VllmEngine) -> None:
    greedy = SamplingParams(max_tokens=12, temperature=0.0)
    (whole,) = vllm.generate([Request(PROMPTS[0], greedy)])
    stop = whole.token_ids[4]
    cut = vllm.submit(Request(PROMPTS[0], greedy.model_copy(update={"stop_ids": (stop,)})))
    expected = whole.token_ids[: whole.token_ids.index(stop) + 1]
    assert tuple(cut.stream()) == expected and cut.result().finish == "stop"
    endless = vllm.submit(Request([1], SamplingParams(max_tokens=CONTEXT)))
    endless.abort()
    assert endless.result().finish in ("aborted", "length")
    with pytest.raises(RequestTooLong, match="does not fit"):
        vllm.submit(Request([1] * CONTEXT, greedy))
    with pytest.raises(ValueError, match="a token id outside"):
        vllm.submit(Request([259], greedy))


def test_what_cannot_start_is_refused_with_the_reason(exported: Path, folder: Path) -> None:
    with pytest.raises(VllmFailed, match="No module named 'vllm'"):
        VllmEngine(exported, -1, sys.executable, context=CONTEXT)
    with pytest.raises(VllmFailed, match="/nowhere/python"):
        VllmEngine(exported, -1, "/nowhere/python", context=CONTEXT)
    with pytest.raises(ValueError, match="export_folder"):
        VllmEngine(folder, -1, sys.executable, context=CONTEXT)
