"""Personal data and secrets, replaced by typed placeholders that do not depend on order.

Found: e-mail addresses, public IPv4 addresses (private and documentation ranges stay: they are no one's), phone numbers
in international or North American form, private keys and access tokens of common services. Rules, not a model: names
and postal addresses are not found.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable

EMAIL = re.compile(r"(?<![\w.+-])[A-Za-z0-9][\w.+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,24}\b")
ADDRESS = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w.]|\.\d)")
PHONE = re.compile(
    r"(?<![\w+.-])(?:\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{2,4}(?:[ .-]\d{2,4}){2,3}"
    r"|\(\d{3}\) ?\d{3}-\d{4}|\d{3}-\d{3}-\d{4})(?![\w-])"
)
KEY = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
    r"|\bAKIA[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{36,}\b|\bsk-[A-Za-z0-9_-]{32,}\b|\bxox[abprs]-[A-Za-z0-9-]{20,}\b"
    r"|\beyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}",
    re.DOTALL,
)
DIGITS = re.compile(r"\d{3}")
KEY_MARKS = ("PRIVATE KEY", "AKIA", "gh", "sk-", "xox", "eyJ")


def redact(text: str) -> tuple[str, dict[str, int]]:
    """The text with placeholders ([key], [email], [ip], [phone]) and how many of each were written."""
    found: dict[str, int] = {}
    if any(mark in text for mark in KEY_MARKS):
        text = _replace(KEY, text, "key", found)
    if "@" in text:
        text = _replace(EMAIL, text, "email", found)
    if DIGITS.search(text) or "." in text:
        text = _replace(ADDRESS, text, "ip", found, _is_public)
        text = _replace(PHONE, text, "phone", found)
    return text, found


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
