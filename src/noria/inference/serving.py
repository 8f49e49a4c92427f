"""Between an engine that runs in a thread and a server that runs in an event loop: live requests and their tokens.

One thread drives the engine. After each step it hands what was sampled to the event loop, all choices at once.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from noria.data.chat_tokenizer import ChatTokenizer
from noria.inference.engine import Engine, Handle
from noria.inference.openai_schema import SHAPING_FIELDS, Sampling
from noria.inference.reply_text import ReplyText
from noria.inference.request import Completion, Likeliest, Request, SamplingParams
from noria.inference.structured import Constraint
from noria.types import Message, seed_of

LOG = logging.getLogger("noria.serving")
GREEDY_BELOW = 1e-4  # colder than this, dividing the logits overflows fp32, and the result is greedy anyway


@dataclass(frozen=True)
class ServedChoice:
    """One reply of a request: the text as sent, its sampled ids and their log-probabilities."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: str


@dataclass(frozen=True)
class ServedRequest:
    """What is known of a request once it has been answered; the value that a log records. Times are in seconds."""

    request_id: str
    user: str
    consent: str
    messages: tuple[Message, ...]
    sampling: Mapping[str, Any]
    prompt_tokens: int
    choices: tuple[ServedChoice, ...]
    total_seconds: float
    first_token_seconds: float | None = None
    # Of a request that belongs to a named trace: the name, and for each choice the ids it was sampled after and the
    # message that a client makes of it and sends back.
    trace: str = ""
    prompts: tuple[tuple[int, ...], ...] = ()
    echoes: tuple[Message, ...] = ()


@dataclass(frozen=True)
class TokenLogprob:
    """A token's bytes and its log-probability (None for the first of a prompt), and the likeliest ones beside it."""

    raw: bytes
    logprob: float | None
    top: tuple[TokenLogprob, ...] = ()
    characters: int = 0  # that it adds to the text; none for the end of a turn

    @property
    def text(self) -> str:
        """As text; half a character as its bytes, so that no two tokens look the same."""
        try:
            return self.raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in self.raw)

    def to_json(self) -> dict[str, Any]:
        return {**self._alone(), "top_logprobs": [one._alone() for one in self.top]}

    def _alone(self) -> dict[str, Any]:
        return {"token": self.text, "logprob": self.logprob, "bytes": list(self.raw)}


def token_logprob(
    tokenizer: ChatTokenizer, token: int, logprob: float | None, likeliest: Sequence[tuple[int, float]] = ()
) -> TokenLogprob:
    """A token id with its log-probability, and the (id, log-probability) of the likeliest, for a client."""
    raw = tokenizer.token_bytes

    def told(index: int, value: float | None, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        known = raw[index] if index < len(raw) else b""  # a model may have more rows than its tokenizer has tokens
        return TokenLogprob(known, None if value is None else round(value, 6), top, len(tokenizer.decode([index])))

    return told(token, logprob, tuple(told(index, value) for index, value in likeliest))


@dataclass(frozen=True)
class Sampled:
    """What one or more engine steps gave a choice: its new tokens, and how it ended if it did."""

    token_ids: Sequence[int]
    logprobs: Sequence[float]
    top_logprobs: Sequence[Likeliest] = ()  # one a token where they are wanted
    end: Completion | BaseException | None = None


class ServerStopping(Exception):
    """The server is being stopped and cut this request off."""


Sink = Callable[[Sampled], None]


class EngineDriver:
    """A thread that steps the engine while there is work, and a bound on how many choices are live."""

    def __init__(self, engine: Engine, capacity: int) -> None:
        self.engine, self.capacity = engine, capacity
        self.live = 0
        self.failure: BaseException | None = None
        self.failures = 0
        self._stop = threading.Event()
        self._sinks: dict[Handle, Sink] = {}
        self._seen: dict[Handle, int] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._drive, name="engine", daemon=True)
        self._thread.start()

    @property
    def dead(self) -> bool:
        """Whether nothing drives the engine any more."""
        return not self._thread.is_alive()

    def reserve(self, choices: int) -> bool:
        """Takes room for `choices`; False (and nothing taken) when the server is full. Event loop only."""
        if self.live + choices > self.capacity:
            return False
        self.live += choices
        return True

    def release(self, choices: int) -> None:
        self.live -= choices

    def submit(self, request: Request, sink: Sink) -> Handle:
        """Queues `request`; `sink` is called in the event loop, last with the end. Event loop only."""
        self._loop = asyncio.get_running_loop()
        handle = self.engine.submit(request)
        self._sinks[handle] = sink
        return handle

    def fail_all(self, error: BaseException) -> None:
        """Ends every live request with `error`."""
        for handle in list(self._sinks):
            handle.fail(error)
            handle.abort()

    def close(self) -> None:
        """Aborts what is live and ends the thread."""
        for handle in list(self._sinks):
            handle.abort()
        deadline = time.monotonic() + 10
        while self._sinks and self._thread.is_alive() and time.monotonic() < deadline:
            time.sleep(0.005)
        self._stop.set()
        self._thread.join(10)

    def _drive(self) -> None:
        try:
            while not self._stop.is_set():
                if self.engine.wait_for_work(0.05):
                    self._step()
                # Also without a step: a request may have ended before its sink was known.
                self._hand_over()
        except BaseException as error:
            LOG.exception("the engine's thread ended")
            self.failure = error
            self.fail_all(error)
            self._hand_over()
            raise

    def _step(self) -> None:
        try:
            self.engine.step()
        except Exception as error:
            LOG.exception("an engine step failed; its requests were answered with an error")
            self.failure, self.failures = error, self.failures + 1
            # Requests that the engine did not fail itself would wait for ever.
            self.fail_all(error)

    def _hand_over(self) -> None:
        """Gives the event loop what was sampled since the last time."""
        news: list[tuple[Sink, Sampled]] = []
        for handle, sink in list(self._sinks.items()):
            end: Completion | BaseException | None
            try:
                end = handle.poll()
            except BaseException as error:  # noqa: BLE001 - whatever failed the request is its outcome
                end = error
            seen, count = self._seen.get(handle, 0), len(handle.token_ids)
            if end is None and seen == count:
                continue
            tokens, logprobs = handle.token_ids[seen:count], handle.logprobs[seen:count]
            news.append((sink, Sampled(tokens, logprobs, handle.top_logprobs[seen:count], end)))
            self._seen[handle] = count
            if count > seen and not isinstance(end, BaseException):
                self.failure = None  # it samples again
            if end is not None:
                del self._sinks[handle], self._seen[handle]
        if news and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_deliver, news)


def _deliver(news: Sequence[tuple[Sink, Sampled]]) -> None:
    for sink, sampled in news:
        sink(sampled)


@dataclass(frozen=True)
class Wanted:
    """One choice to sample: its prompt, and what has to follow it."""

    prompt_ids: Sequence[int]
    opening: str = ""
    structure: Callable[[], Constraint] | None = None


Emit = Callable[[int, str, list[TokenLogprob]], None]
Tick = Callable[[int, int], None]


@dataclass
class LiveRequest:
    """One request being answered: `run` samples all its choices and returns them; `abort` ends it early."""

    driver: EngineDriver
    tokenizer: ChatTokenizer
    wanted: Sequence[Wanted]
    sampling: Sampling
    seed: int
    started: float = field(default_factory=time.monotonic)
    first_token_seconds: float | None = None
    aborted: bool = False
    _handles: list[Handle] = field(default_factory=list)
    _events: asyncio.Queue[tuple[int, Sampled]] = field(default_factory=asyncio.Queue)

    def abort(self) -> None:
        self.aborted = True
        for handle in self._handles:
            handle.abort()

    async def run(self, emit: Emit, tick: Tick = lambda choice, tokens: None) -> tuple[ServedChoice, ...]:
        """Calls `emit(choice, text, tokens)` as text comes and `tick(choice, count)` as tokens do.

        Raises what failed the engine.
        """
        if self.sampling.max_tokens == 0:
            return tuple(ServedChoice("", (), (), "length") for _ in self.wanted)
        texts = [ReplyText(self.tokenizer, self.sampling.stop) for _ in self.wanted]
        logprobs: list[list[float]] = [[] for _ in texts]
        unsent: list[list[TokenLogprob]] = [[] for _ in texts]
        finishes: dict[int, str] = {}
        try:
            for index, wanted in enumerate(self.wanted):
                if wanted.opening:
                    emit(index, wanted.opening, [])
                self._submit(index, wanted)
            while len(finishes) < len(texts):
                index, news = await self._events.get()
                text = texts[index]
                if news.token_ids and not text.stopped:
                    self.first_token_seconds = self.first_token_seconds or time.monotonic() - self.started
                    out = self._feed(text, news, logprobs[index], unsent[index])
                    tick(index, len(news.token_ids))
                    if text.stopped:
                        self._handles[index].abort()
                    if out:
                        emit(index, out, unsent[index])
                        unsent[index] = []
                if isinstance(news.end, BaseException):
                    raise news.end
                if news.end is not None:
                    rest = text.flush()
                    finishes[index] = "stop" if text.stopped else news.end.finish
                    if rest or unsent[index]:
                        emit(index, rest, unsent[index])
        finally:
            self.abort()
        return tuple(
            ServedChoice(text.text, tuple(text.token_ids), tuple(logprobs[index]), finishes[index])
            for index, text in enumerate(texts)
        )

    def _submit(self, index: int, wanted: Wanted) -> None:
        def sink(sampled: Sampled) -> None:
            self._events.put_nowait((index, sampled))

        handle = self.driver.submit(Request(wanted.prompt_ids, self._params(index, wanted), wanted.structure), sink)
        self._handles.append(handle)
        if self.aborted:
            handle.abort()

    def _feed(self, text: ReplyText, news: Sampled, logprobs: list[float], unsent: list[TokenLogprob]) -> str:
        out = ""
        tops = news.top_logprobs or [()] * len(news.token_ids)
        for token, logprob, top in zip(news.token_ids, news.logprobs, tops, strict=True):
            if text.stopped:
                break
            out += text.feed(token)
            logprobs.append(logprob)
            if self.sampling.logprobs is not None:
                unsent.append(token_logprob(self.tokenizer, token, logprob, top))
        return out

    def _params(self, index: int, wanted: Wanted) -> SamplingParams:
        room = self.driver.engine.context - len(wanted.prompt_ids)
        asked, tokenizer = self.sampling, self.tokenizer
        return SamplingParams(
            max_tokens=max(1, min(asked.max_tokens or room, room)),
            temperature=asked.temperature if asked.temperature >= GREEDY_BELOW else 0.0,
            top_p=asked.top_p,
            top_k=asked.top_k,
            **{name: getattr(asked, name) for name in SHAPING_FIELDS},
            seed=self.seed if index == 0 else seed_of(self.seed, index),
            top_logprobs=asked.logprobs or 0,
            stop_ids=tuple(token for token in tokenizer.ends if token != tokenizer.end),
        )
