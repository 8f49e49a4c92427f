"""Raw bytes of a record to its text, by format. A record that gives no text says why.

HTML goes through resiliparse's main-content extraction (navigation, footers and sidebars fall away); Markdown loses its
comments, images and link targets; code loses its licence header (the same text in every file teaches nothing).
"""

from __future__ import annotations

import json
import re
from typing import Literal

Format = Literal["html", "markdown", "python", "verses", "dialogues", "jsonl", "text"]

BLANK_RUNS = re.compile(r"\n{3,}")
MARKDOWN_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
MARKDOWN_IMAGE = re.compile(r"!\[([^\]]*)\]\([^)]*\)")
MARKDOWN_LINK = re.compile(r"\[([^\]]+)\]\([^)\s]+(?: \"[^\"]*\")?\)")
MARKDOWN_TAG = re.compile(r"</?(?:img|video|source|br|div|p|a|span|sub|sup|details|summary|kbd)\b[^>]*>", re.IGNORECASE)
FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
LICENCE_WORDS = re.compile(r"(?i)copyright|licen[cs]e|all rights reserved|spdx")


class NoText(ValueError):
    """A record without usable text; the message is the reason."""


def extract(raw: bytes, kind: Format) -> str:
    """The text of one record. Raises NoText with the reason."""
    if not raw.strip():
        raise NoText("empty")
    text = _html(raw) if kind == "html" else PLAIN[kind](_decode(raw))
    lines = map(str.rstrip, text.replace("\r\n", "\n").replace("\0", "").split("\n"))
    text = "\n".join(lines).strip()
    if "\n\n\n" in text:
        text = BLANK_RUNS.sub("\n\n", text)
    if not text:
        raise NoText("no text after extraction")
    return text


def _decode(raw: bytes) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise NoText(f"not UTF-8 at byte {error.start}") from error


def _html(raw: bytes) -> str:
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.encoding import bytes_to_str, detect_encoding

    try:
        html = raw.decode("utf-8-sig")
    except UnicodeDecodeError:  # a page may be in any encoding: guess, and give up where the guess makes no text
        html = bytes_to_str(raw, detect_encoding(raw, from_html_meta=True) or "utf-8")
        if html.count("\ufffd") > len(html) / 100:
            raise NoText("unknown encoding") from None
    if "<" not in html:
        raise NoText("not HTML")
    return extract_plain_text(html, main_content=True, preserve_formatting=True, list_bullets=True, links=False)


def _markdown(text: str) -> str:
    text = FRONT_MATTER.sub("", text.replace("\r\n", "\n"))
    if "](" in text:
        text = MARKDOWN_LINK.sub(r"\1", MARKDOWN_IMAGE.sub(r"\1", text))
    if "<" in text:
        text = MARKDOWN_TAG.sub("", MARKDOWN_COMMENT.sub("", text))
    return text


def _python(text: str) -> str:
    """Source without its leading comment block, if that is about copyright."""
    lines = text.split("\n")
    first = next((row for row, line in enumerate(lines) if line.strip() and not line.startswith("#")), len(lines))
    return "\n".join(lines[first:]) if LICENCE_WORDS.search("\n".join(lines[:first])) else text


def _verses(text: str) -> str:
    return "\n".join(" ".join(json.loads(line)["text"].split()) for line in text.splitlines() if line.strip())


def _dialogue(text: str) -> str:
    import yaml

    try:
        turns = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise NoText("not YAML") from error
    while isinstance(turns, list) and len(turns) == 1 and isinstance(turns[0], list):
        turns = turns[0]
    if not isinstance(turns, list) or not all(isinstance(turn, str | int | float) for turn in turns):
        raise NoText("not a list of turns")
    return "\n".join(f"- {str(turn).strip()}" for turn in turns)


def _json_text(text: str) -> str:
    row = json.loads(text)
    if not isinstance(row.get("text"), str):
        raise NoText('no "text" in the row')
    return row["text"]


def _as_it_is(text: str) -> str:
    return text


PLAIN = {
    "markdown": _markdown,
    "python": _python,
    "verses": _verses,
    "dialogues": _dialogue,
    "jsonl": _json_text,
    "text": _as_it_is,
}
