"""Whoever replies in a rollout: an engine with noria's tokens or an imported model's, a chat endpoint, a script.

One protocol for all: lay out a view, then reply to a batch of them. Token in, token out wherever the ids are known:
what was sampled is never made again from text. Endpoints (`endpoint.py`) know no ids, and their traces say so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from noria.data.chat_tokenizer import ChatTokenizer
from noria.data.imported_tokenizer import ImportedTokenizer
from noria.data.tokenizer import CALL, Tokenizer
from noria.harness.calls import parse_actions, read_actions
from noria.harness.code_file import CodeFileError, place_of
from noria.harness.program import Action
from noria.inference import Request, Sampler, SamplingParams
from noria.inference.tool_calls import ToolSpec, call_form
from noria.types import THINK_CLOSE, THINK_OPEN, Message, ModelCall, Node, Task, digest

SEGMENTS_KEPT = 20_000  # token ids of messages that were not sampled, kept between turns


@dataclass(frozen=True)
class Said:
    """The first `count` messages of a view are what the policy saw last and its reply to it: exactly these tokens."""

    count: int
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class Prompt:
    """A view laid out for one reply. `hash` names what the policy sees; `ids` are its tokens where they are known,
    `body` what a chat endpoint is sent."""

    hash: str
    ids: tuple[int, ...] = ()
    body: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Turn:
    """One reply to be made. The task and the view are for scripted policies, which may know them."""

    prompt: Prompt
    params: SamplingParams
    view: tuple[Message, ...]
    task: Task


@dataclass(frozen=True)
class Reply:
    """What was said: `actions` are its calls, or the one answer that it is."""

    call: ModelCall
    actions: tuple[Action, ...]


class ModelFailed(RuntimeError):
    """There is no reply; the message says why. It ends its trace with the outcome `model_error`, and no other.

    `bug` is what the user's own code raised, where that is why.
    """

    def __init__(self, why: str, bug: Exception | None = None) -> None:
        super().__init__(why)
        self.bug = bug


@runtime_checkable
class ChatPolicy(Protocol):
    shows_tools: bool  # whether the prompt describes the tools

    def lay_out(self, view: Sequence[Node], tools: Sequence[ToolSpec], said: Said | None) -> Prompt:
        """The prompt for `view`. Raises ValueError where the view can't be put to this model."""
        ...

    def reply(self, turns: Sequence[Turn]) -> list[Reply | ModelFailed]:
        """One reply a turn, in order."""
        ...

    def read(self, call: ModelCall, content: str) -> tuple[Action, ...]:
        """The calls of a reply that was recorded, or the one answer that it is."""
        ...


def policy_of(sampler: Sampler | ChatPolicy, tokenizer: ChatTokenizer | None) -> ChatPolicy:
    """The policy that samples from `sampler` with its `tokenizer`; a policy stays what it is."""
    if isinstance(sampler, ChatPolicy):
        return sampler
    if isinstance(tokenizer, Tokenizer):
        return TokenPolicy(sampler, tokenizer)
    if isinstance(tokenizer, ImportedTokenizer):
        return ImportedPolicy(sampler, tokenizer)
    raise TypeError(f"a sampler needs its tokenizer; got {type(tokenizer).__name__}")


class TokenPolicy:
    """A model with this project's tokenizer: it knows its tools from training, a call begins with the call token."""

    shows_tools = False

    def __init__(self, sampler: Sampler, tokenizer: Tokenizer) -> None:
        self.sampler, self.tokenizer = sampler, tokenizer
        self._segments: dict[Message, tuple[int, ...]] = {}

    def lay_out(self, view: Sequence[Node], tools: Sequence[ToolSpec], said: Said | None) -> Prompt:
        body = [token for node in view for token in self._segment(node)]
        return _prompt((self.tokenizer.bos, *body, self.tokenizer.assistant))

    def reply(self, turns: Sequence[Turn]) -> list[Reply | ModelFailed]:
        completions = self.sampler.generate([Request(turn.prompt.ids, turn.params) for turn in turns])
        calls = [_model_call(turn, completion) for turn, completion in zip(turns, completions, strict=True)]
        return [Reply(call, self.read(call)) for call in calls]

    def read(self, call: ModelCall, content: str = "") -> tuple[Action, ...]:
        return parse_actions(call.token_ids, self.tokenizer)

    def _segment(self, node: Node) -> tuple[int, ...]:
        if node.call is not None:
            sampled = node.call.token_ids
            closed = bool(sampled) and sampled[-1] == self.tokenizer.end
            return (self.tokenizer.assistant, *sampled, *(() if closed else (self.tokenizer.end,)))
        if node.message not in self._segments:
            if len(self._segments) >= SEGMENTS_KEPT:
                self._segments.clear()
            self._segments[node.message] = tuple(self.tokenizer.render([node.message], generation=False)[1:])
        return self._segments[node.message]


class ImportedPolicy:
    """A model that brought its tokenizer and chat template. Tools are shown and calls read in the template's form;
    where the template knows none, a system message tells of them and asks for calls between tags (Hermes's form).

    What was sampled stays in the prompt as it was sampled, thinking included, where some templates would drop it: each
    prompt extends the last, as long as the program shows the whole history.
    """

    shows_tools = True

    def __init__(self, sampler: Sampler, tokenizer: ImportedTokenizer) -> None:
        self.sampler, self.tokenizer = sampler, tokenizer
        form = call_form(tokenizer)
        self._told = form is None  # by our own system message
        self._bare = form is not None and form.at_start
        self._ends = tuple(token for token in tokenizer.ends if token != tokenizer.end)

    def lay_out(self, view: Sequence[Node], tools: Sequence[ToolSpec], said: Said | None) -> Prompt:
        messages = [{"role": node.message.role, "content": node.message.content} for node in view]
        shift = 0
        if self._told and tools:
            messages, shift = _with_tools_told(messages, tools)
        sampled = {place + shift: node.call.token_ids for place, node in enumerate(view) if node.call}
        shown = [] if self._told else [tool.to_json() for tool in tools]
        known = (said.count - 1 + shift, said.token_ids) if said else None
        return _prompt(tuple(self.tokenizer.render_sampled(messages, shown, sampled, known)))

    def reply(self, turns: Sequence[Turn]) -> list[Reply | ModelFailed]:
        requests = [Request(turn.prompt.ids, turn.params.model_copy(update={"stop_ids": self._ends})) for turn in turns]
        calls = [
            _model_call(turn, completion)
            for turn, completion in zip(turns, self.sampler.generate(requests), strict=True)
        ]
        return [Reply(call, self.read(call)) for call in calls]

    def read(self, call: ModelCall, content: str = "") -> tuple[Action, ...]:
        return read_actions(self.tokenizer.decode(call.token_ids), self._bare)


# (what the model would see, the seed of this turn) -> the reply, calls written with `<|call|>`
Script = Callable[[Sequence[Message], int], str]


class ScriptedPolicy(TokenPolicy):
    """Replies with `script_of(task)`, which may know the task: gold solutions, cheats, baselines. A script that raises,
    or replies with no text, ends its own rollout with `model_error`; a CodeFileError, which is told to the user as it
    is, ends all.

    Its log-probabilities are 0: it was certain. Its traces hold tokens like any other, so they can be trained on.
    """

    def __init__(self, script_of: Callable[[Task], Script], tokenizer: Tokenizer) -> None:
        super().__init__(_NoSampler(), tokenizer)
        self.script_of = script_of

    def reply(self, turns: Sequence[Turn]) -> list[Reply | ModelFailed]:
        return [self._reply(turn) for turn in turns]

    def _reply(self, turn: Turn) -> Reply | ModelFailed:
        whose, script = f"the script for task {turn.task.id:.40}", None
        try:
            script = self.script_of(turn.task)
            ids = reply_ids(script(turn.view, turn.params.seed), self.tokenizer, whose)
        except WrongReply as error:
            return ModelFailed(str(error), error)
        except CodeFileError:
            raise
        except Exception as error:  # noqa: BLE001 - a script may raise anything: recorded as the trace's outcome
            place = place_of(error, script, self.script_of)
            return ModelFailed(f"{whose} raised {type(error).__name__} ({place}): {error}", error)
        kept = tuple(ids[: turn.params.max_tokens])
        finish = "stop" if len(kept) == len(ids) else "length"
        call = ModelCall(turn.prompt.ids, kept, (0.0,) * len(kept), 0, finish)
        return Reply(call, self.read(call))


class _NoSampler:
    def generate(self, requests: Sequence[Request]) -> list[Any]:
        raise NotImplementedError("a script samples nothing")


class WrongReply(ValueError):
    """What a script replied is no text; the message names the task."""


def reply_ids(text: str, tokenizer: Tokenizer, whose: str = "a scripted policy") -> list[int]:
    """Ids of a scripted reply with its end: like `encode_reply`, but each `<|call|>` of a reply that begins with one
    is the call token. Raises WrongReply where the script's reply is no text."""
    if not isinstance(text, str):
        raise WrongReply(f"{whose} replied {text!r:.60} ({type(text).__name__}): a reply must be text")
    thinking, body = "", text
    if text.startswith(THINK_OPEN) and THINK_CLOSE in text:
        place = text.index(THINK_CLOSE) + len(THINK_CLOSE)
        thinking, body = text[:place], text[place:]
    if not body.startswith(CALL):
        return [*tokenizer.encode_reply(text), tokenizer.end]
    calls = [token for part in body.split(CALL)[1:] for token in (tokenizer.call, *tokenizer.encode(part))]
    return [*(tokenizer.encode_reply(thinking) if thinking else ()), *calls, tokenizer.end]


def _with_tools_told(messages: Sequence[dict[str, Any]], tools: Sequence[ToolSpec]) -> tuple[list[dict[str, Any]], int]:
    """The messages with the tools in the system message, results as a user's; and how far they moved."""
    lines = "\n".join(json.dumps(tool.to_json(), ensure_ascii=False) for tool in tools)
    told = (
        f"You may call these tools:\n{lines}\n"
        'To call one, write <tool_call>{"name": "NAME", "arguments": {...}}</tool_call>. '
        "A reply without a call is your answer."
    )
    as_user = [
        {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
        if message["role"] == "tool"
        else message
        for message in messages
    ]
    if as_user and as_user[0]["role"] == "system":
        first = {"role": "system", "content": f"{as_user[0]['content']}\n\n{told}"}
        return [first, *as_user[1:]], 0
    return [{"role": "system", "content": told}, *as_user], 1


def _prompt(ids: tuple[int, ...]) -> Prompt:
    return Prompt(digest(" ".join(map(str, ids))), ids)


def _model_call(turn: Turn, completion: Any) -> ModelCall:
    return ModelCall(
        turn.prompt.ids,
        tuple(completion.token_ids),
        tuple(completion.logprobs),
        completion.policy_version,
        completion.finish,
    )
