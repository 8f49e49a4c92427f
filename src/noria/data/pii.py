"""Personal data and secrets, replaced by typed placeholders that do not depend on order.

Found: e-mail addresses, public IPv4 addresses (private and documentation ranges stay: they are no one's), phone numbers
in international or North American form, private keys and access tokens of common services. Rules, not a model: names
and postal addresses are not found.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable

# Every pattern opens with a character class, so that the scan skips at full speed to where a match could begin.
LOCAL = re.compile(r"[A-Za-z0-9][\w.+-]*\Z")
DOMAIN = re.compile(r"(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,24}\b")
ADDRESS = re.compile(r"\d(?<![\w.]\d)\d{0,2}\.\d{1,3}\.\d{1,3}\.\d{1,3}(?![\w]|\.\d)")
PHONE = re.compile(
    r"[+(\d](?<![\w+.-].)(?:(?<=\+)\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{2,4}(?:[ .-]\d{2,4}){2,3}"
    r"|(?<=\()\d{3}\) ?\d{3}-\d{4}|(?<=\d)\d{2}-\d{3}-\d{4})(?![\w-])"
)
KEY = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
    r"|\bAKIA[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{36,}\b|\bsk-[A-Za-z0-9_-]{32,}\b|\bxox[abprs]-[A-Za-z0-9-]{20,}\b"
    r"|\beyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}",
    re.DOTALL,
)
KEY_MARKS = ("PRIVATE KEY", "AKIA", "gh", "sk-", "xox", "eyJ")


def redact(text: str) -> tuple[str, dict[str, int]]:
    """The text with placeholders ([key], [email], [ip], [phone]) and how many of each were written."""
    found: dict[str, int] = {}
    if any(mark in text for mark in KEY_MARKS):
        text = _replace(KEY, text, "key", found)
    if "@" in text:
        text = _redact_emails(text, found)
    text = _replace(ADDRESS, text, "ip", found, _is_public)
    return _replace(PHONE, text, "phone", found), found


def _redact_emails(text: str, found: dict[str, int]) -> str:
    """Looks around each '@' only: 5 times as fast as one expression over the text."""
    parts: list[str] = []
    done = 0
    at = text.find("@")
    while at >= 0:
        local = LOCAL.search(text, max(done, at - 64), at)
        domain = DOMAIN.match(text, at + 1)
        if local and domain:
            parts += [text[done : local.start()], "[email]"]
            done = domain.end()
            found["email"] = found.get("email", 0) + 1
        at = text.find("@", max(at + 1, done))
    return "".join(parts) + text[done:]


def _replace(
    pattern: re.Pattern[str], text: str, kind: str, found: dict[str, int], real: Callable[[str], bool] | None = None
) -> str:
    def substitute(match: re.Match[str]) -> str:
        if real is not None and not real(match.group()):
            return match.group()
        found[kind] = found.get(kind, 0) + 1
        return f"[{kind}]"

    return pattern.sub(substitute, text)


def _is_public(text: str) -> bool:
    try:
        return ipaddress.IPv4Address(text).is_global
    except ValueError:  # e.g. 300.1.2.3 or 01.2.3.4: a version number, not an address
        return False
