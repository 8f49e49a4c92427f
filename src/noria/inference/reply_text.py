"""Tokens to text as they come: whole characters only, and nothing that may become part of a stop string."""

from __future__ import annotations

from dataclasses import dataclass, field

from noria.data.chat_tokenizer import ChatTokenizer

REPLACEMENT = "\ufffd"
LONGEST_CHARACTER_TOKENS = 4  # a UTF-8 character has at most four bytes, so at most four byte-level tokens


@dataclass
class ReplyText:
    """The text of one reply. `text` is what was let out, `token_ids` what was fed until a stop string was complete."""

    tokenizer: ChatTokenizer
    stops: tuple[str, ...] = ()
    text: str = ""
    stopped: bool = False
    token_ids: list[int] = field(default_factory=list)
    _before: list[int] = field(default_factory=list)
    _undecoded: list[int] = field(default_factory=list)
    _held: str = ""

    def feed(self, token: int) -> str:
        """The text that this token lets out; empty while a character or a possible stop string is incomplete."""
        if self.stopped:
            return ""
        self.token_ids.append(token)
        self._undecoded.append(token)
        piece = self._decoded()
        if piece.endswith(REPLACEMENT) and len(self._undecoded) < LONGEST_CHARACTER_TOKENS:
            return ""
        self._before, self._undecoded = self._undecoded, []
        return self._let_out(self._held + piece)

    def flush(self) -> str:
        """What is still held back, at the end of the reply."""
        if self.stopped:
            return ""
        rest = self._held + self._decoded()
        self._undecoded = []
        out = self._let_out(rest)
        if not self.stopped:
            out, self._held, self.text = out + self._held, "", self.text + self._held
        return out

    def _decoded(self) -> str:
        # After the tokens before them: a decoder may drop the space in front of what it takes for the first word.
        known = self.tokenizer.decode(self._before)
        return self.tokenizer.decode([*self._before, *self._undecoded])[len(known) :]

    def _let_out(self, text: str) -> str:
        found = [place for place in (text.find(stop) for stop in self.stops) if place >= 0]
        if found:
            self.stopped, self._held, out = True, "", text[: min(found)]
        else:
            cut = len(text) - max((overlap(text, stop) for stop in self.stops), default=0)
            out, self._held = text[:cut], text[cut:]
        self.text += out
        return out


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop` without completing it."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
