"""A policy that is a plain function of the messages it sees: demonstrations and baselines through the same rollout.

Because it is a sampler like any other, what it demonstrates is a real trace, made with real tools, and can be graded,
replayed and trained on like one. Where the policy may know its task, see `ScriptedPolicy`.
"""

from __future__ import annotations

from collections.abc import Sequence

from noria.data.tokenizer import Tokenizer
from noria.harness.policy import Script as Policy
from noria.harness.policy import reply_ids
from noria.inference import Completion, Request
from noria.types import Message

__all__ = ["Policy", "ScriptedSampler", "messages_of"]


class ScriptedSampler:
    """Replies with `policy`. Its log-probabilities are 0: it was certain."""

    def __init__(self, tokenizer: Tokenizer, policy: Policy) -> None:
        self.tokenizer, self.policy = tokenizer, policy

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        return [self._reply(request) for request in requests]

    def _reply(self, request: Request) -> Completion:
        messages = messages_of(request.prompt_ids, self.tokenizer)
        ids = reply_ids(self.policy(messages, request.params.seed), self.tokenizer)
        kept = tuple(ids[: request.params.max_tokens])
        return Completion(kept, (0.0,) * len(kept), "stop" if len(kept) == len(ids) else "length", 0)


def messages_of(prompt_ids: Sequence[int], tokenizer: Tokenizer) -> list[Message]:
    """The messages of a prompt in chat form: the inverse of the tokenizer's `render`."""
    roles = {
        tokenizer.system: "system",
        tokenizer.user: "user",
        tokenizer.assistant: "assistant",
        tokenizer.tool: "tool",
    }
    messages: list[Message] = []
    body: list[int] | None = None
    role = ""
    for token in prompt_ids:
        if body is None and token in roles:
            role, body = roles[token], []
        elif body is not None and token == tokenizer.end:
            messages.append(Message(role, tokenizer.decode(body)))  # type: ignore[arg-type]
            body = None
        elif body is not None:
            body.append(token)
    return messages
