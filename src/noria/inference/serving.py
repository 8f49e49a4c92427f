"""Between an engine that runs in a thread and a server that runs in an event loop: live requests and their text.

A thread drives the engine. Each live choice has a small thread that waits for its tokens and hands them to the event
loop; the server's capacity bounds how many there are.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from noria.data.chat_tokenizer import ChatTokenizer
from noria.inference.engine import Completion, Engine, Handle, Request
from noria.inference.openai_schema import ChatRequest, TokenLogprob
from noria.inference.sampler import SamplingParams
from noria.types import Message, seed_of

LOG = logging.getLogger("noria.serving")
GREEDY_BELOW = 1e-4  # colder than this, dividing the logits overflows fp32, and the result is greedy anyway
REPLACEMENT = "\ufffd"
LONGEST_CHARACTER_TOKENS = 4  # a UTF-8 character has at most four bytes, so at most four byte-level tokens


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


class EngineDriver:
    """A thread that steps the engine while there is work, and a bound on how many choices are live."""

    def __init__(self, engine: Engine, capacity: int) -> None:
        self.engine, self.capacity = engine, capacity
        self.live = 0
        self.failure: BaseException | None = None
        self._stop = threading.Event()
        self._handles: set[Handle] = set()
        self._pumps = ThreadPoolExecutor(capacity, thread_name_prefix="reply")
        self._thread = threading.Thread(target=self._drive, name="engine", daemon=True)
        self._thread.start()

    def reserve(self, choices: int) -> bool:
        """Takes room for `choices`; False (and nothing taken) when the server is full. Event loop only."""
        if self.live + choices > self.capacity:
            return False
        self.live += choices
        return True

    def release(self, choices: int) -> None:
        self.live -= choices

    def submit(self, request: Request, put: Callable[[tuple[int, float] | Completion | BaseException], None]) -> Handle:
        """Queues `request`; `put` is called from a thread with (token, logprob) pairs and then the end."""
        handle = self.engine.submit(request)
        self._handles.add(handle)
        self._pumps.submit(self._pump, handle, put)
        return handle

    def close(self) -> None:
        """Aborts what is live and ends the thread."""
        for handle in list(self._handles):
            handle.abort()
        deadline = time.monotonic() + 10
        while self._handles and self._thread.is_alive() and time.monotonic() < deadline:
            time.sleep(0.005)
        self._stop.set()
        self._thread.join(10)
        self._pumps.shutdown(wait=False, cancel_futures=True)

    def _pump(self, handle: Handle, put: Callable[[Any], None]) -> None:
        try:
            for index, token in enumerate(handle.stream()):
                put((token, handle.logprobs[index]))
            put(handle.result())
        except Exception as error:  # noqa: BLE001 - whatever failed the request is its outcome, and is told to the client
            put(error)
        finally:
            self._handles.discard(handle)

    def _drive(self) -> None:
        while not self._stop.is_set():
            if not self.engine.wait_for_work(0.05):
                continue
            try:
                self.engine.step()
                self.failure = None
            except Exception as error:
                LOG.exception("an engine step failed; its requests were answered with an error")
                self.failure = error
                # Requests that the engine did not fail itself would wait for ever.
                for handle in list(self._handles):
                    handle.fail(error)


@dataclass
class ReplyText:
    """Tokens to text as they come: whole characters only, and nothing that may become part of a stop string."""

    tokenizer: ChatTokenizer
    stops: tuple[str, ...] = ()
    text: str = ""
    stopped: bool = False
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    _undecoded: list[int] = field(default_factory=list)
    _held: str = ""

    def feed(self, token: int, logprob: float) -> str:
        """The text that this token lets out; empty while a character or a possible stop string is incomplete."""
        if self.stopped:
            return ""
        self.token_ids.append(token)
        self.logprobs.append(logprob)
        self._undecoded.append(token)
        piece = self.tokenizer.decode(self._undecoded)
        if piece.endswith(REPLACEMENT) and len(self._undecoded) < LONGEST_CHARACTER_TOKENS:
            return ""
        self._undecoded = []
        return self._let_out(self._held + piece)

    def flush(self) -> str:
        """What is still held back, at the end of the reply."""
        if self.stopped:
            return ""
        rest = self._held + self.tokenizer.decode(self._undecoded)
        self._undecoded = []
        out = self._let_out(rest)
        if not self.stopped:
            out, self._held, self.text = out + self._held, "", self.text + self._held
        return out

    def _let_out(self, text: str) -> str:
        found = [place for place in (text.find(stop) for stop in self.stops) if place >= 0]
        if found:
            self.stopped, self._held, out = True, "", text[: min(found)]
        else:
            cut = len(text) - max((_overlap(text, stop) for stop in self.stops), default=0)
            out, self._held = text[:cut], text[cut:]
        self.text += out
        return out


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)


Emit = Callable[[int, str, list[TokenLogprob]], None]


@dataclass
class LiveRequest:
    """One request being answered: `run` samples all its choices and returns them; `abort` ends it early."""

    driver: EngineDriver
    tokenizer: ChatTokenizer
    ask: ChatRequest
    prompt_ids: Sequence[int]
    seed: int
    started: float = field(default_factory=time.monotonic)
    first_token_seconds: float | None = None
    _handles: list[Handle] = field(default_factory=list)

    def abort(self) -> None:
        for handle in self._handles:
            handle.abort()

    async def run(self, emit: Emit, gone: Callable[[], Awaitable[bool]]) -> tuple[ServedChoice, ...]:
        """Calls `emit(choice, text, tokens)` as text comes; polls `gone` for a client that left.

        Raises what failed the engine.
        """
        loop, events = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Any]]()
        texts = [ReplyText(self.tokenizer, self.ask.stop) for _ in range(self.ask.n)]
        unsent: list[list[TokenLogprob]] = [[] for _ in texts]
        finishes: dict[int, str] = {}
        try:
            for index in range(self.ask.n):

                def put(event: Any, index: int = index) -> None:
                    loop.call_soon_threadsafe(events.put_nowait, (index, event))

                self._handles.append(self.driver.submit(Request(self.prompt_ids, self._params(index)), put))
            while len(finishes) < len(texts):
                index, event = await _next(events, gone, self.abort)
                if isinstance(event, BaseException):
                    raise event
                if isinstance(event, Completion):
                    rest = texts[index].flush()
                    finishes[index] = "stop" if texts[index].stopped else event.finish
                    if rest or unsent[index]:
                        emit(index, rest, unsent[index])
                elif not texts[index].stopped:
                    self._token(index, event, texts[index], unsent, emit)
        finally:
            self.abort()
        return tuple(
            ServedChoice(text.text, tuple(text.token_ids), tuple(text.logprobs), finishes[index])
            for index, text in enumerate(texts)
        )

    def _token(
        self, index: int, event: tuple[int, float], text: ReplyText, unsent: list[list[TokenLogprob]], emit: Emit
    ) -> None:
        if self.first_token_seconds is None:
            self.first_token_seconds = time.monotonic() - self.started
        token, logprob = event
        out = text.feed(token, logprob)
        unsent[index].append(TokenLogprob(self.tokenizer.decode([token]), logprob))
        if text.stopped:
            self._handles[index].abort()
        if out:
            emit(index, out, unsent[index])
            unsent[index] = []

    def _params(self, index: int) -> SamplingParams:
        room = self.driver.engine.context - len(self.prompt_ids)
        return SamplingParams(
            max_tokens=min(self.ask.max_tokens or room, room),
            temperature=self.ask.temperature if self.ask.temperature >= GREEDY_BELOW else 0.0,
            top_p=self.ask.top_p,
            seed=self.seed if index == 0 else seed_of(self.seed, index),
        )


async def _next(
    events: asyncio.Queue[tuple[int, Any]], gone: Callable[[], Awaitable[bool]], abort: Callable[[], None]
) -> tuple[int, Any]:
    """The next event; meanwhile a client that has left makes `abort` be called (its last events still come)."""
    while True:
        if await gone():
            abort()
        try:
            return await asyncio.wait_for(events.get(), 0.1)
        except TimeoutError:
            continue
