"""A conversation with a model in the terminal: replies appear as they are sampled, and nothing is logged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from noria.data.chat_tokenizer import load_chat_tokenizer
from noria.inference import Engine, Request, SamplingParams
from noria.inference.reply_text import ReplyText
from noria.inference.weights import Precision
from noria.model import load_model
from noria.types import Message, seed_of

HELP = "/new starts over, /quit (or Ctrl-D) ends; Ctrl-C ends a reply."


@dataclass(frozen=True)
class ChatOptions:
    """How replies are sampled; `max_tokens` of one reply, at most the room that is left in the context."""

    seed: int = 0
    temperature: float = 1.0
    max_tokens: int = 512
    system: str = ""
    precision: Precision = "float32"


def chat_terminal(
    model_folder: Path,
    options: ChatOptions,
    read: Callable[[str], str] | None = None,
    write: Callable[[str], object] | None = None,
) -> None:
    """Talk until /quit or the end of what `read` gives; `write` gets pieces of text, line ends included."""
    read, write = read or input, write or _show
    model = load_model(model_folder)
    tokenizer = load_chat_tokenizer(model_folder)
    engine = Engine(model, tokenizer.end, max_rows=1, precision=options.precision, consume_model=True)
    write(f"Type a message; {HELP}\n")
    opening = [Message("system", options.system)] if options.system else []
    messages = list(opening)
    while True:
        try:
            text = read("> ").strip()
        except (EOFError, KeyboardInterrupt):
            return
        if text == "/quit":
            return
        if text == "/new":
            messages = list(opening)
            continue
        if text.startswith("/"):
            write(f"{HELP}\n")
            continue
        if not text:
            continue
        messages.append(Message("user", text))
        prompt_ids = tokenizer.render(messages)
        room = engine.context - len(prompt_ids)
        if room <= 0:
            write(f"The conversation has {len(prompt_ids)} tokens, the context {engine.context}: /new starts over.\n")
            messages.pop()
            continue
        params = SamplingParams(
            max_tokens=min(room, options.max_tokens),
            temperature=options.temperature,
            seed=seed_of(options.seed, len(messages)),
            stop_ids=tokenizer.ends,
        )
        reply = _reply(engine, Request(prompt_ids, params), ReplyText(tokenizer), write)
        messages.append(Message("assistant", reply))


def _reply(engine: Engine, request: Request, reply: ReplyText, write: Callable[[str], object]) -> str:
    handle, fed = engine.submit(request), 0
    try:
        while engine.step():
            for token in handle.token_ids[fed:]:
                if token not in request.params.stop_ids:
                    write(printable(reply.feed(token)))
            fed = len(handle.token_ids)
    except KeyboardInterrupt:
        handle.abort()
        while engine.step():
            pass
    write(printable(reply.flush()))
    cut = handle.result().finish == "length"
    write(f"\n[cut off at {request.params.max_tokens} tokens]\n" if cut else "\n")
    return reply.text


def _show(text: str) -> None:
    print(text, end="", flush=True)


def printable(text: str) -> str:
    """`text` without control characters: a model may not move the cursor or rewrite the screen."""
    return "".join(char if char.isprintable() or char in "\n\t" else "\ufffd" for char in text)
