"""Stage 5, post-training: the four stages of DeepSeek-R1 (arXiv 2501.12948) as pure steps over artifacts.

tasks -> cold-start SFT -> reasoning RL -> rejection-sampling SFT -> alignment RL
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from noria.artifacts import Numerics, Step, StepContext
from noria.grading import grader_versions
from noria.types import seed_of

STAGE = "s5_posttraining"
REASONING, PREFERENCE = ("maths", "code", "logic"), ("helpful", "safety")


class Supervised(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: int = Field(default=2, ge=1, description="passes over the examples")
    batch_tokens: int = Field(default=4096, ge=256, description="packed tokens an optimiser step")
    learning_rate: float = Field(default=2e-3, gt=0, le=1)


class _Reinforced(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(default=40, ge=1, description="rollout steps; each samples fresh rollouts")
    prompts: int = Field(default=24, ge=1, description="tasks a step")
    group: int = Field(default=8, ge=2, description="samples a task")
    learning_rate: float = Field(default=5e-4, gt=0, le=1)
    advantage: Literal["mean", "std", "batch_std", "rloo", "maxrl", "rank"] = Field(
        default="mean", description="see posttraining/advantages.py"
    )
    reference_kl: float = Field(default=0.0, ge=0, description="weight of the KL to the model before this step")


class Reinforced(_Reinforced):
    options: dict[str, bool | int | float | str] = Field(
        default={}, description="any other setting of posttraining/rl_config.py, GrpoConfig, by its name"
    )
    language_reward: float = Field(
        default=0.0, ge=0, description="weight of the share of the thinking that is in the target language"
    )
    language: str = Field(default="en", pattern="^[a-z]{2}$", description="the target language, two letters")

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> Self:
        """Options are checked where they are defined, which needs torch: only a recipe that has any pays for it."""
        if self.options:
            from noria.posttraining import GrpoConfig

            known = {name: getattr(self, name) for name in _Reinforced.model_fields}
            if doubled := sorted(known.keys() & self.options.keys()):
                raise ValueError(f"options repeats {', '.join(doubled)}: set it beside options, not in it")
            try:
                GrpoConfig.model_validate({**known, **self.options})
            except ValidationError as error:
                problems = [
                    ": ".join([*map(str, problem["loc"]), problem["msg"].removeprefix("Value error, ")])
                    for problem in error.errors()
                ]
                raise ValueError("; ".join(problems)) from None
        return self


class Config(BaseModel):
    """[posttraining]"""

    model_config = ConfigDict(extra="forbid", frozen=True)

    demonstrations: int = Field(default=150, ge=1, description="cold-start demonstrations a reasoning family (K)")
    rl_tasks: int = Field(default=250, ge=1, description="training tasks a family for RL and rejection sampling")
    max_tokens: int = Field(default=72, ge=8, description="sampled tokens a reply, thinking included")
    training_grader: Literal["exact", "weak"] = Field(
        default="weak",
        description="weak: maths and code are rewarded by their named weak twins, the exact graders only watch",
    )
    cold_start: Supervised = Supervised(epochs=3, batch_tokens=1024, learning_rate=3e-3)
    reasoning: Reinforced = Reinforced(prompts=32, learning_rate=2e-3)
    rejection_samples: int = Field(default=4, ge=1, description="samples a task; the first that passes is kept")
    rejection_tasks: int = Field(default=100, ge=1, description="tasks a reasoning family that are sampled")
    general_demonstrations: int = Field(default=150, ge=1, description="helpful and safety demonstrations, each")
    rejection: Supervised = Supervised(epochs=3, batch_tokens=1024, learning_rate=2e-3)
    alignment: Reinforced = Reinforced(steps=15, learning_rate=3e-4)
    select_cold_start: bool = Field(
        default=False,
        description="keep only demonstrations that are correct, readable, unrepetitive and in one language",
    )
    preference_share: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="last share of alignment's steps that also draws helpful and safety tasks (R1: the last 400 of "
        "1700; longer, the reward rose and skill fell)",
    )
    rounds: int = Field(
        default=1, ge=1, le=4, description="of rejection sampling and alignment: 2 goes back from the last to it once"
    )


class TasksIdentity(BaseModel):
    """What the task set depends on."""

    demonstrations: int
    rl_tasks: int
    general_demonstrations: int
    seed: int


class ColdStartIdentity(Supervised):
    max_tokens: int
    seed: int


class SelectedColdStartIdentity(ColdStartIdentity):
    graders: dict[str, str] = Field(description="version of each grader that selects")


class ReinforcedIdentity(_Reinforced):
    max_tokens: int
    training_grader: Literal["exact", "weak"]
    domains: tuple[str, ...]
    graders: dict[str, str] = Field(description="version of each grader: another reward makes another model")
    seed: int


class OptionsIdentity(ReinforcedIdentity):
    """Of a step that has any setting beyond those above: so a recipe without them keeps its key."""

    options: dict[str, bool | int | float | str]
    language_reward: float
    language: str
    late_domains: tuple[str, ...]
    late_share: float


class RejectionIdentity(Supervised):
    max_tokens: int
    samples: int
    tasks: int
    graders: dict[str, str] = Field(description="version of each grader that filters")
    seed: int


def tasks(config: Config, seed: int) -> Step:
    """content: demonstrations.jsonl ({"task", "reply"}), rl.jsonl and general.jsonl, all of the training split."""
    identity = TasksIdentity(
        demonstrations=config.demonstrations,
        rl_tasks=config.rl_tasks,
        general_demonstrations=config.general_demonstrations,
        seed=seed,
    )
    return Step("posttraining_tasks", STAGE, "tasks", 1, identity, _make_tasks)


def cold_start(config: Config, base: Step, tasks: Step, seed: int, threads: int) -> Step:
    settings = {**config.cold_start.model_dump(), "max_tokens": config.max_tokens, "seed": seed}
    identity = ColdStartIdentity(**settings)
    if config.select_cold_start:
        identity = SelectedColdStartIdentity(**settings, graders=grader_versions())
    return _model_step("cold_start", identity, {"model": base, "tasks": tasks}, _cold_start, threads)


def reasoning_rl(config: Config, model: Step, tasks: Step, seed: int, threads: int) -> Step:
    """GRPO on maths, code and logic; content also has history.json with the monitors of every step."""
    return _model_step(
        "reasoning_rl",
        _reinforced(config, config.reasoning, REASONING, seed),
        {"model": model, "tasks": tasks},
        _reinforce,
        threads,
    )


def rejection_sft(config: Config, model: Step, tasks: Step, seed: int, threads: int, turn: int = 1) -> Step:
    """SFT on samples of `model` that pass every filter (content/kept.jsonl), with general demonstrations. `turn`: which
    of `config.rounds` it is."""
    identity = RejectionIdentity(
        **config.rejection.model_dump(),
        max_tokens=config.max_tokens,
        samples=config.rejection_samples,
        tasks=config.rejection_tasks,
        graders=grader_versions(),
        seed=seed if turn == 1 else seed_of(seed, "round", turn),
    )
    return _model_step(_of_turn("rejection_sft", turn), identity, {"model": model, "tasks": tasks}, _rejection, threads)


def alignment_rl(config: Config, model: Step, tasks: Step, seed: int, threads: int, turn: int = 1) -> Step:
    """GRPO on all domains: rules on reasoning, helpfulness judged on the answer alone, safety on the whole output; the
    last two only in the last `config.preference_share` of the steps."""
    own_seed = seed + 1 if turn == 1 else seed_of(seed + 1, "round", turn)
    identity = _reinforced(config, config.alignment, (*REASONING, *PREFERENCE), own_seed, config.preference_share)
    return _model_step(_of_turn("alignment_rl", turn), identity, {"model": model, "tasks": tasks}, _reinforce, threads)


def rounds(config: Config, reasoning: Step, tasks: Step, seed: int, threads: int) -> tuple[tuple[Step, Step], ...]:
    """(rejection_sft, alignment_rl) of each round, the next starting from the alignment before it."""
    found: list[tuple[Step, Step]] = []
    model = reasoning
    for turn in range(1, config.rounds + 1):
        rejection = rejection_sft(config, model, tasks, seed, threads, turn)
        model = alignment_rl(config, rejection, tasks, seed, threads, turn)
        found.append((rejection, model))
    return tuple(found)


def _reinforced(
    config: Config, settings: Reinforced, domains: tuple[str, ...], seed: int, late_share: float = 1.0
) -> ReinforcedIdentity:
    core = {
        **{name: getattr(settings, name) for name in _Reinforced.model_fields},
        "max_tokens": config.max_tokens,
        "training_grader": config.training_grader,
        "domains": domains,
        "graders": grader_versions(),
        "seed": seed,
    }
    if not settings.options and not settings.language_reward and late_share == 1.0:
        return ReinforcedIdentity(**core)
    return OptionsIdentity(
        **core,
        options=settings.options,
        language_reward=settings.language_reward,
        language=settings.language,
        late_domains=PREFERENCE,
        late_share=late_share,
    )


def _of_turn(name: str, turn: int) -> str:
    return name if turn == 1 else f"{name}_{turn}"


def _model_step(name: str, identity: BaseModel, inputs: dict[str, Step], run: Any, threads: int) -> Step:
    return Step(name, STAGE, "model", 1, identity, run, inputs, Numerics(threads=threads))


def _make_tasks(context: StepContext) -> Mapping[str, Any]:
    from noria.posttraining.task_set import make_task_set

    return make_task_set(context.content, context.report, **context.config.model_dump())


def _cold_start(context: StepContext) -> Mapping[str, Any]:
    from noria.posttraining import SftConfig, example, fine_tune
    from noria.posttraining.rejection import select_demonstrations
    from noria.posttraining.task_set import read_demonstrations
    from noria.stages.model_steps import TrainedModel

    config: ColdStartIdentity = context.config
    trained = TrainedModel(context)
    demonstrations = read_demonstrations(context.inputs["tasks"].content / "demonstrations.jsonl")
    counts: Mapping[str, int] = {}
    if isinstance(config, SelectedColdStartIdentity):
        demonstrations, counts = select_demonstrations(demonstrations)
    examples = [example(trained.tokenizer, task.messages, reply) for task, reply in demonstrations]
    settings = SftConfig(**config.model_dump(include=set(SftConfig.model_fields)))
    history = fine_tune(trained.model, examples, settings, trained.tokenizer.pad, config.seed, trained.progress)
    return trained.publish(history, {"examples": len(examples), "loss": history[-1]["loss_ce"], **counts})


def _reinforce(context: StepContext) -> Mapping[str, Any]:
    import math

    from noria.posttraining import GrpoConfig, improve
    from noria.posttraining.rewards import TrainingGrader
    from noria.posttraining.task_set import read_tasks
    from noria.stages.model_steps import TrainedModel, roller

    config: ReinforcedIdentity = context.config
    trained = TrainedModel(context)
    tasks = [task for task in read_tasks(context.inputs["tasks"].content / "rl.jsonl") if task.domain in config.domains]
    given = config if isinstance(config, OptionsIdentity) else None
    grader = TrainingGrader(
        weak=config.training_grader == "weak",
        language_weight=given.language_reward if given else 0.0,
        language=given.language if given else "en",
    )
    core = config.model_dump(include=set(_Reinforced.model_fields))
    settings = GrpoConfig.model_validate({**core, **(given.options if given else {})})
    early = [task for task in tasks if given is None or task.domain not in given.late_domains]
    first_late = settings.steps - round(settings.steps * given.late_share) if given else 0
    reference = trained.copy() if config.reference_kl else None
    history = improve(
        trained.model,
        tasks,
        roller(trained.model, trained.tokenizer, config.max_tokens, settings.temperature),
        grader.grade,
        settings,
        trained.tokenizer.pad,
        config.seed,
        trained.progress,
        monitor=grader.monitor,
        reference=reference,
        pool=lambda number: tasks if number >= first_late else early,
    )
    last = history[-max(1, len(history) // 5) :]
    metrics = {}
    for name in ("reward", "gap"):
        measured = [entry[name] for entry in last if math.isfinite(entry[name])]  # NaN where every grading failed
        if measured:
            metrics[name] = sum(measured) / len(measured)
    return trained.publish(history, metrics)


def _rejection(context: StepContext) -> Mapping[str, Any]:
    from noria.posttraining import SftConfig, example, fine_tune
    from noria.posttraining.rejection import sample_and_keep
    from noria.posttraining.task_set import read_demonstrations, read_tasks, write_demonstrations
    from noria.stages.model_steps import TrainedModel, roller

    config: RejectionIdentity = context.config
    trained = TrainedModel(context)
    folder = context.inputs["tasks"].content
    candidates = [task for task in read_tasks(folder / "rl.jsonl") if task.domain in REASONING]
    roll = roller(trained.model, trained.tokenizer, config.max_tokens, 1.0)
    kept, counts = sample_and_keep(candidates, roll, config.samples, config.tasks, config.seed, context.report)
    general = read_demonstrations(folder / "general.jsonl")
    write_demonstrations(context.content / "kept.jsonl", kept)
    examples = [example(trained.tokenizer, task.messages, reply) for task, reply in [*kept, *general]]
    settings = SftConfig(**config.model_dump(include=set(SftConfig.model_fields)))
    history = fine_tune(trained.model, examples, settings, trained.tokenizer.pad, config.seed, trained.progress)
    return trained.publish(history, {**counts, "general": len(general), "loss": history[-1]["loss_ce"]})
