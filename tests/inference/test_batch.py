"""How a step's tokens are put into rectangles: nothing lost, little in vain, and never more pairs than are allowed."""

from __future__ import annotations

import pytest
import torch

from noria.inference import Engine, Request, SamplingParams, batch
from noria.inference.batch import PAIRS, Batch, batch_of
from noria.inference.cache import BLOCK
from noria.inference.scheduler import Chunk, Sequence
from noria.model import ModelConfig, Transformer


def planned(*rows: tuple[int, int]) -> Batch:
    """Chunks of (tokens computed before, tokens to compute)."""
    chunks, taken = [], 0
    for before, count in rows:
        blocks = -(-(before + count) // BLOCK)
        sequence = Sequence(None, list(range(before + count)), before, list(range(taken, taken + blocks)))
        chunks.append(Chunk(sequence, count))
        taken += blocks
    return batch_of(chunks)


@pytest.mark.parametrize(
    "rows",
    [
        [(5, 1), (0, 7), (40, 1), (0, 8), (0, 30)],
        pytest.param([(0, 1500), *[(0, 5)] * 100, (3, 1)], marks=pytest.mark.slow),
        pytest.param([(0, 2048), (6000, 2048)], marks=pytest.mark.slow),
        [(PAIRS * 2, 3)],
        [(0, 1)],
    ],
)
def test_every_token_is_computed_once_with_little_beside_and_within_the_bound(rows):
    plan = planned(*rows)
    done: dict[int, int] = {}
    cells = 0
    for group in plan.groups:
        assert len(group.index_BT) * group.index_BT.shape[1] * group.slot_BS.shape[1] <= PAIRS or (
            group.index_BT.shape[1] == 1
        )
        cells += group.index_BT.numel()
        for index_T, slot_S in zip(group.index_BT, group.slot_BS, strict=True):
            for index in index_T.unique().tolist():
                row, position = int(plan.row_N[index]), int(plan.position_N[index])
                assert done.setdefault(index, row) == row
                assert slot_S[position] == plan.slot_N[index]
                earlier = [other for other in range(index) if plan.row_N[other] == row]
                assert all(other in done for other in earlier)
    assert sorted(done) == list(range(len(plan.token_N)))
    assert cells <= 2 * len(plan.token_N)


@pytest.mark.parametrize("option", [{"attention_soft_cap": 10.0}, {"forget_gate": True, "nope_every": 1}])
def test_a_prompt_in_pieces_gives_what_the_whole_pass_gives_and_never_holds_all_pairs(option, monkeypatch):
    shape = {"vocab_size": 40, "width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "ffn_width": 48, "context": 300}
    model = Transformer(ModelConfig(**shape, **option)).eval()
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=g) * 0.3)
    monkeypatch.setattr(batch, "PAIRS", 3000)
    seen: list[int] = []
    engine = Engine(model, -1)
    twin = engine._network._model
    hidden = twin.hidden
    monkeypatch.setattr(twin, "hidden", lambda *a, mask, **k: seen.append(mask.numel()) or hidden(*a, mask=mask, **k))
    prompts = [torch.randint(3, 40, (length,), generator=g).tolist() for length in (250, 9, 40)]
    replies = engine.generate([Request(prompt, SamplingParams(max_tokens=3, temperature=0.0)) for prompt in prompts])
    assert max(seen) <= 3000
    for prompt, reply in zip(prompts, replies, strict=True):
        ids = [*prompt, *reply.token_ids]
        with torch.no_grad():
            logprobs = model(torch.tensor([ids[:-1]]))[0].log_softmax(-1)[range(len(ids) - 1), ids[1:]]
        assert reply.logprobs == pytest.approx(logprobs[len(prompt) - 1 :].tolist(), abs=1e-4)
