"""A model as a grader: asked for a number at an OpenAI-compatible endpoint, or run from a folder by our own engine."""

from __future__ import annotations

import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

TIMEOUT_SECONDS = 60.0
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


class ScoreModelFailed(ValueError):
    """No score. `kind` is the typed error that says why."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def ask_for_score(
    model: str, lines: Sequence[tuple[str, str]], bounds: tuple[float, float], sampling: Mapping[str, Any]
) -> float:
    """The last number of the model's reply. Raises ScoreModelFailed where it gives none, or one outside `bounds`."""
    reply = (
        _from_folder(Path(model), lines, sampling) if Path(model).is_dir() else _from_endpoint(model, lines, sampling)
    )
    numbers = _NUMBER.findall(reply)
    if not numbers or not bounds[0] <= float(numbers[-1]) <= bounds[1]:
        raise ScoreModelFailed(
            "model_grader_parse_error", f"{model} said {reply[:80]!r}, in which no number of {list(bounds)} ends"
        )
    return float(numbers[-1])


def _from_endpoint(model: str, lines: Sequence[tuple[str, str]], sampling: Mapping[str, Any]) -> str:
    base = os.environ.get("OPENAI_BASE_URL", "")
    if not base:
        raise ScoreModelFailed(
            "model_grader_server_error",
            f"{model} is no model folder, and no endpoint that may serve it is named in OPENAI_BASE_URL",
        )
    # The grader language and the chat endpoint spell this one differently.
    renamed = {("max_completion_tokens" if key == "max_completions_tokens" else key): sampling[key] for key in sampling}
    body = {"model": model, "messages": [{"role": role, "content": text} for role, text in lines], **renamed}
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get("OPENAI_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(f"{base.rstrip('/')}/chat/completions", json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
            return json.load(response)["choices"][0]["message"]["content"] or ""
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise ScoreModelFailed("model_grader_server_error", f"{base}: {error}") from error


def _from_folder(folder: Path, lines: Sequence[tuple[str, str]], sampling: Mapping[str, Any]) -> str:
    from noria.inference import Request, RequestTooLong, SamplingParams
    from noria.types import Message

    engine, tokenizer = _loaded(folder)
    messages = [Message("system" if role == "developer" else role, text) for role, text in lines]  # type: ignore[arg-type]
    params = SamplingParams(
        max_tokens=int(sampling.get("max_completions_tokens") or 32),
        temperature=float(sampling.get("temperature") or 0.0),
        top_p=float(sampling.get("top_p") or 1.0),
        seed=int(sampling.get("seed") or 0),
    )
    try:
        (completion,) = engine.generate([Request(tokenizer.render(messages), params)])
    except RequestTooLong as error:
        raise ScoreModelFailed("model_grader_server_error", str(error)) from error
    return tokenizer.decode(completion.token_ids)


@lru_cache(maxsize=2)
def _loaded(folder: Path) -> tuple[Any, Any]:
    from noria.data.chat_tokenizer import load_chat_tokenizer
    from noria.inference import Engine
    from noria.model import load_model

    model, tokenizer = load_model(folder), load_chat_tokenizer(folder)
    return Engine(model, tokenizer.end, max_rows=1, context=min(model.config.context, 4096)), tokenizer
