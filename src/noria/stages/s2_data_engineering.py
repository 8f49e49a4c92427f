"""Stage 2, data engineering: raw records to a clean corpus, a tokenizer trained on it, and tokenised shards.

raw_data ─┐
registry ─┴─ corpus ─┬─ tokenizer ─┐
                     └─────────────┴─ shards      (+ traffic and mixture weights of an earlier turn)

The rule that rejects a document, by the step that the funnel and rejects/*.parquet name:

extract        noria.data.extract.extract               no text in it
language       noria.data.language.reject_reasons       not sure enough, or not wanted
quality        noria.data.quality.quality_reasons       below a threshold of its kind in noria.data.quality.RULES
pii            noria.data.pii.redact                    redacts, and rejects nothing
safety         noria.data.safety.unsafe_reason          many unsafe phrases
exact          noria.data.dedup.exact_key               same text as another
near           noria.data.dedup.near_clusters           nearly the same text
lines          noria.data.dedup.repeated_lines          little left without the lines of every page
decontaminate  noria.data.decontaminate.TaskIndex.find  holds an evaluation task

noria.data.clean calls the first five on each chunk, noria.data.corpus the others on the whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from noria.artifacts import Artifact, Step, StepContext

STAGE = "s2_data_engineering"
TRAFFIC = ("traffic", "live_traffic")  # of scripted users, of a live server
KINDS = ("crawl", "code", "books", "forums", "docs", "synthetic", "traffic")


class CorpusConfig(BaseModel):
    """[data.corpus]: which documents stay. Quality thresholds by kind are in noria.data.quality.RULES."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    languages: tuple[str, ...] = Field(default=(), description="ISO 639 codes to keep; empty keeps all that are sure")
    quality: dict[str, dict[str, Any]] = Field(
        default={}, description="by kind: QualityRules fields that replace the built-in ones"
    )
    unsafe_phrases: int = Field(default=3, ge=1, description="least phrases of a category that make a document unsafe")
    unsafe_per_thousand_words: float = Field(default=2.0, ge=0, description="and at least so many per 1,000 words")
    near_kinds: tuple[str, ...] = Field(
        default=("crawl", "docs", "books", "forums", "code", "traffic"),
        description="kinds whose near-duplicates are dropped; synthetic text shares templates by design",
    )
    near_similarity: float = Field(default=0.7, gt=0, le=1, description="least estimated Jaccard of word 5-grams")
    kind_priority: tuple[str, ...] = Field(
        default=("books", "docs", "crawl", "forums", "code", "traffic", "synthetic"),
        description="of a cluster across kinds, the earlier kind is kept",
    )
    line_kinds: tuple[str, ...] = Field(default=("crawl", "docs"), description="kinds whose repeated lines are dropped")
    most_line_documents: int = Field(default=6, ge=1, description="a line in more documents of its kind is dropped")
    contamination_score: float = Field(default=0.6, gt=0, le=1, description="least score that drops a document")

    def rules(self) -> Any:
        from noria.data.clean import CleanRules
        from noria.data.quality import RULES, QualityRules

        unknown = set(self.quality) - set(RULES)
        if unknown:
            raise ValueError(f"[data.corpus.quality] has unknown kinds {sorted(unknown)}; known: {sorted(RULES)}")
        replaced = {
            kind: QualityRules(**{**RULES[kind].model_dump(), **fields}) for kind, fields in self.quality.items()
        }
        return CleanRules(
            languages=self.languages,
            quality=replaced,
            unsafe_phrases=self.unsafe_phrases,
            unsafe_per_thousand_words=self.unsafe_per_thousand_words,
        )


class TokenizerConfig(BaseModel):
    """[data.tokenizer]"""

    model_config = ConfigDict(extra="forbid", frozen=True)

    vocab_size: int = Field(default=2048, ge=266, le=65536, description="tokens, specials and bytes included")
    sample_bytes: int = Field(default=8_000_000, ge=1, description="text it is trained on, drawn by the kind weights")
    seed: int = Field(default=0, ge=0, description="which documents are drawn")


class ShardsConfig(BaseModel):
    """[data.shards]: how much is tokenised, and the static mixture."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    train_tokens: int = Field(default=4_000_000, ge=1, description="training tokens made, shared out by weight")
    heldout_fraction: float = Field(default=0.02, gt=0, lt=0.5, description="share of documents held out, by id")
    heldout_tokens: int = Field(default=40_000, ge=1, description="most held-out tokens of a source")
    budget_tokens: int | None = Field(
        default=None, ge=1, description="tokens that pretraining will see: bounds the epochs of small sources"
    )
    most_epochs: float = Field(default=4.0, gt=0, description="most passes over a source within the budget")
    size_exponent: float = Field(
        default=1.0, ge=0, le=1, description="a kind's weight is shared by size ** this: 1 in proportion, 0 equally"
    )
    seed: int = Field(default=0, ge=0, description="which documents are taken where a source has more than its share")


class Config(BaseModel):
    """[data]"""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weights: dict[str, float] = Field(
        default={"crawl": 0.2, "docs": 0.1, "books": 0.1, "forums": 0.05, "code": 0.1, "synthetic": 0.45},
        description="share of each kind in what is trained on (and of `traffic` in a second turn); normalised",
    )
    corpus: CorpusConfig = CorpusConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    shards: ShardsConfig = ShardsConfig()

    @field_validator("weights")
    @classmethod
    def _kinds_exist(cls, value: dict[str, float]) -> dict[str, float]:
        if unknown := sorted(set(value) - set(KINDS)):
            raise ValueError(f"no kind is named {', '.join(unknown)}; there are {', '.join(KINDS)}")
        if negative := sorted(kind for kind, weight in value.items() if weight < 0):
            raise ValueError(f"a weight is at least 0; {', '.join(negative)} is below: 0 leaves a kind out")
        if not any(weight for kind, weight in value.items() if kind != "traffic"):
            raise ValueError("no kind has a weight above 0 (traffic alone is not enough: the first turn has none)")
        return value


class WeightedTokenizer(TokenizerConfig):
    """What identifies a tokenizer besides its corpus."""

    weights: dict[str, float] = Field(description="share of each kind in the mixture")


class WeightedShards(ShardsConfig):
    """What identifies shards besides corpus and tokenizer."""

    weights: dict[str, float] = Field(description="share of each kind in the mixture")


def corpus(config: Config, raw: Step | Artifact, registry: Step | Artifact) -> Step:
    """Clean documents. `registry` holds the evaluation tasks (content/tasks.jsonl) to decontaminate against."""
    inputs = {"raw_data": raw, "registry": registry}
    return Step(
        name="corpus", stage=STAGE, kind="corpus", version=1, config=config.corpus, inputs=inputs, run=run_corpus
    )


def tokenizer(config: Config, corpus: Step | Artifact) -> Step:
    identity = WeightedTokenizer(**config.tokenizer.model_dump(), weights=config.weights)
    return Step(
        name="tokenizer",
        stage=STAGE,
        kind="tokenizer",
        version=1,
        config=identity,
        inputs={"corpus": corpus},
        run=run_tokenizer,
    )


def shards(
    config: Config,
    corpus: Step | Artifact,
    tokenizer: Step | Artifact,
    traffic: Mapping[str, Step | Artifact] | None = None,
    mixture: Step | Artifact | None = None,
) -> Step:
    """Tokenised shards and the mixture. `traffic`, by the names in TRAFFIC, holds what loop A made of each log
    (content/documents/*.parquet), together the source "traffic"; `mixture` holds weights by source
    (content/mixture.json) that replace the static ones."""
    inputs = {"corpus": corpus, "tokenizer": tokenizer, **(traffic or {})}
    inputs |= {"mixture": mixture} if mixture is not None else {}
    identity = WeightedShards(**config.shards.model_dump(), weights=config.weights)
    return Step(name="shards", stage=STAGE, kind="shards", version=1, config=identity, inputs=inputs, run=run_shards)


def run_corpus(context: StepContext) -> Mapping[str, Any]:
    from noria.data.corpus import WholeRules, build_corpus
    from noria.types import task_from_json

    config: CorpusConfig = context.config
    lines = (context.inputs["registry"].content / "tasks.jsonl").read_text(encoding="utf-8").splitlines()
    whole = WholeRules(
        near_kinds=config.near_kinds,
        near_similarity=config.near_similarity,
        kind_priority=config.kind_priority,
        line_kinds=config.line_kinds,
        most_line_documents=config.most_line_documents,
        contamination_score=config.contamination_score,
    )
    return build_corpus(
        context.inputs["raw_data"].content,
        context.content,
        [task_from_json(line) for line in lines if line],
        config.rules(),
        whole,
        context.report,
        context.observed,
    )


def run_tokenizer(context: StepContext) -> Mapping[str, Any]:
    from noria.data.sampling import sample_texts
    from noria.data.tokenizer import train_tokenizer

    config: WeightedTokenizer = context.config
    context.report(0, 1, "MB", "drawing texts")
    texts = sample_texts(context.inputs["corpus"].content, config.weights, config.sample_bytes, config.seed)
    size = sum(len(text.encode()) for text in texts)
    context.report(size / 1e6, 2 * size / 1e6, "MB", "merging")
    made = train_tokenizer(texts, config.vocab_size)
    made.save(context.content / "tokenizer.json")
    context.report(2 * size / 1e6, 2 * size / 1e6, "MB")
    return {"vocab_size": made.vocab_size, "trained_on_bytes": size, "documents": len(texts), "digest": made.digest}


def run_shards(context: StepContext) -> Mapping[str, Any]:
    from noria.data.sampling import build_shards, read_override
    from noria.data.tokenizer import Tokenizer

    config: WeightedShards = context.config
    traffic = [context.inputs[role].content for role in TRAFFIC if role in context.inputs]
    mixture = context.inputs.get("mixture")
    return build_shards(
        corpus=context.inputs["corpus"].content,
        out=context.content,
        tokenizer=Tokenizer.load(context.inputs["tokenizer"].content / "tokenizer.json"),
        kind_weights=config.weights,
        override=read_override(mixture.content / "mixture.json") if mixture else None,
        traffic=traffic,
        train_tokens=config.train_tokens,
        heldout_fraction=config.heldout_fraction,
        most_heldout_tokens=config.heldout_tokens,
        budget_tokens=config.budget_tokens,
        most_epochs=config.most_epochs,
        size_exponent=config.size_exponent,
        seed=config.seed,
        report=context.report,
    )
