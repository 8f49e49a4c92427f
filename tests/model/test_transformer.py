"""The forward pass against the formulas: attention, rotation, documents, cache."""

from __future__ import annotations

import math

import pytest
import torch

from noria.model import ModelConfig, Transformer
from noria.model.attention import Attention, rotary_angles, rotate
from noria.model.transformer import document_mask, document_positions
from tests.model.row_cache import RowCache

CONFIG = ModelConfig(vocab_size=50, width=32, layers=2, heads=4, kv_heads=2, ffn_width=48, context=32)


def randomised(config=CONFIG, seed=0):
    """A model whose output projections are not zero, so that every part takes part."""
    model, generator = Transformer(config, seed), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval()


def random_tokens(*shape, seed=0):
    return torch.randint(0, CONFIG.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def test_a_new_model_has_zero_output_projections_and_is_a_function_of_its_seed():
    model, twin, other = Transformer(CONFIG, 1), Transformer(CONFIG, 1), Transformer(CONFIG, 2)
    for block in model.blocks:
        assert not block.attention.output.weight.any() and not block.down.weight.any()
        assert block.attention.query.weight.any() and block.up.weight.any()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, twin.state_dict()[name])
    assert not torch.equal(model.embedding.weight, other.embedding.weight)
    logits = model(random_tokens(2, 8))
    assert logits.log_softmax(-1).mean().item() == pytest.approx(-math.log(50), abs=0.05)


def test_a_tied_head_is_the_embedding_itself():
    model = Transformer(CONFIG)
    assert model.head.weight is model.embedding.weight
    untied = Transformer(CONFIG.model_copy(update={"tied": False}))
    assert untied.head.weight is not untied.embedding.weight


@pytest.mark.parametrize("qk_norm", [True, False])
@torch.no_grad()
def test_attention_is_the_formula(qk_norm):
    """Head by head and token by token: softmax over the past of q.k/sqrt(d), keys and values shared by a group."""
    config = CONFIG.model_copy(update={"qk_norm": qk_norm})
    attention = Attention(config, 0)
    rows, length, d = 2, 7, config.head_width
    x = torch.randn(rows, length, config.width)
    rotary = rotary_angles(torch.arange(length)[None], d, config.rope_base)
    found = attention(x, rotary, None, None)

    def normalised(vector):
        return vector / (vector.square().mean() + 1e-6).sqrt() if qk_norm else vector

    def turned(vector, position):
        result = torch.empty(d)
        for i in range(d // 2):
            angle = position * config.rope_base ** (-2 * i / d)
            a, b = vector[i], vector[i + d // 2]
            result[i] = a * math.cos(angle) - b * math.sin(angle)
            result[i + d // 2] = b * math.cos(angle) + a * math.sin(angle)
        return result

    for row in range(rows):
        q, k, v = (matrix(x[row]) for matrix in (attention.query, attention.key, attention.value))
        for t in range(length):
            heads = []
            for head in range(config.heads):
                group = head // (config.heads // config.kv_heads)
                own, shared = slice(head * d, head * d + d), slice(group * d, group * d + d)
                query = turned(normalised(q[t, own]), t)
                scores = torch.stack([query @ turned(normalised(k[s, shared]), s) for s in range(t + 1)])
                heads.append((scores / math.sqrt(d)).softmax(0) @ v[: t + 1, shared])
            expected = attention.output.weight @ torch.cat(heads)
            torch.testing.assert_close(found[row, t], expected, atol=1e-5, rtol=1e-4)


def test_rotated_products_depend_on_the_distance_alone():
    query, key = torch.randn(1, 1, 1, 16), torch.randn(1, 1, 1, 16)

    def product(at_query, at_key):
        turned = [
            rotate(x, *rotary_angles(torch.tensor([[p]]), 16, 10_000.0)) for x, p in ((query, at_query), (key, at_key))
        ]
        return (turned[0] * turned[1]).sum().item()

    assert product(5, 2) == pytest.approx(product(103, 100), abs=1e-4)
    assert product(0, 0) == pytest.approx((query * key).sum().item(), abs=1e-5)
    assert abs(product(5, 2) - product(5, 3)) > 1e-3


@torch.no_grad()
def test_no_token_sees_a_later_one():
    model, tokens = randomised(), random_tokens(1, 12)
    changed = tokens.clone()
    changed[0, 8] = (tokens[0, 8] + 1) % CONFIG.vocab_size
    before, after = model(tokens), model(changed)
    assert torch.equal(before[0, :8], after[0, :8])
    assert not torch.equal(before[0, 8:], after[0, 8:])


@torch.no_grad()
def test_a_packed_document_has_the_logits_that_it_has_alone():
    model = randomised()
    documents = [random_tokens(1, n, seed=n) for n in (3, 7, 1, 5)]
    packed = torch.cat(documents, 1)
    segment = torch.cat([torch.full_like(tokens, index) for index, tokens in enumerate(documents)], 1)
    together = model(packed, segment_BT=segment)
    start = 0
    for tokens in documents:
        stop = start + tokens.shape[1]
        torch.testing.assert_close(together[:, start:stop], model(tokens), atol=1e-5, rtol=1e-4)
        start = stop


@torch.no_grad()
def test_a_packed_document_does_not_depend_on_its_neighbours_at_all():
    model, segment = randomised(), torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2, 2]])
    first, second = random_tokens(1, 9, seed=1), random_tokens(1, 9, seed=2)
    second[0, 3:7] = first[0, 3:7]
    assert torch.equal(model(first, segment_BT=segment)[0, 3:7], model(second, segment_BT=segment)[0, 3:7])


def test_document_positions_and_mask_against_a_brute_force_twin():
    segment = torch.tensor([[0, 0, 0, 1, 2, 2, -1, -1], [4, 4, 4, 4, 4, 4, 4, 4], [0, 1, 2, 3, 4, 5, 6, 6]])
    positions, mask = document_positions(segment), document_mask(segment)
    for row, ids in enumerate(segment.tolist()):
        for t, document in enumerate(ids):
            assert positions[row, t] == t - ids.index(document)
            for s in range(len(ids)):
                assert mask[row, 0, t, s] == (s <= t and ids[s] == document)


@torch.no_grad()
def test_decoding_with_a_cache_equals_the_whole_pass():
    model, tokens = randomised(), random_tokens(3, 10)
    cache = RowCache(CONFIG, rows=5)
    view = cache.view(1, torch.arange(6).expand(3, 6))
    states = [model.hidden(tokens[:, :6], torch.arange(6).expand(3, 6), cache=view, mask=view.mask())]
    for t in range(6, 10):
        positions = torch.full((3, 1), t)
        view = cache.view(1, positions)
        states.append(model.hidden(tokens[:, t : t + 1], positions, cache=view, mask=view.mask()))
    torch.testing.assert_close(torch.cat(states, 1), model.hidden(tokens), atol=1e-5, rtol=1e-4)
