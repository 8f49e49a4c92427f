"""The JSON grader language of reinforcement fine-tuning: string_check, text_similarity, score_model, python, multi.

    {"type": "string_check", "name": "exact", "operation": "eq",
     "input": "{{sample.output_text}}", "reference": "{{item.answer}}"}

`item` is the line of the task file, `sample` what the model said: output_text, and output_json where that is JSON.
`parse` validates, `required_fields` says which fields of an item the templates read, `run` grades one sample. What a
run returns has the shape that OpenAI's graders/run returns: reward, sub_rewards, metadata with typed errors.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from noria.grading.formula import FormulaError, compute, names_in
from noria.grading.python_grader import PythonFailed, run_python
from noria.grading.score_model import ScoreModelFailed, ask_for_score
from noria.grading.similarity import MEASURES, REFUSED

_TEMPLATE = re.compile(r"\{\{\s*(.*?)\s*\}\}")
_PLACE = re.compile(r"(item|sample)((?:\.\w+|\[\d+\])+)")
SAMPLE_FIELDS = ("output_text", "output_json")
# As in OpenAI's metadata.errors (openai-python, types/fine_tuning/alpha/grader_run_response.py), with its three fields
# that say more. Where it has no field for the reason, `<error>_details` is ours.
ERRORS = (
    "formula_parse_error",
    "sample_parse_error",
    "truncated_observation_error",
    "unresponsive_reward_error",
    "invalid_variable_error",
    "other_error",
    "python_grader_server_error",
    "python_grader_runtime_error",
    "model_grader_server_error",
    "model_grader_refusal_error",
    "model_grader_parse_error",
)
DETAILS = (
    "python_grader_server_error_type",
    "python_grader_runtime_error_details",
    "model_grader_server_error_details",
)


class GraderError(ValueError):
    """A grader that can't be used; the message names the field."""


class _Grader(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(default="grader", min_length=1)


class StringCheck(_Grader):
    type: Literal["string_check"]
    input: str
    reference: str
    operation: Literal["eq", "ne", "like", "ilike"]


class TextSimilarity(_Grader):
    type: Literal["text_similarity"]
    input: str
    reference: str
    evaluation_metric: str
    pass_threshold: float | None = None

    @field_validator("evaluation_metric")
    @classmethod
    def _known(cls, value: str) -> str:
        if value in REFUSED:
            raise ValueError(f"{value} is refused here: {REFUSED[value]}; there are {', '.join(MEASURES)}")
        if value not in MEASURES:
            raise ValueError(f"no metric is named {value!r}; there are {', '.join(MEASURES)}")
        return value


class ChatLine(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: str = Field(description="text; text blocks, alone or in a list, are joined")
    type: Literal["message"] | None = None

    @field_validator("content", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        parts = value if isinstance(value, list) else [value]
        texts = []
        for part in parts:
            is_block = isinstance(part, Mapping) and part.get("type") in ("input_text", "output_text")
            if not isinstance(text := part["text"] if is_block and "text" in part else part, str):
                raise ValueError("only text is read here: a string, or blocks of type input_text or output_text")
            texts.append(text)
        return "\n".join(texts)


class SamplingOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    max_completions_tokens: int | None = Field(default=None, ge=1, description="of the judge's reply")
    reasoning_effort: str | None = Field(default=None, description="read by an endpoint alone")
    seed: int | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)


class ScoreModel(_Grader):
    type: Literal["score_model"]
    input: tuple[ChatLine, ...] = Field(min_length=1)
    model: str = Field(description="a model folder, or a model's name at the endpoint in OPENAI_BASE_URL")
    range: tuple[float, float] = (0.0, 1.0)
    sampling_params: SamplingOptions = SamplingOptions()
    pass_threshold: float | None = None

    @field_validator("range", "sampling_params", mode="before")
    @classmethod
    def _null_is_the_default(cls, value: Any, info: ValidationInfo) -> Any:
        return cls.model_fields[str(info.field_name)].default if value is None else value

    @field_validator("range")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not value[0] < value[1]:
            raise ValueError(f"range goes from low to high; found {list(value)}")
        return value


class PythonGrader(_Grader):
    type: Literal["python"]
    source: str = Field(description="defines grade(sample, item), which returns a number")
    image_tag: str | None = Field(default=None, description="read and not used: the sandbox here has one image")

    @field_validator("source")
    @classmethod
    def _compiles(cls, value: str) -> str:
        try:
            compile(value, "grader", "exec")
        except (SyntaxError, ValueError) as error:
            raise ValueError(f"source does not compile: {error}") from error
        if not re.search(r"^def\s+grade\s*\(", value, re.MULTILINE):
            raise ValueError("source defines no function grade(sample, item)")
        return value


class Multi(_Grader):
    type: Literal["multi"]
    graders: dict[str, AnyGrader]
    calculate_output: str

    @model_validator(mode="after")
    def _consistent(self) -> Multi:
        if not self.graders:
            raise ValueError("graders is empty")
        try:
            named = names_in(self.calculate_output)
        except FormulaError as error:
            raise ValueError(f"calculate_output: {error}") from error
        if unknown := sorted(named - self.graders.keys()):
            raise ValueError(
                f"calculate_output names {', '.join(unknown)}; graders has {', '.join(sorted(self.graders))}"
            )
        return self


AnyGrader = Annotated[StringCheck | TextSimilarity | ScoreModel | PythonGrader | Multi, Field(discriminator="type")]
Multi.model_rebuild()
_ANY: TypeAdapter[AnyGrader] = TypeAdapter(AnyGrader)


def read(path: Path) -> AnyGrader:
    """The grader in a file. Raises GraderError with all that is wrong."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise GraderError(f"{path} can't be read: {error}") from error
    try:
        return parse(raw)
    except GraderError as error:
        raise GraderError("\n".join(f"{path}: {line}" for line in str(error).splitlines())) from None


def parse(raw: Any) -> AnyGrader:
    """Validate a grader and its templates. Raises GraderError, a line a problem, each with its field."""
    raw = raw["grader"] if isinstance(raw, Mapping) and isinstance(raw.get("grader"), Mapping) else raw
    try:
        grader = _ANY.validate_python(raw)
    except ValidationError as error:
        said = []
        for item in error.errors():
            field = ".".join(str(part) for part in item["loc"] if part not in _TYPES) or "grader"
            said.append(f"{field}: {item['msg'].removeprefix('Value error, ')}")
        raise GraderError("\n".join(said)) from None
    problems = [
        f"{field}: {{{{{place}}}}} is no template: write {{{{item.FIELD}}}} or {{{{sample.output_text}}}}"
        for field, text in _texts(grader)
        for place in _TEMPLATE.findall(text)
        if not _is_place(place)
    ]
    if problems:
        raise GraderError("\n".join(problems))
    return grader


_TYPES = ("string_check", "text_similarity", "score_model", "python", "multi")


def required_fields(grader: AnyGrader) -> list[str]:
    """The fields of an item that the templates read, as dotted paths without "item."."""
    places = [place for _, text in _texts(grader) for place in _TEMPLATE.findall(text)]
    return sorted({place.removeprefix("item.") for place in places if place.startswith("item.")})


def look_up(place: str, values: Any) -> Any:
    """What lies at a dotted path such as a.b[0]. Raises KeyError, with the path, where nothing does."""
    for name, index in re.findall(r"(\w+)|\[(\d+)\]", place):
        try:
            values = values[int(index)] if index else values[name]
        except (KeyError, IndexError, TypeError):
            raise KeyError(place) from None
    return values


def run(grader: AnyGrader, item: Mapping[str, Any], output_text: str) -> dict[str, Any]:
    """Grade one sample. What goes wrong is a typed error in metadata.errors, and then `reward` is None.

    A failed grading is no 0: only what the grader itself says is a reward.
    """
    started = time.monotonic()
    sample = {"output_text": output_text, **_as_json(output_text)}
    errors: dict[str, Any] = dict.fromkeys(ERRORS, False) | dict.fromkeys(DETAILS)
    sub_rewards: dict[str, float] = {}
    reward = _reward(grader, {"item": item, "sample": sample}, errors, sub_rewards, "")
    metadata = {
        "name": grader.name,
        "type": grader.type,
        "errors": errors,
        "execution_time": round(time.monotonic() - started, 6),
        "scores": {},
        "token_usage": None,
        "sampled_model_name": grader.model if isinstance(grader, ScoreModel) else None,
    }
    return {
        "reward": reward,
        "sub_rewards": sub_rewards,
        "metadata": metadata,
        "model_grader_token_usage_per_model": {},
    }


def _reward(
    grader: AnyGrader, values: Mapping[str, Any], errors: dict[str, Any], subs: dict[str, float], path: str
) -> float | None:
    try:
        if isinstance(grader, StringCheck):
            return _string_check(grader.operation, fill(grader.input, values), fill(grader.reference, values))
        if isinstance(grader, TextSimilarity):
            measure = MEASURES[grader.evaluation_metric]
            return measure(fill(grader.input, values), fill(grader.reference, values))
        if isinstance(grader, ScoreModel):
            lines = [(line.role, fill(line.content, values)) for line in grader.input]
            sampling = grader.sampling_params.model_dump(exclude_none=True)
            return ask_for_score(grader.model, lines, grader.range, sampling)
        if isinstance(grader, PythonGrader):
            return run_python(grader.source, values["sample"], values["item"])
        found = {}
        for name, inner in grader.graders.items():
            value = _reward(inner, values, errors, subs, f"{path}{name}.")
            if value is None:
                return None
            found[name] = subs[f"{path}{name}"] = value
        return compute(grader.calculate_output, found)
    except KeyError as error:
        missing = str(error.args[0])
        kind = "sample_parse_error" if missing.startswith("sample.output_json") else "invalid_variable_error"
        _note(errors, kind, f"there is no {missing}")
    except FormulaError as error:
        _note(errors, "formula_parse_error", str(error))
    except PythonFailed as error:
        _note(errors, "python_grader_server_error" if error.is_ours else "python_grader_runtime_error", str(error))
    except ScoreModelFailed as error:
        _note(errors, error.kind, str(error))
    return None


def fill(template: str, values: Mapping[str, Any]) -> str:
    """`template` with what its places hold; what is no text is spelled as JSON. Raises KeyError with the place."""

    def spelled(match: re.Match[str]) -> str:
        found = look_up(match[1], values)
        return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)

    return _TEMPLATE.sub(spelled, template)


def said_errors(result: Mapping[str, Any]) -> str:
    """The errors of a run in words; empty where there was none."""
    errors = result["metadata"]["errors"]
    return "; ".join(f"{name}: {errors.get(_details(name)) or ''}" for name in ERRORS if errors[name])


def _note(errors: dict[str, Any], kind: str, details: str) -> None:
    errors[kind] = True
    errors[_details(kind)] = details


def _details(kind: str) -> str:
    return f"{kind}_type" if kind == "python_grader_server_error" else f"{kind}_details"


def _string_check(operation: str, text: str, reference: str) -> float:
    if operation in ("eq", "ne"):
        return float((text == reference) == (operation == "eq"))
    if operation == "ilike":
        text, reference = text.lower(), reference.lower()
    return float(reference in text)


def _as_json(text: str) -> dict[str, Any]:
    try:
        return {"output_json": json.loads(text)}
    except ValueError:
        return {}


def _is_place(place: str) -> bool:
    match = _PLACE.fullmatch(place)
    if not match:
        return False
    return match[1] == "item" or re.split(r"[.\[]", match[2])[1] in SAMPLE_FIELDS


def _texts(grader: AnyGrader, path: str = "") -> Iterator[tuple[str, str]]:
    """(field, template) of everything that is filled in."""
    if isinstance(grader, StringCheck | TextSimilarity):
        yield f"{path}input", grader.input
        yield f"{path}reference", grader.reference
    elif isinstance(grader, ScoreModel):
        yield from ((f"{path}input[{place}].content", line.content) for place, line in enumerate(grader.input))
    elif isinstance(grader, Multi):
        for name, inner in grader.graders.items():
            yield from _texts(inner, f"{path}graders.{name}.")
