"""The engine: what a request gets does not depend on its neighbours, and nobody waits for ever."""

from __future__ import annotations

import threading

import pytest
import torch

from noria.inference import Engine, Request, RequestTooLong, SamplingParams, score
from noria.inference.cache import BLOCK
from noria.model import ModelConfig, Transformer

CONFIG = ModelConfig(vocab_size=40, width=32, layers=2, heads=4, kv_heads=2, ffn_width=48, context=32)
END = 2
GREEDY = SamplingParams(max_tokens=10, temperature=0.0)


@pytest.fixture(scope="module")
def model():
    """Large random weights, so that replies differ; seldom an end token."""
    model, generator = Transformer(CONFIG), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


def prompts(count, seed=0):
    g = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 15, (count,), generator=g).tolist()
    return [torch.randint(3, 40, (size,), generator=g).tolist() for size in sizes]


def requests(count, **params):
    return [
        Request(prompt, SamplingParams(**{"max_tokens": 3 + index % 9, "seed": index, **params}))
        for index, prompt in enumerate(prompts(count))
    ]


def alone(model, request):
    return Engine(model, END, max_rows=1).generate([request])[0]


def assert_equal(found, expected):
    assert found.token_ids == expected.token_ids and found.finish == expected.finish
    assert found.logprobs == pytest.approx(expected.logprobs, abs=1e-5)


def test_greedy_decoding_is_the_argmax_of_the_whole_pass(model):
    prompt = prompts(1)[0]
    completion = alone(model, Request(prompt, GREEDY))
    ids = list(prompt)
    for token in completion.token_ids:
        assert model(torch.tensor([ids]))[0, -1].argmax() == token
        ids.append(token)
    assert len(completion.token_ids) == 10 or completion.token_ids[-1] == END


@pytest.mark.slow
@pytest.mark.parametrize("max_rows", [1, 4, 16])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_request_gets_the_same_alone_in_a_batch_and_when_rows_are_scarce(model, temperature, max_rows):
    asked = requests(9, temperature=temperature)
    together = Engine(model, END, max_rows=max_rows).generate(asked)
    for request, completion in zip(asked, together, strict=True):
        assert_equal(completion, alone(model, request))


def test_the_same_seed_gives_the_same_whoever_the_neighbours_are(model):
    mine = Request(prompts(1)[0], SamplingParams(max_tokens=12, seed=5))
    expected = alone(model, mine)
    for others in (requests(3), requests(7, top_k=3), requests(5, temperature=0.0), requests(4, top_p=0.5)):
        assert_equal(Engine(model, END).generate([*others, mine])[-1], expected)
    assert alone(model, Request(mine.prompt_ids, SamplingParams(max_tokens=12, seed=6))) != expected


def test_more_tokens_allowed_do_not_change_the_first_ones(model):
    few, many = (Request(prompts(1)[0], SamplingParams(max_tokens=n, seed=1)) for n in (4, 9))
    assert alone(model, many).token_ids[:4] == alone(model, few).token_ids


def watched(engine, monkeypatch):
    """The number of tokens that each of the engine's passes computes, as a list that grows."""
    computed, whole_pass = [], engine._network.hidden
    monkeypatch.setattr(
        engine._network, "hidden", lambda batch, cache: computed.append(len(batch.token_N)) or whole_pass(batch, cache)
    )
    return computed


@pytest.mark.parametrize("step_tokens", [1, 5, 2048])
def test_equal_prompts_are_computed_once_and_give_what_each_would_alone(model, monkeypatch, step_tokens):
    first, second = ([token + shift for token in range(3, 30)] for shift in (0, 7))
    asked = [Request(p, SamplingParams(max_tokens=4, seed=s)) for s, p in enumerate([first, second, first, first])]
    engine = Engine(model, END, step_tokens=step_tokens)
    computed = watched(engine, monkeypatch)
    found = engine.generate(asked)
    if step_tokens == 2048:
        assert computed[0] == len(first) + len(second)
    else:
        assert max(computed) <= BLOCK + 4
    for request, completion in zip(asked, found, strict=True):
        assert_equal(completion, alone(model, request))


def test_rows_are_given_back_and_reused_without_a_trace(model):
    engine = Engine(model, END, max_rows=4)
    expected = [alone(model, request) for request in requests(8)]
    for _ in range(2):
        for found, wanted in zip(engine.generate(requests(8)), expected, strict=True):
            assert_equal(found, wanted)
        assert engine.load == (0, 0)


def test_logprobs_as_sampled_are_those_that_a_trainer_recomputes(model):
    asked = requests(8, max_tokens=12)
    found = Engine(model, END, max_rows=5).generate(asked)
    sequences = [[*request.prompt_ids, *completion.token_ids] for request, completion in zip(asked, found, strict=True)]
    for request, completion, sequence, scored in zip(asked, found, sequences, score(model, sequences, 3), strict=True):
        with torch.no_grad():
            logprobs = model(torch.tensor([sequence[:-1]])).log_softmax(-1)[0]
        recomputed = logprobs[range(len(sequence) - 1), sequence[1:]].tolist()
        assert scored == pytest.approx(recomputed, abs=1e-5)
        assert completion.logprobs == pytest.approx(recomputed[len(request.prompt_ids) - 1 :], abs=1e-5)


def test_logprobs_at_another_temperature_are_of_the_distribution_that_was_sampled(model):
    request = Request(prompts(1)[0], SamplingParams(max_tokens=5, temperature=0.5, seed=3))
    completion = alone(model, request)
    with torch.no_grad():
        logits = model(torch.tensor([[*request.prompt_ids, *completion.token_ids[:-1]]]))[0]
    expected = (logits / 0.5).log_softmax(-1)[len(request.prompt_ids) - 1 :]
    assert completion.logprobs == pytest.approx(expected[range(5), completion.token_ids].tolist(), abs=1e-5)


def test_score_of_nothing_and_of_single_tokens_is_empty(model):
    assert score(model, []) == []
    assert score(model, [[4], [4, 5, 6], []])[::2] == [[], []]


def test_replies_end_at_the_end_token_at_stop_ids_and_at_their_length(model):
    free = alone(model, Request(prompts(1)[0], GREEDY)).token_ids
    assert len(free) == 10
    third = free[2]
    first_seen = free.index(third) + 1
    for engine, params in (
        (Engine(model, END), GREEDY.model_copy(update={"stop_ids": (third,)})),
        (Engine(model, third), GREEDY),
    ):
        stopped = engine.generate([Request(prompts(1)[0], params)])[0]
        assert stopped.finish == "stop" and stopped.token_ids == free[:first_seen]
        assert len(stopped.logprobs) == first_seen
    cut = alone(model, Request(prompts(1)[0], GREEDY.model_copy(update={"max_tokens": 2})))
    assert cut.finish == "length" and cut.token_ids == free[:2]


def test_a_reply_ends_where_the_context_does(model):
    prompt = list(range(3, 33))
    completion = alone(model, Request(prompt, SamplingParams(max_tokens=10**9, temperature=0.0)))
    assert completion.finish in ("length", "stop") and 1 <= len(completion.token_ids) <= 2
    assert len(alone(model, Request([*prompt, 3], GREEDY)).token_ids) == 1


@pytest.mark.parametrize("prompt", [[], [5] * 32, [5] * 100])
def test_prompts_that_leave_no_room_are_refused(model, prompt):
    with pytest.raises(RequestTooLong, match="1 to 31"):
        Engine(model, END).submit(Request(prompt))


@pytest.mark.parametrize("token", [-1, 40, 10**6])
def test_unknown_token_ids_are_refused_before_they_harm_others(model, token):
    engine = Engine(model, END)
    with pytest.raises(ValueError, match=r"outside 0\.\.39"):
        engine.submit(Request([3, token]))
    assert engine.load == (0, 0)


def test_an_aborted_request_ends_while_others_go_on(model):
    engine = Engine(model, END, max_rows=2)
    long = SamplingParams(max_tokens=15, temperature=0.0)
    running, other, waiting = (engine.submit(Request(prompt, long)) for prompt in prompts(3))
    engine.step()
    assert engine.load == (2, 1)
    running.abort()
    waiting.abort()
    engine.step()
    stopped = running.result()
    assert stopped.finish == "aborted" and 1 <= len(stopped.token_ids) < 15
    assert waiting.result().finish == "aborted" and waiting.result().token_ids == ()
    while engine.step():
        pass
    assert_equal(other.result(), alone(model, other.request))
    running.abort()  # harmless afterwards
    assert running.result() is stopped


def test_a_failing_step_fails_every_request_and_the_engine_works_again(model, monkeypatch):
    engine = Engine(model, END, max_rows=2)
    handles = [engine.submit(request) for request in requests(5, max_tokens=8)]
    engine.step()
    with monkeypatch.context() as patch:
        patch.setattr(engine._network, "logits", lambda hidden: (_ for _ in ()).throw(MemoryError("no room")))
        with pytest.raises(MemoryError):
            engine.step()
    for handle in handles:
        with pytest.raises(MemoryError, match="no room"):
            handle.result()
    assert engine.load == (0, 0)
    assert_equal(engine.generate(requests(1))[0], alone(model, requests(1)[0]))


def test_weights_are_swapped_only_while_nothing_runs(model):
    mine = Transformer(CONFIG)
    mine.load_state_dict(model.state_dict())
    engine = Engine(mine.eval(), end_id=99)  # never sampled
    request = requests(1, max_tokens=8)[0]
    handle = engine.submit(request)
    engine.step()
    other = {name: tensor.flip(0) for name, tensor in model.state_dict().items()}
    with pytest.raises(RuntimeError, match="1 requests are running"):
        engine.load_weights(other, 1)
    while engine.step():
        pass
    assert handle.result().policy_version == 0
    assert_equal(handle.result(), Engine(model, 99).generate([request])[0])
    engine.load_weights(other, 7)
    after = engine.generate([request])[0]
    assert after.policy_version == 7 and after.token_ids != handle.result().token_ids


def test_tokens_stream_to_other_threads_as_they_come(model):
    engine = Engine(model, END, max_rows=2)
    handles = [engine.submit(request) for request in requests(4)]
    streamed: dict[int, list[int]] = {}
    finished: list[object] = []

    def read(index):
        streamed[index] = list(handles[index].stream())

    readers = [threading.Thread(target=read, args=(index,)) for index in range(4)]
    # Two more wait for the end of what another thread already reads.
    readers += [threading.Thread(target=lambda: finished.append(handles[0].result())) for _ in range(2)]
    for reader in readers:
        reader.start()
    driver = threading.Thread(target=lambda: [None for _ in iter(engine.step, False)])
    driver.start()
    for thread in (*readers, driver):
        thread.join(60)
        assert not thread.is_alive()
    assert len(finished) == 2
    for index in range(1, 4):
        assert streamed[index] == list(handles[index].result().token_ids)


def test_waiting_for_work_ends_when_a_request_arrives(model):
    engine = Engine(model, END)
    assert not engine.wait_for_work(0.0)
    submitter = threading.Thread(target=lambda: engine.submit(requests(1)[0]))
    submitter.start()
    assert engine.wait_for_work(60)
    submitter.join()


def test_a_model_that_is_trained_in_place_is_noticed(model):
    mine = Transformer(CONFIG)
    mine.load_state_dict(model.state_dict())
    engine, request = Engine(mine.eval(), END), Request(prompts(1)[0], GREEDY)
    before = engine.generate([request])[0]
    optimizer = torch.optim.SGD(mine.parameters(), 0.5)
    mine(torch.tensor([request.prompt_ids])).square().sum().backward()
    optimizer.step()
    assert_equal(engine.generate([request])[0], alone(mine, request))
    assert engine.generate([request])[0] != before
    for parameter in mine.parameters():
        parameter.data = parameter.data.flip(0)  # leaves no count, but other storage
    assert_equal(engine.generate([request])[0], alone(mine, request))


def test_bfloat16_logprobs_are_near_those_of_a_trainer_in_bfloat16(model):
    asked = requests(8, max_tokens=12)
    for request, completion in zip(asked, Engine(model, END, precision="bfloat16").generate(asked), strict=True):
        sequence = torch.tensor([[*request.prompt_ids, *completion.token_ids]])
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            logprobs = model.hidden(sequence[:, :-1])
        with torch.no_grad():
            logprobs = model.logits(logprobs).log_softmax(-1)[0]
        recomputed = logprobs[range(sequence.shape[1] - 1), sequence[0, 1:]][len(request.prompt_ids) - 1 :]
        assert completion.logprobs == pytest.approx(recomputed.tolist(), abs=0.2)
