"""One engine for rollouts, evaluations, judgements, teacher scores and served replies.

A step is three things: admit waiting requests into free rows (one prefill a distinct prompt), decode one token for
every running row, retire what has finished. Rows in use are kept dense, so decoding works on a plain slice of the
cache.

B rows in use, T prompt tokens, V vocabulary.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from noria.inference.cache import RowCache
from noria.inference.sampler import SamplingParams, request_noise, sample
from noria.model import Transformer

Finish = Literal["stop", "length", "aborted"]


@dataclass(frozen=True)
class Request:
    prompt_ids: Sequence[int]
    params: SamplingParams = field(default_factory=SamplingParams)


@dataclass(frozen=True)
class Completion:
    """What was sampled, the end token included, with the log-probability of each token as sampled."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: Finish
    policy_version: int


class RequestTooLong(ValueError):
    """The prompt leaves no room for a single new token in the model's context."""


class Sampler(Protocol):
    """What rollouts need of an engine, whichever it is."""

    def generate(self, requests: Sequence[Request]) -> list[Completion]: ...


class Handle:
    """A submitted request: read its tokens as they come, wait for its completion, or abort it. Thread-safe."""

    def __init__(self, request: Request, budget: int) -> None:
        self.request, self.budget = request, budget
        self.token_ids: list[int] = []
        self.logprobs: list[float] = []
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

    def push(self, token: int, logprob: float) -> None:
        self.token_ids.append(token)
        self.logprobs.append(logprob)
        self._events.put(token)

    def finish(self, reason: Finish, version: int) -> None:
        self._events.put(Completion(tuple(self.token_ids), tuple(self.logprobs), reason, version))

    def fail(self, error: BaseException) -> None:
        self._events.put(error)


class Engine:
    """Continuous batching over one model. `submit` may be called from any thread, `step` from one at a time."""

    def __init__(self, model: Transformer, end_id: int, max_rows: int = 256, context: int | None = None) -> None:
        self.model, self.end_id = model, end_id
        self.context = min(context or model.config.context, model.config.context)
        self.max_rows, self.policy_version = max_rows, 0
        self._cache = RowCache(model.config, max_rows, self.context)
        self._running: list[Handle] = []
        self._lengths: list[int] = []  # tokens of each running row that are in the cache
        self._waiting: deque[Handle] = deque()
        self._arrived = threading.Condition()

    # -- asking --

    def submit(self, request: Request) -> Handle:
        """Queue a request. Raises RequestTooLong where the prompt fills the context, ValueError for an unknown id."""
        room = self.context - len(request.prompt_ids)
        if room < 1 or not request.prompt_ids:
            raise RequestTooLong(
                f"a prompt of {len(request.prompt_ids)} tokens does not fit: it needs 1 to {self.context - 1}, "
                f"since the context of {self.context} tokens also holds the reply"
            )
        if min(request.prompt_ids) < 0 or max(request.prompt_ids) >= self.model.config.vocab_size:
            raise ValueError(f"a prompt holds a token id outside 0..{self.model.config.vocab_size - 1}")
        handle = Handle(request, min(request.params.max_tokens, room))
        with self._arrived:
            self._waiting.append(handle)
            self._arrived.notify()
        return handle

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Run `requests` to their ends. Equal requests in equal order on an idle engine give equal results."""
        handles = [self.submit(request) for request in requests]
        while self.step():
            pass
        return [handle.result() for handle in handles]

    @property
    def load(self) -> tuple[int, int]:
        """(running, waiting) requests."""
        return len(self._running), len(self._waiting)

    def wait_for_work(self, timeout_seconds: float) -> bool:
        """Block until a request waits or runs, at most `timeout_seconds`; True if there is work."""
        with self._arrived:
            if not self._running and not self._waiting:
                self._arrived.wait(timeout_seconds)
            return bool(self._running or self._waiting)

    def load_weights(self, state: Mapping[str, Tensor], version: int) -> None:
        """Swap the weights in place. Refused while requests run: their cache would mix two policies."""
        if self._running:
            raise RuntimeError(f"{len(self._running)} requests are running; wait for them before swapping the weights")
        self.model.load_state_dict(dict(state))
        self.policy_version = version

    # -- running --

    @torch.inference_mode()
    def step(self) -> bool:
        """Advance every running request by one token; False when nothing is left to do.

        An error fails every request, waiting ones too, and is raised: no one waits for an engine that stopped.
        """
        try:
            self._admit()
            self._decode()
        except BaseException as error:
            with self._arrived:
                failed = [*self._running, *self._waiting]
                self._running, self._lengths = [], []
                self._waiting.clear()
            for handle in failed:
                handle.fail(error)
            raise
        return bool(self._running or self._waiting)

    def _admit(self) -> None:
        """Prefill waiting requests into free rows; equal prompts are computed once and copied."""
        arrivals: list[Handle] = []
        with self._arrived:
            aborted = [handle for handle in self._waiting if handle.aborted]
            for handle in aborted:
                self._waiting.remove(handle)
                handle.finish("aborted", self.policy_version)
            while self._waiting and len(self._running) + len(arrivals) < self.max_rows:
                arrivals.append(self._waiting.popleft())
        if not arrivals:
            return
        # Prompts of like length together: a row is padded only to the longest of its prefill chunk.
        arrivals.sort(key=lambda handle: len(handle.request.prompt_ids))
        first = len(self._running)
        self._running += arrivals  # from here on an error in this step fails these too
        last_state_of_row = torch.cat([self._prefill(chunk, first) for chunk, first in _chunks(arrivals, first)])
        self._lengths += [len(handle.request.prompt_ids) for handle in arrivals]
        self._sample(last_state_of_row, first)
        self._retire(first)

    def _prefill(self, handles: list[Handle], first: int) -> Tensor:
        """Fill rows first.. with the prompts of `handles`; the last prompt token's state of each row (B, D)."""
        prompts = [tuple(handle.request.prompt_ids) for handle in handles]
        distinct = {prompt: index for index, prompt in enumerate(dict.fromkeys(prompts))}
        longest = max(map(len, distinct))
        tokens_BT = torch.zeros(len(distinct), longest, dtype=torch.long)
        for prompt, index in distinct.items():
            tokens_BT[index, : len(prompt)] = torch.tensor(prompt)
        positions_BT = torch.arange(longest).expand_as(tokens_BT)
        view = self._cache.view(first, positions_BT)
        hidden_BTD = self.model.hidden(tokens_BT, positions_BT, cache=view, mask=view.mask())
        source_B = torch.tensor([distinct[prompt] for prompt in prompts])
        if len(distinct) < len(prompts):
            self._cache.spread(first + source_B, first, longest)
        last_B = torch.tensor([len(prompt) - 1 for prompt in prompts])
        return hidden_BTD[source_B, last_B]

    def _decode(self) -> None:
        if not self._running:
            return
        tokens_B1 = torch.tensor([[handle.token_ids[-1]] for handle in self._running])
        positions_B1 = torch.tensor(self._lengths)[:, None]
        view = self._cache.view(0, positions_B1)
        hidden_B1D = self.model.hidden(tokens_B1, positions_B1, cache=view, mask=view.mask())
        self._lengths = [length + 1 for length in self._lengths]
        self._sample(hidden_B1D[:, 0], 0)
        self._retire(0)

    def _sample(self, hidden_BD: Tensor, first: int) -> None:
        handles = self._running[first:]
        uniform_B = torch.tensor(np.array([handle.noise[len(handle.token_ids)] for handle in handles]))
        params = [handle.request.params for handle in handles]
        token_B, logprob_B = sample(self.model.logits(hidden_BD), params, uniform_B)
        for handle, token, logprob in zip(handles, token_B.tolist(), logprob_B.tolist(), strict=True):
            handle.push(token, logprob)

    def _retire(self, first: int) -> None:
        """Give finished rows back; the last running row moves into each gap."""
        for row in range(len(self._running) - 1, first - 1, -1):
            handle = self._running[row]
            reason = self._finished(handle)
            if reason is None:
                continue
            handle.finish(reason, self.policy_version)
            last = len(self._running) - 1
            if row != last:
                self._cache.move(last, row, self._lengths[last])
                self._running[row], self._lengths[row] = self._running[last], self._lengths[last]
            self._running.pop()
            self._lengths.pop()

    def _finished(self, handle: Handle) -> Finish | None:
        if handle.token_ids[-1] == self.end_id or handle.token_ids[-1] in handle.request.params.stop_ids:
            return "stop"
        if len(handle.token_ids) >= handle.budget:
            return "length"
        return "aborted" if handle.aborted else None


PREFILL_TOKENS = 8192  # bounds the activations of one prefill pass; at width 128 about 50 MB


def _chunks(handles: list[Handle], first: int) -> Iterator[tuple[list[Handle], int]]:
    """Arrivals (sorted by prompt length) in prefill passes of at most PREFILL_TOKENS, with each pass's first row."""
    chunk: list[Handle] = []
    for handle in handles:
        if chunk and (len(chunk) + 1) * len(handle.request.prompt_ids) > PREFILL_TOKENS:
            yield chunk, first
            first, chunk = first + len(chunk), []
        chunk.append(handle)
    yield chunk, first


@torch.inference_mode()
def score(model: Transformer, sequences: Sequence[Sequence[int]], rows: int = 64) -> list[list[float]]:
    """Log-probability of every token given those before it: one list a sequence, one shorter than the sequence."""
    scores: list[list[float]] = [[] for _ in sequences]
    scored = [index for index in range(len(sequences)) if len(sequences[index]) > 1]
    order = sorted(scored, key=lambda index: len(sequences[index]))
    for start in range(0, len(order), rows):
        chosen = order[start : start + rows]
        longest = max(len(sequences[index]) for index in chosen)
        tokens_BT = torch.zeros(len(chosen), longest, dtype=torch.long)
        for row, index in enumerate(chosen):
            tokens_BT[row, : len(sequences[index])] = torch.tensor(sequences[index])
        logprobs_BTV = model(tokens_BT[:, :-1]).log_softmax(-1)
        logprobs_BT = logprobs_BTV.gather(2, tokens_BT[:, 1:, None])[..., 0]
        for row, index in enumerate(chosen):
            scores[index] = logprobs_BT[row, : len(sequences[index]) - 1].tolist()
    return scores
