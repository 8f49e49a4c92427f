"""Examples, packing and fine-tuning: what is trained on, and that packing changes nothing."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from noria.data.imported_tokenizer import ImportedTokenizer
from noria.data.tokenizer import train_tokenizer
from noria.inference import Engine, Request, SamplingParams
from noria.model import ModelConfig, Transformer
from noria.posttraining import Example, SftConfig, conversation, example, fine_tune, trace_examples
from noria.posttraining.sft import pack, pack_order, sft_steps
from noria.training import Objective
from noria.training.step import loss_sums
from noria.types import Message, ModelCall, Node, Trace
from tests.data.test_imported_tokenizer import TEMPLATE
from tests.data.test_imported_tokenizer import write as write_imported

TINY = ModelConfig(vocab_size=40, width=16, layers=2, heads=2, kv_heads=1, ffn_width=32, context=24)


def made_of(*calls, task_id="t"):
    nodes = [Node((), Message("user", "q"))]
    nodes += [Node((0,), Message("assistant", "a"), call) for call in calls]
    return Trace("trace", task_id, tuple(nodes), 0, "plain", "finished")


def call(prompt, sampled, first_logprob=-0.5):
    return ModelCall(tuple(prompt), tuple(sampled), tuple(first_logprob - i for i in range(len(sampled))))


def some_examples(count=9, seed=0):
    g = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        length = int(torch.randint(3, 12, (), generator=g))
        context = int(torch.randint(1, length, (), generator=g))
        ids = torch.randint(3, 40, (length,), generator=g).tolist()
        found.append(Example(tuple(ids), (False,) * context + (True,) * (length - context)))
    return found


def randomised():
    model = Transformer(TINY)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def test_a_demonstration_trains_the_reply_and_its_end_and_nothing_else():
    tokenizer = train_tokenizer(["what is two and two four so they say"] * 5, 300)
    prompt = [Message("system", "say"), Message("user", "what is two and two")]
    item = example(tokenizer, prompt, "<think>so</think>four")
    trained = [token for token, on in zip(item.token_ids, item.trained, strict=True) if on]
    assert trained == [*tokenizer.encode_reply("<think>so</think>four"), tokenizer.end]
    assert list(item.token_ids) == [*tokenizer.render(prompt), *trained]


def test_a_trace_trains_each_sampled_token_once_and_no_other():
    """Three turns whose prompts extend each other are one example; tool results between them are context."""
    first = call([1, 4, 9], [10, 11, 2])
    second = call([1, 4, 9, 10, 11, 2, 6, 20, 2, 5], [12, 2])
    third = call([*second.prompt_ids, 12, 2, 6, 21, 2, 5], [13])
    (item,) = trace_examples(made_of(first, second, third))
    assert item.token_ids == (*third.prompt_ids, 13)
    sampled = [token for token, on in zip(item.token_ids, item.trained, strict=True) if on]
    assert sampled == [10, 11, 2, 12, 2, 13]


def test_a_prompt_that_does_not_extend_the_last_call_starts_an_example_of_its_own():
    """A harness that rewrites its history, or samples written differently: never trained on what was not sampled."""
    compacted = call([1, 7, 9], [12, 2])
    items = trace_examples(made_of(call([1, 4, 9], [10, 2]), compacted, call([1, 7, 9, 12, 2, 5], [13])))
    assert [item.token_ids for item in items] == [(1, 4, 9, 10, 2), (1, 7, 9, 12, 2, 5, 13)]
    assert sum(sum(item.trained) for item in items) == 5
    assert trace_examples(made_of()) == []


TALK = [
    Message("system", "be brief"),
    Message("user", "two and two"),
    Message("assistant", "four"),
    Message("user", "and two"),
    Message("assistant", "six"),
]


def trained_ids(item):
    return [token for token, on in zip(item.token_ids, item.trained, strict=True) if on]


def test_a_conversation_trains_every_reply_of_the_assistant_and_its_end():
    tokenizer = train_tokenizer(["be brief two and two four six"] * 5, 300)
    (item,) = conversation(tokenizer, TALK)
    assert list(item.token_ids) == tokenizer.render(TALK, generation=False)
    said = [[*tokenizer.encode_reply(text), tokenizer.end] for text in ("four", "six")]
    assert trained_ids(item) == said[0] + said[1]
    with pytest.raises(ValueError, match="none of the assistant"):
        conversation(tokenizer, TALK[:2])


def test_a_conversation_of_an_imported_model_is_the_text_of_its_template(tmp_path):
    """ChatML writes a line break after the end of a turn: it is context of the next turn, and never trained on."""
    tokenizer = ImportedTokenizer.load(write_imported(tmp_path))
    (item,) = conversation(tokenizer, TALK)
    assert [*item.token_ids, *tokenizer.encode("\n")] == tokenizer.render(TALK, generation=False)
    assert tokenizer.decode(trained_ids(item)) == "foursix"
    assert trained_ids(item).count(tokenizer.end) == 2 and trained_ids(item)[-1] == tokenizer.end
    alone = example(tokenizer, TALK[:4], "six")
    assert alone.token_ids == item.token_ids and trained_ids(alone) == [*tokenizer.encode("six"), tokenizer.end]


def test_a_template_that_rewrites_history_gives_each_turn_what_the_model_would_see(tmp_path):
    """Some drop the thinking of earlier turns: no token is trained on after a context that never occurs."""
    forgetful = TEMPLATE.replace("message.content", "message.content.split('</think>')[-1]")
    tokenizer = ImportedTokenizer.load(write_imported(tmp_path, chat_template=forgetful))
    talk = [*TALK[:2], Message("assistant", "<think>2+2</think>four"), *TALK[3:]]
    first, second = conversation(tokenizer, talk)
    assert list(second.token_ids[: len(tokenizer.render(talk[:4]))]) == tokenizer.render(talk[:4])
    assert tokenizer.decode(trained_ids(first)) == "<think>2+2</think>four"
    assert tokenizer.decode(trained_ids(second)) == "six" and "2+2" not in tokenizer.decode(second.token_ids)


def test_an_imported_model_learns_its_replies_token_in_token_out(tmp_path):
    """After fine-tuning on a conversation the engine samples the trained ids from the rendered prompt."""
    tokenizer = ImportedTokenizer.load(write_imported(tmp_path))
    model = Transformer(TINY.model_copy(update={"vocab_size": tokenizer.vocab_size, "context": 128}))
    items = conversation(tokenizer, TALK)
    fine_tune(model, items, SftConfig(epochs=60, batch_tokens=128, learning_rate=0.02), tokenizer.pad, seed=0)
    request = Request(tokenizer.render(TALK[:4]), SamplingParams(temperature=0.0, max_tokens=8))
    (found,) = Engine(model, tokenizer.end).generate([request])
    assert tokenizer.decode(found.token_ids) == "six" and found.finish == "stop"


def test_packing_gives_each_example_its_own_segment_and_loses_none():
    items = some_examples()
    batch, places = pack_order(items, 24, pad=0)
    assert batch.tokens_BT.shape[0] < len(items)
    for number, (item, (row, start)) in enumerate(zip(items, places, strict=True)):
        stop = start + len(item.token_ids)
        assert tuple(batch.tokens_BT[row, start:stop].tolist()) == item.token_ids
        assert (batch.segment_BT == number).sum() == len(item.token_ids)
        assert (batch.segment_BT[row, start:stop] == number).all()
    assert batch.w_ce.sum() == sum(sum(item.trained) for item in items)
    assert not batch.w_ce[(batch.segment_BT == -1)[:, 1:]].any()


def test_loss_and_gradient_on_packed_rows_are_those_of_the_examples_alone():
    items = some_examples()

    def loss_and_gradient(batches):
        model = randomised()
        total = sum(loss_sums(model, batch, Objective())["ce"] for batch in batches)
        total.backward()
        return total.item(), torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    alone, alone_gradient = loss_and_gradient([pack([item], len(item.token_ids), 0) for item in items])
    packed, packed_gradient = loss_and_gradient([pack(items, 24, 0)])
    assert packed == pytest.approx(alone, rel=1e-5)
    assert (packed_gradient - alone_gradient).norm() < 1e-5 * alone_gradient.norm()


def test_no_token_is_predicted_from_another_document():
    """An example that is trained from its first token on has nothing to predict that token from."""
    items = [Example((5, 6, 7), (True, True, True)), Example((8, 9), (True, True))]
    assert pack(items, 24, 0).w_ce.nonzero().tolist() == [[0, 0], [0, 1], [0, 3]]


def test_an_example_longer_than_a_row_is_refused():
    with pytest.raises(ValueError, match="25 tokens does not fit into rows of 24"):
        pack([Example((3,) * 25, (True,) * 25)], 24, 0)


def test_every_epoch_takes_each_example_once_in_another_order():
    items, config = some_examples(30), SftConfig(epochs=3, batch_tokens=64)
    steps = sft_steps(items, config, seed=1)
    flat = [index for step in steps for index in step]
    assert Counter(flat) == dict.fromkeys(range(30), 3)
    epochs = [flat[start : start + 30] for start in (0, 30, 60)]
    assert all(sorted(epoch) == list(range(30)) for epoch in epochs) and epochs[0] != epochs[1] != epochs[2]
    assert all(sum(len(items[index].token_ids) for index in step) <= 64 for step in steps)
    assert steps == sft_steps(items, config, seed=1) != sft_steps(items, config, seed=2)
    with pytest.raises(ValueError, match="no examples"):
        sft_steps([], config, seed=1)


def test_fine_tuning_learns_the_replies():
    items = some_examples(6)
    history = fine_tune(Transformer(TINY), items, SftConfig(epochs=12, batch_tokens=64, learning_rate=0.02), 0, seed=0)
    assert history[-1]["loss_ce"] < 0.5 * history[0]["loss_ce"]
