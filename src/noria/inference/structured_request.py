"""Structured output as requests ask for it: OpenAI's `response_format`, vLLM's `structured_outputs` for the rest."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from noria.inference.openai_schema import invalid, shown
from noria.inference.tool_calls import Structure

STRUCTURE_FIELDS = frozenset({"response_format", "structured_outputs"})
LONGEST_STRUCTURE = 65_536  # characters of a schema or pattern; compiling one takes time and memory


def read_structure(body: Mapping[str, Any]) -> Structure | None:
    """What the reply must match; None where it is free. Raises ApiError(400)."""
    format_, more = body.get("response_format"), body.get("structured_outputs")
    found = _response_format(format_)
    if more is None:
        return found
    if found:
        raise invalid("'structured_outputs' and 'response_format' exclude each other.", "structured_outputs")
    return _structured_outputs(more)


def _response_format(value: Any) -> Structure | None:
    if value is None or value == {"type": "text"}:
        return None
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "json_object" and set(value) == {"type"}:
        return Structure("json_object")
    if kind == "json_schema" and set(value) == {"type", "json_schema"} and isinstance(value["json_schema"], dict):
        told = value["json_schema"]
        for name in sorted(set(told) - {"name", "description", "schema", "strict"}):
            where = f"response_format.json_schema.{name[:64]}"
            raise invalid(f"'{where}' is not known.", where, "unknown_parameter")
        return _schema(told.get("schema"), "response_format.json_schema.schema")
    message = f"'response_format' is {shown(value)}; its type must be text, json_object or json_schema."
    raise invalid(message, "response_format")


def _structured_outputs(value: Any) -> Structure:
    if not isinstance(value, dict) or len(value) != 1 or not set(value) <= {"json", "regex", "choice"}:
        raise invalid("'structured_outputs' takes one of json, regex and choice.", "structured_outputs")
    (kind, told), where = next(iter(value.items())), f"structured_outputs.{next(iter(value))}"
    if kind == "json":
        return _schema(told, where)
    if kind == "choice":
        if not isinstance(told, list) or not told or not all(isinstance(one, str) and one for one in told):
            raise invalid(f"'{where}' must be a non-empty array of non-empty strings.", where)
        told = f"({'|'.join(re.escape(one) for one in told)})"
    if not isinstance(told, str) or not told:
        raise invalid(f"'{where}' must be a non-empty string.", where)
    return Structure("regex", _of_fair_length(told, where))


def _schema(value: Any, where: str) -> Structure:
    if not isinstance(value, dict):
        raise invalid(f"'{where}' must be a JSON schema, an object.", where, "invalid_type")
    return Structure("json_schema", _of_fair_length(json.dumps(value, ensure_ascii=False), where))


def _of_fair_length(text: str, where: str) -> str:
    if len(text) > LONGEST_STRUCTURE:
        raise invalid(f"'{where}' has {len(text)} characters; at most {LONGEST_STRUCTURE} are taken.", where)
    return text
