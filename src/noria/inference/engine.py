"""One engine for rollouts, evaluations, judgements, teacher scores and served replies.

A step is three things: plan which tokens to compute (`scheduler.py`), run them through the network, sample a token for
every sequence that is complete and retire what has finished.

B rows, T prompt tokens, V vocabulary.
"""

from __future__ import annotations

import math
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from noria.inference import scheduler
from noria.inference.batch import batch_of
from noria.inference.cache import BLOCK, CACHE_BYTES, BlockPool, PagedCache
from noria.inference.network import network
from noria.inference.request import Completion, Finish, Likeliest, Request, RequestTooLong, SamplingParams
from noria.inference.sampler import distribution, penalised, request_noise, sample
from noria.inference.scoring import Logprobs, score_sequences
from noria.inference.weights import Precision, compute_dtype, fingerprint
from noria.model import Transformer


def room_after(prompt_ids: Sequence[int], context: int, vocabulary: int) -> int:
    """Tokens of the context that a prompt leaves to its reply. Raises RequestTooLong; ValueError for an unknown id."""
    room = context - len(prompt_ids)
    if room < 1 or not prompt_ids:
        raise RequestTooLong(
            f"a prompt of {len(prompt_ids)} tokens does not fit: it needs 1 to {context - 1}, "
            f"since the context of {context} tokens also holds the reply"
        )
    if min(prompt_ids) < 0 or max(prompt_ids) >= vocabulary:
        raise ValueError(f"a prompt holds a token id outside 0..{vocabulary - 1}")
    return room


class Handle:
    """A submitted request: read its tokens as they come, wait for its completion, or abort it. Thread-safe."""

    def __init__(self, request: Request, budget: int) -> None:
        self.request, self.budget = request, budget
        self.token_ids: list[int] = []
        self.logprobs: list[float] = []
        self.top_logprobs: list[Likeliest] = []
        self.constraint = request.structure() if request.structure else None
        self.noise = request_noise(request.params, budget)
        self._aborted = threading.Event()
        self._events: queue.SimpleQueue[int | Completion | BaseException] = queue.SimpleQueue()
        self._outcome: Completion | BaseException | None = None

    def abort(self) -> None:
        """Stop at the engine's next step; the completion then says `aborted`. Harmless on a finished request."""
        self._aborted.set()

    @property
    def aborted(self) -> bool:
        return self._aborted.is_set()

    def stream(self) -> Iterator[int]:
        """Token ids as they are sampled. Some other thread must drive the engine."""
        while self._outcome is None:
            event = self._events.get()
            if isinstance(event, int):
                yield event
            else:
                self._outcome = event
                self._events.put(event)  # wakes whoever else waits for this request
        if isinstance(self._outcome, BaseException):
            raise self._outcome

    def result(self) -> Completion:
        """Wait for the end (the tokens that `stream` has not yielded are passed over)."""
        for _ in self.stream():
            pass
        assert isinstance(self._outcome, Completion)
        return self._outcome

    def poll(self) -> Completion | None:
        """The completion, or None while the request runs; raises what failed it. Never waits; not beside `stream`."""
        while self._outcome is None:
            try:
                event = self._events.get_nowait()
            except queue.Empty:
                return None
            if not isinstance(event, int):
                self._outcome = event
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        return self._outcome

    def push(self, token: int, logprob: float, likeliest: Likeliest | None = None) -> None:
        if likeliest is not None:
            self.top_logprobs.append(likeliest)
        if self.constraint is not None:
            self.constraint.accept(token)
        self.token_ids.append(token)
        self.logprobs.append(logprob)
        self._events.put(token)

    def finish(self, reason: Finish, version: int) -> None:
        tops = tuple(self.top_logprobs)
        self._events.put(Completion(tuple(self.token_ids), tuple(self.logprobs), reason, version, tops))

    def fail(self, error: BaseException) -> None:
        self._events.put(error)


class Engine:
    """Continuous batching over one model. `submit` may be called from any thread, `step` from one at a time.

    The engine works with a packed copy of the model's matrices (`weights.py`). A model that is trained in place is
    noticed: the copy is renewed before the first request after the change. `precision` bfloat16 is what training calls
    so: products in bf16; residual stream, norms and, here, the head in fp32; the cache in bf16. int8 and int4 keep the
    weights in as many bits and are else as bfloat16 (`weights.py`). A model that only this engine is to run can be
    given up: `consume_model` empties it (the caller's too) and keeps the packed copy alone.

    `max_rows` sequences run at once, fewer where `cache_bytes` (at least one whole context) does not hold their tokens:
    then the latest arrivals are pre-empted and go on later. A step computes up to `step_tokens` tokens of prompts.
    `decode` (a tokenizer's) is what stop strings need.
    """

    def __init__(
        self,
        model: Transformer,
        end_id: int,
        max_rows: int = 256,
        context: int | None = None,
        precision: Precision = "float32",
        cache_bytes: int = CACHE_BYTES,
        step_tokens: int = 2048,
        decode: Callable[[Sequence[int]], str] | None = None,
        consume_model: bool = False,
    ) -> None:
        self.config, self.end_id, self.precision, self._decode = model.config, end_id, precision, decode
        self.context = min(context or model.config.context, model.config.context)
        self.max_rows, self.policy_version, self._step_tokens = max_rows, 0, step_tokens
        self._network = network(model, precision, consume_model)
        self.model = None if consume_model else model
        self._fingerprint = fingerprint(model)
        dtype = compute_dtype(precision)
        blocks_of_one = -(-self.context // BLOCK)
        affordable = cache_bytes // (BLOCK * model.config.cache_bytes_per_token(dtype.itemsize))
        self._pool = BlockPool(max(blocks_of_one, min(max_rows * blocks_of_one, affordable)))
        self._cache = PagedCache(model.config, self._pool.blocks, dtype)
        self._scheduler: scheduler.Scheduler[Handle] = scheduler.Scheduler(self._pool, max_rows, step_tokens)
        self._arrivals: deque[Handle] = deque()
        self._arrived = threading.Condition()

    # -- asking --

    def submit(self, request: Request) -> Handle:
        """Queue a request. Raises RequestTooLong where the prompt fills the context, ValueError for an unknown id."""
        room = room_after(request.prompt_ids, self.context, self.config.vocab_size)
        if any(token >= self.config.vocab_size or token < 0 for token in request.params.logit_bias):
            raise ValueError(f"logit_bias holds a token id outside 0..{self.config.vocab_size - 1}")
        if request.params.stop and self._decode is None:
            raise ValueError("stop strings need an engine that was given a tokenizer's decode")
        handle = Handle(request, min(request.params.max_tokens, room))
        with self._arrived:
            self._arrivals.append(handle)
            self._arrived.notify()
        return handle

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Run `requests` to their ends. Equal requests in equal order on an idle engine give equal results."""
        handles = [self.submit(request) for request in requests]
        while self.step():
            pass
        return [handle.result() for handle in handles]

    def score(self, token_ids: Sequence[Sequence[int]], top_k: int = 0) -> list[Logprobs]:
        """Log-probabilities of every token but the first of each sequence, and the `top_k` likeliest at its place.

        As the engine samples at temperature 1, with its weights in its precision. May run in any thread, also beside
        `step`, while the weights are left alone. Raises ValueError for a sequence beyond the context, an unknown id, a
        top_k below 0.
        """
        for place, ids in enumerate(token_ids):
            if len(ids) > self.context:
                raise ValueError(f"sequence {place} has {len(ids)} tokens; the context holds {self.context}")
            if ids and not 0 <= min(ids) <= max(ids) < self.config.vocab_size:
                raise ValueError(f"sequence {place} holds a token id outside 0..{self.config.vocab_size - 1}")
        if top_k < 0:
            raise ValueError(f"top_k must be 0 or more; found {top_k}")
        if not any(self.load):
            self._notice_training()
        return score_sequences(
            *(self._network, self.config, compute_dtype(self.precision), token_ids),
            *(min(top_k, self.config.vocab_size), self._step_tokens),
        )

    @property
    def weight_bytes(self) -> int:
        """Of the weights in the form they are multiplied in, and what is kept beside them; the model itself, where it
        was not consumed, comes on top."""
        return self._network.nbytes

    @property
    def load(self) -> tuple[int, int]:
        """(running, waiting) requests."""
        waiting = sum(1 + len(sequence.followers) for sequence in list(self._scheduler.waiting))
        return self._scheduler.rows, waiting + len(self._arrivals)

    @property
    def preemptions(self) -> int:
        """How often a running sequence has had to give its place in the cache back."""
        return self._scheduler.preemptions

    @property
    def cache_used(self) -> float:
        """Share of the cache's blocks that running sequences hold."""
        return 1 - self._pool.free / self._pool.blocks

    def wait_for_work(self, timeout_seconds: float) -> bool:
        """Block until a request waits or runs, at most `timeout_seconds`; True if there is work."""
        with self._arrived:
            if not any(self.load):
                self._arrived.wait(timeout_seconds)
            return any(self.load)

    def load_weights(self, state: Mapping[str, Tensor], version: int) -> None:
        """Swap the weights in place. Refused while requests run: their cache would mix two policies."""
        if running := self.load[0]:
            raise RuntimeError(f"{running} requests are running; wait for them before swapping the weights")
        if self.model is None:
            model = Transformer(self.config)
            model.load_state_dict(dict(state))
            self._network = network(model, self.precision, consume=True)
            self._pool.forget()
        else:
            self.model.load_state_dict(dict(state))
            self.refresh()
        self.policy_version = version

    def refresh(self) -> None:
        """Pack the weights anew; needed after a change that PyTorch does not count (a write into `p.data`)."""
        if self.model is None:
            raise RuntimeError("this engine consumed its model: give it other weights with load_weights")
        self._network, self._fingerprint = network(self.model, self.precision), fingerprint(self.model)
        self._pool.forget()

    def _notice_training(self) -> None:
        if self.model is not None and self._fingerprint != fingerprint(self.model):
            self.refresh()

    # -- running --

    @torch.inference_mode()
    def step(self) -> bool:
        """Compute one step's tokens, of every running request at least one; False when nothing is left to do.

        An error fails every request, waiting ones too, and is raised: no one waits for an engine that stopped.
        """
        try:
            self._receive()
            if chunks := self._scheduler.plan():
                self._run(chunks)
        except BaseException as error:
            with self._arrived:
                failed = [*self._scheduler.clear(), *self._arrivals]
                self._arrivals.clear()
            for handle in failed:
                handle.fail(error)
            raise
        return any(self.load)

    def _receive(self) -> None:
        """Take in what was submitted, end what was aborted; idle, look whether the weights have changed."""
        if not any(self.load):
            return
        if not self._scheduler.running:
            self._notice_training()
        with self._arrived:
            while self._arrivals:
                handle = self._arrivals.popleft()
                self._scheduler.waiting.append(scheduler.Sequence(handle, list(handle.request.prompt_ids)))
        for handle in self._scheduler.drop(lambda handle: handle.aborted):
            handle.finish("aborted", self.policy_version)

    def _run(self, chunks: Sequence[scheduler.Chunk[Handle]]) -> None:
        batch = batch_of(chunks)
        hidden_BD = self._network.hidden(batch, self._cache)
        complete = [chunk.completes for chunk in chunks]
        sequences: list[scheduler.Sequence[Handle]] = []
        sources: list[int] = []
        for row, chunk in enumerate(chunks):
            self._scheduler.done(chunk)
            if not complete[row]:
                continue
            for sequence in (chunk.sequence, *self._followers(chunk.sequence)):
                sequences.append(sequence)
                sources.append(row)
        if sequences:
            self._sample(sequences, hidden_BD[sources])

    def _followers(self, sequence: scheduler.Sequence[Handle]) -> Iterator[scheduler.Sequence[Handle]]:
        followers, sequence.followers = sequence.followers, []
        for place, handle in enumerate(followers):
            forked = self._scheduler.fork(sequence, handle)
            if forked is None:  # no block is left; this one and the rest wait
                for other in followers[place + 1 :]:
                    self._scheduler.waiting.append(scheduler.Sequence(other, list(sequence.tokens)))
                return
            twin, copied = forked
            if copied is not None:
                self._cache.copy(*copied)
            yield twin

    def _sample(self, sequences: Sequence[scheduler.Sequence[Handle]], hidden_BD: Tensor) -> None:
        handles = [sequence.owner for sequence in sequences]
        uniform_B = torch.tensor(np.array([handle.noise[len(handle.token_ids)] for handle in handles]))
        params = [handle.request.params for handle in handles]
        logits_BV = self._network.logits(hidden_BD)
        for row, handle in enumerate(handles):
            if params[row].penalises:
                logits_BV[row] = penalised(logits_BV[row], params[row], handle.request.prompt_ids, handle.token_ids)
            if handle.constraint is not None:
                logits_BV[row].masked_fill_(~handle.constraint.allowed(logits_BV.shape[1]), -torch.inf)
        token_B, logprob_B = sample(logits_BV, params, uniform_B)
        tops = _likeliest(logits_BV, params)
        for row, (token, logprob) in enumerate(zip(token_B.tolist(), logprob_B.tolist(), strict=True)):
            sequence = sequences[row]
            sequence.tokens.append(token)
            sequence.owner.push(token, logprob, tops.get(row))
            if reason := self._finished(sequence.owner):
                self._scheduler.finish(sequence)
                sequence.owner.finish(reason, self.policy_version)

    def _finished(self, handle: Handle) -> Finish | None:
        params = handle.request.params
        if handle.token_ids[-1] == self.end_id or handle.token_ids[-1] in params.stop_ids:
            return "stop"
        if handle.constraint is not None and handle.constraint.complete:
            return "stop"
        if params.stop and self._decode is not None:
            # A token is a byte of text at least, but for special ones, and up to three bytes of a character may wait.
            tail = self._decode(handle.token_ids[-(max(len(stop.encode()) for stop in params.stop) + 4) :])
            if any(stop in tail for stop in params.stop):
                return "stop"
        return "length" if len(handle.token_ids) >= handle.budget else None


def _likeliest(logits_BV: Tensor, params: Sequence[SamplingParams]) -> dict[int, Likeliest]:
    """Of the rows that ask for them, the likeliest tokens of the distribution sampled from, those that can come."""
    rows = [row for row, asked in enumerate(params) if asked.top_logprobs]
    if not rows:
        return {}
    most = min(max(params[row].top_logprobs for row in rows), logits_BV.shape[1])
    best = distribution(logits_BV[rows], [params[row] for row in rows]).topk(most, -1)
    found: dict[int, Likeliest] = {}
    for row, ids, values in zip(rows, best.indices.tolist(), best.values.tolist(), strict=True):
        pairs = list(zip(ids, values, strict=True))[: params[row].top_logprobs]
        found[row] = tuple((token, value) for token, value in pairs if value > -math.inf)
    return found
