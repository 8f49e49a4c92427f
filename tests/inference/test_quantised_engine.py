"""Engines with quantised weights sample what the model of the restored weights does, in less memory."""

from __future__ import annotations

import copy

import pytest
import torch

from noria.inference import Engine, Request, SamplingParams, native, sampler, weights
from noria.inference import network as network_module
from noria.inference.network import AnyTransformer, PlainDecoder
from noria.inference.panel_matrix import PanelMatrix
from noria.inference.vllm import VllmEngine
from noria.inference.weights import multiply, pack
from noria.model import ModelConfig, Transformer
from noria.model.config import MLA, MoE
from noria.model.quantised import quantise_groups, quantise_rows, restore_groups, restore_rows
from noria.posttraining.lora import LoraConfig, adapt

SHAPE = {"vocab_size": 70, "width": 64, "layers": 2, "heads": 4, "kv_heads": 2, "ffn_width": 96, "context": 128}
OPTIONS = {
    "plain": {},
    "llama": {"activation": "swiglu", "qk_norm": False, "tied": False, "qkv_bias": True},
    "post norm": {"post_norm": True},
    "mla": {"mla": MLA(kv_rank=32, nope_width=16, rope_width=16, value_width=16), "kv_heads": 4, "qk_norm": False},
    "moe": {"moe": MoE(experts=4, chosen=2, expert_width=32, shared=1), "activation": "swiglu"},
    "odd widths": {"explicit_head_width": 16, "width": 40, "ffn_width": 70},
}
QUANTISED = ("int8", "int4")
BF16, FP32 = torch.bfloat16, torch.float32


def build(name: str) -> Transformer:
    model, g = Transformer(ModelConfig(**{**SHAPE, **OPTIONS[name]})), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=g) * 0.2)
            else:
                parameter.add_(torch.randn(parameter.shape, generator=g) * 0.1)
    return model.eval()


@pytest.fixture(scope="module")
def models() -> dict[str, Transformer]:
    return {name: build(name) for name in OPTIONS}


def restored(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """By way of `model/quantised.py` alone."""
    if weight.ndim == 3:
        return torch.stack([restored(each, bits) for each in weight])
    if bits == 32:
        return weight
    if bits == 16:
        return weight.bfloat16().float()
    if bits == 8:
        return restore_rows(*quantise_rows(weight))
    padded = torch.nn.functional.pad(weight, (0, -weight.shape[1] % 32))
    return restore_groups(*quantise_groups(padded))[:, : weight.shape[1]]


def restored_twin(model: Transformer, precision: str) -> Transformer:
    """Layers and experts in the precision's bits, embedding and head in 8; routers and the rest as they are."""
    state = {}
    for name, value in model.state_dict().items():
        is_table = name.startswith(("embedding", "head"))
        is_matrix = value.ndim > 1 and "router" not in name
        state[name] = restored(value, 8 if is_table or precision == "int8" else 4) if is_matrix else value
    twin = copy.deepcopy(model)
    twin.load_state_dict(state)
    return twin


def asked(count: int = 6, tokens: int = 12, temperature: float = 0.0) -> list[Request]:
    """Prompts of other lengths, two of them with a beginning in common."""
    g = torch.Generator().manual_seed(3)
    start = torch.randint(3, 60, (33,), generator=g).tolist()
    prompts = [start[: 3 + 7 * index] if index < 4 else [*start, index] for index in range(count)]
    params = (SamplingParams(max_tokens=tokens, temperature=temperature, seed=seed) for seed in range(count))
    return [Request(prompt, each) for prompt, each in zip(prompts, params, strict=True)]


@torch.no_grad()
def difference(model: Transformer, requests, completions) -> float:
    """Mean, of the log-probabilities as sampled from those of the model's whole pass in bf16."""
    found: list[float] = []
    for request, completion in zip(requests, completions, strict=True):
        ids = [*request.prompt_ids, *completion.token_ids]
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model.hidden(torch.tensor([ids[:-1]]))
        logprobs = model.logits(hidden.float())[0].log_softmax(-1)
        expected = logprobs[range(len(ids) - 1), ids[1:]][len(request.prompt_ids) - 1 :]
        found += (torch.tensor(completion.logprobs) - expected).abs().tolist()
    return sum(found) / len(found)


KEPT = [(bits, dtype) for bits in (16, 8, 4) for dtype in (torch.float32, torch.bfloat16)]


@pytest.mark.parametrize(("bits", "dtype"), [(32, torch.float32), *KEPT])
@pytest.mark.parametrize("inputs", [320, 50])
def test_the_kernel_multiplies_with_the_restored_matrix_as_its_twin_does(bits, dtype, inputs, monkeypatch):
    g = torch.Generator().manual_seed(0)
    weight, x = torch.randn(130, inputs, generator=g), torch.randn(121, inputs, generator=g).to(dtype)
    matrix = pack(weight, dtype, bits)
    assert torch.equal(matrix.restored(), restored(weight, bits))
    index = torch.tensor([[3, 129], [64, 3]])
    assert torch.equal(matrix.rows(index), restored(weight, bits)[index])
    expected = x.double() @ restored(weight, bits).double().T
    found = multiply(x, matrix)
    assert found.dtype == dtype
    tolerance = {"atol": 1e-4, "rtol": 2**-8 if dtype == torch.bfloat16 else 1e-5}
    torch.testing.assert_close(found.double(), expected, **tolerance)
    bias = torch.randn(130, generator=g).to(dtype)
    assert torch.equal(multiply(x, matrix, bias), found + bias)
    monkeypatch.setattr(weights, "kernels", lambda: None)
    with torch.autocast("cpu", torch.bfloat16):
        twin = multiply(x, matrix)
    assert twin.dtype == dtype
    torch.testing.assert_close(twin.double(), expected, **tolerance)
    assert multiply(x[:0], matrix).shape == (0, 130)


@pytest.mark.parametrize(("bits", "dtype"), [(32, torch.float32), *KEPT])
def test_a_row_of_a_product_does_not_depend_on_the_others(bits, dtype, monkeypatch):
    g = torch.Generator().manual_seed(0)
    matrix = pack(torch.randn(100, 288, generator=g), dtype, bits)
    x = torch.randn(205, 288, generator=g).to(dtype)
    for kernels in (native.kernels, lambda: None)[: 1 if bits == 32 else 2]:  # there is no twin of 32 bits
        monkeypatch.setattr(weights, "kernels", kernels)
        together = multiply(x, matrix)
        for rows in (slice(0, 1), slice(7, 8), slice(3, 6), slice(0, 97), slice(100, 205)):
            assert torch.equal(multiply(x[rows], matrix), together[rows])


@pytest.mark.slow
@pytest.mark.parametrize("precision", QUANTISED)
@pytest.mark.parametrize("name", OPTIONS)
def test_the_engine_samples_what_the_restored_model_does(models, name, precision):
    engine = Engine(models[name], -1, precision=precision)
    assert isinstance(engine._network, PlainDecoder if name in ("plain", "llama", "odd widths") else AnyTransformer)
    completions = engine.generate(asked())
    exact = difference(models[name], asked(), completions)
    error = difference(restored_twin(models[name], precision), asked(), completions)
    # What remains is the rounding of bf16 activations.
    assert error < 0.05 and error < exact * (0.8 if precision == "int8" else 0.2)


@pytest.mark.slow
@pytest.mark.parametrize("precision", QUANTISED)
@pytest.mark.parametrize("name", ["plain", "llama"])
def test_a_request_gets_the_same_bits_alone_together_in_chunks_and_preempted(models, name, precision):
    model = models[name]
    for temperature in (0.0, 1.0):
        requests = asked(temperature=temperature, tokens=20)
        alone = [Engine(model, -1, max_rows=1, precision=precision).generate([each])[0] for each in requests]
        bytes_of_4_blocks = 4 * 32 * model.config.cache_bytes_per_token(2)
        for options in ({}, {"step_tokens": 9}, {"max_rows": 3}, {"cache_bytes": bytes_of_4_blocks}):
            engine = Engine(model, -1, precision=precision, **options)
            assert engine.generate(requests) == alone
            assert engine.generate(requests[::-1]) == alone[::-1]


@pytest.mark.slow
@pytest.mark.parametrize("precision", QUANTISED)
@pytest.mark.parametrize("name", ["mla", "moe", "post norm"])
def test_greedy_replies_of_other_architectures_are_the_same_alone_and_together(models, name, precision):
    requests = asked()
    together = Engine(models[name], -1, precision=precision).generate(requests)
    for request, completion in zip(requests, together, strict=True):
        alone = Engine(models[name], -1, max_rows=1, precision=precision).generate([request])[0]
        assert alone.token_ids == completion.token_ids
        assert alone.logprobs == pytest.approx(completion.logprobs, abs=0.1)


@pytest.mark.parametrize(
    ("dtype", "compiled", "capability", "amx", "onednn_can", "bits"),
    [
        (BF16, True, "AVX512", False, True, 16),
        (BF16, True, "AVX512", True, True, None),
        (FP32, True, "AVX512", True, True, 32),
        (BF16, True, "AVX2", False, False, 16),
        (FP32, True, "AVX2", False, False, 32),
        (BF16, True, "DEFAULT", False, True, None),
        (FP32, True, "DEFAULT", False, True, None),
        (BF16, False, "AVX512", False, True, None),
        (FP32, False, "AVX512", False, True, None),
        (BF16, False, "AVX2", False, False, 16),
    ],
)
def test_who_multiplies_what_is_not_quantised(dtype, compiled, capability, amx, onednn_can, bits, monkeypatch):
    monkeypatch.setattr(weights, "kernels", native.kernels if compiled else lambda: None)
    if compiled and native.kernels() is None:
        pytest.skip("no compiler")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: onednn_can)
    assert weights.panel_bits(dtype, None) == bits
    assert weights.panel_bits(dtype, 8) == 8


@pytest.mark.parametrize("rows", [1, 2, 12, 13, 97])
def test_bf16_products_are_exact_sums_whatever_their_rows(rows):
    """Small integers: every product and sum is a number of bf16's and fp32's, so their order can't matter."""
    if native.kernels() is None:
        pytest.skip("no compiler")
    generator = torch.Generator().manual_seed(0)
    weight_OI = torch.randint(-3, 4, (70, 416), generator=generator).float()
    x_MI = torch.randint(-1, 2, (rows, 416), generator=generator).float() * (torch.arange(416) % 5 == 0)
    y_MO = PanelMatrix(weight_OI, 16).multiply(x_MI.bfloat16())
    assert torch.equal(y_MO.float(), x_MI @ weight_OI.T)


@pytest.mark.parametrize("name", ["plain", "moe"])
def test_replies_in_bf16_by_our_kernel_are_the_same_alone_and_together(models, name, monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    requests = asked(tokens=6)
    together = Engine(models[name], -1, precision="bfloat16").generate(requests)
    for request, completion in zip(requests, together, strict=True):
        alone = Engine(models[name], -1, max_rows=1, precision="bfloat16").generate([request])[0]
        assert alone.token_ids == completion.token_ids
        assert alone.logprobs == pytest.approx(completion.logprobs, abs=0.1)


@pytest.mark.parametrize("name", ["plain", "llama"])
def test_without_a_compiler_the_engine_samples_from_the_same_weights(models, name, monkeypatch):
    for module in (network_module, sampler, weights):
        monkeypatch.setattr(module, "kernels", lambda: None)
    engine = Engine(models[name], -1, precision="int4")
    assert isinstance(engine._network, AnyTransformer)
    assert difference(restored_twin(models[name], "int4"), asked(), engine.generate(asked())) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("precision", QUANTISED)
@pytest.mark.parametrize("consume", [False, True])
@pytest.mark.parametrize("name", ["plain", "moe"])
def test_weights_that_are_loaded_are_quantised_again(models, name, precision, consume):
    engine = Engine(copy.deepcopy(models[name]), -1, precision=precision, consume_model=consume)
    before = engine.generate(asked())
    other = {key: value.flip(-1) for key, value in models[name].state_dict().items()}
    engine.load_weights(other, 5)
    twin = copy.deepcopy(models[name])
    twin.load_state_dict(other)
    after, expected = engine.generate(asked()), Engine(twin, -1, precision=precision).generate(asked())
    assert [each.policy_version for each in after] == [5] * len(after)
    assert [each.logprobs for each in after] == [each.logprobs for each in expected] != [e.logprobs for e in before]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16", *QUANTISED])
@pytest.mark.parametrize("name", OPTIONS)
def test_an_engine_that_consumed_its_model_samples_the_same(models, name, precision):
    model = copy.deepcopy(models[name])
    engine = Engine(model, -1, precision=precision, consume_model=True)
    assert engine.model is None
    assert engine.generate(asked()) == Engine(models[name], -1, precision=precision).generate(asked())
    with pytest.raises(RuntimeError, match="consumed its model"):
        engine.refresh()


@pytest.mark.parametrize("name", ["plain", "llama", "mla", "moe"])
def test_weights_take_the_bytes_that_their_bits_say(name):
    wide = {"width": 256, "ffn_width": 512, "vocab_size": 1024}
    model = Transformer(ModelConfig(**{**SHAPE, **OPTIONS[name], **wide}))
    took, left = {}, {}
    for precision in ("float32", "bfloat16", *QUANTISED):
        mine = copy.deepcopy(model)
        took[precision] = Engine(mine, -1, precision=precision, consume_model=True).weight_bytes
        left[precision] = sum(p.untyped_storage().nbytes() for p in mine.parameters() if p.ndim > 1)
    whole = sum(p.nbytes for p in model.parameters())
    most = 1.02 if weights.panel_bits(FP32, None) == 32 else 1.4  # oneDNN's head is no table for a tied embedding
    assert whole * 0.99 < took["float32"] < whole * most
    assert took["int8"] < 0.3 * took["float32"] and took["int8"] < 0.5 * took["bfloat16"]
    assert took["int4"] < 0.8 * took["int8"]
    for precision in QUANTISED:
        assert left[precision] < 0.03 * whole  # routers, and nothing else of the model


@pytest.mark.parametrize("precision", QUANTISED)
@pytest.mark.parametrize("name", ["plain", "moe"])
def test_weights_that_are_not_finite_are_refused(models, name, precision):
    model = copy.deepcopy(models[name])
    with torch.no_grad():
        next(p for p in model.blocks[1].parameters() if p.ndim > 1).view(-1)[5] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        Engine(model, -1, precision=precision)


def test_an_adapted_model_is_quantised_with_its_adapter(models):
    model = copy.deepcopy(models["plain"])
    adapt(model, LoraConfig(rank=4))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora_b"):
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    merged = copy.deepcopy(models["plain"])
    merged.load_state_dict(merged_state(model))
    found = Engine(model, -1, precision="int4").generate(asked())
    assert difference(restored_twin(merged, "int4"), asked(), found) < 0.05


def merged_state(model: Transformer) -> dict[str, torch.Tensor]:
    return {name: model.get_submodule(name.rpartition(".")[0]).weight.detach() for name in build("plain").state_dict()}


def test_tables_are_shared_where_head_and_embedding_are_tied(models):
    network = Engine(models["plain"], -1, precision="int8")._network
    assert isinstance(network._table, PanelMatrix) and network._table is network._head.packed
    network = Engine(models["llama"], -1, precision="int8")._network
    assert network._table is not network._head.packed
    # In fp32 that saves memory only where the model is given up; beside it, its own embedding serves.
    if weights.panel_bits(FP32, None) == 32:
        network = Engine(copy.deepcopy(models["plain"]), -1, consume_model=True)._network
        assert network._table is network._head.packed
        assert isinstance(Engine(models["plain"], -1)._network._table, torch.Tensor)


def test_vllm_refuses_what_is_of_our_engine_alone(tmp_path):
    with pytest.raises(ValueError, match="int8 is of our engine alone; with vLLM: float32, bfloat16"):
        VllmEngine(tmp_path, -1, "python", context=8, precision="int8")
