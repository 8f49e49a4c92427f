"""The nine stages wired and the two loops closed. Start here: each call leads to its stage, each stage to rooms.

raw data -> data engineering -> system recipe -> pretraining -> post-training -> agent harness -> distillation
   ^                               ^                                 |  evaluation after each  |
   |                               |                                 v                         v
   +---- loop A: traffic ----------+---- loop B: mixture -------- deployment: verdict, release, traffic
"""

from __future__ import annotations

from collections.abc import Mapping

from noria.artifacts import Artifact, Numerics, Step, Store, StoreError
from noria.loops.evals_to_pretraining import Config as MixtureRule
from noria.loops.evals_to_pretraining import evals_to_pretraining
from noria.loops.traffic_to_data import Config as TrafficRule
from noria.loops.traffic_to_data import traffic_to_data
from noria.recipe import OpenModelRecipe, Recipe
from noria.stages import ablations, open_model, open_model_source, open_model_tasks
from noria.stages import s1_raw_data as s1
from noria.stages import s2_data_engineering as s2
from noria.stages import s3_system_recipe as s3
from noria.stages import s4_pretraining as s4
from noria.stages import s5_posttraining as s5
from noria.stages import s6_evaluation as s6
from noria.stages import s7_agent_harness as s7
from noria.stages import s8_distillation as s8
from noria.stages import s9_deployment as s9


def build(recipe: Recipe | OpenModelRecipe, turn: int, store: Store) -> list[Step]:
    """All steps of `turn`, inputs before what reads them. From turn 2 on, the turn before must lie in `store`."""
    if isinstance(recipe, OpenModelRecipe):
        return _open_model(recipe, turn)
    previous = _Previous(recipe, turn, store) if turn > 1 else None
    run, threads = recipe.run, recipe.run.threads

    # What everything is measured by comes first: stage 2 decontaminates against the registry, and each grader's error
    # rates are known before any of them rewards or judges.
    registry = s6.registry(recipe.evaluation)
    graders = s6.graders(recipe.evaluation)

    raw = s1.raw_data(recipe.raw_data)

    corpus = s2.corpus(recipe.data, raw, registry)
    tokenizer = s2.tokenizer(recipe.data, corpus)
    learned = previous.traffic(registry) if previous else {}
    mixture = previous.get(f"evals_to_pretraining_{turn - 1}") if previous else None
    shards = s2.shards(recipe.data, corpus, tokenizer, traffic=learned, mixture=mixture)

    muon, weights = recipe.pretraining.muon, recipe.pretraining.weight_precision
    ladder = s3.ladder(recipe.system, shards, tokenizer, run.seed, threads, muon=muon)
    plan = s3.plan(recipe.system, ladder, shards, tokenizer, run.seed, muon=muon, weight_precision=weights)

    base = s4.base_model(recipe.pretraining, plan, shards, tokenizer, run.seed, threads)

    if recipe.ablations:
        arms = ablations.arms(recipe.ablations, recipe.posttraining, recipe.evaluation, base, registry, threads)
        return [registry, raw, corpus, tokenizer, shards, ladder, plan, base, *arms]

    tasks = s5.tasks(recipe.posttraining, run.seed)
    cold_start = s5.cold_start(recipe.posttraining, base, tasks, run.seed, threads)
    reasoning = s5.reasoning_rl(recipe.posttraining, cold_start, tasks, run.seed, threads)
    rounds = s5.rounds(recipe.posttraining, reasoning, tasks, run.seed, threads)
    rejection, aligned = rounds[-1]

    demonstrations = s7.agent_demonstrations(recipe.harness, tokenizer, run.seed)
    agent_start = s7.agent_cold_start(recipe.harness, aligned, demonstrations, rejection, tasks, run.seed, threads)
    agent = s7.agent_rl(recipe.harness, agent_start, run.seed, threads)
    agent_results = s7.agent_evaluation(
        recipe.harness, {"agent_cold_start": agent_start, "agent_rl": agent}, run.seed, threads
    )

    teacher_traces = s8.teacher_traces(recipe.distillation, aligned, tasks, run.seed, threads)
    student_base = s8.student_base(recipe.distillation, aligned, plan, shards, run.seed, threads)
    student = s8.student(recipe.distillation, "distilled", student_base, teacher_traces, tasks, run.seed, threads)
    control = s8.student(recipe.distillation, "control", student_base, teacher_traces, tasks, run.seed, threads)

    quantised = s9.quantised(recipe.deployment, aligned)

    models = {
        "cold_start": cold_start,
        "reasoning_rl": reasoning,
        "rejection_sft": rejection,
        "alignment_rl": aligned,
        "agent_rl": agent,
        "student": student,
        "student_control": control,
        "quantised": quantised,
    }

    return [
        *(registry, graders, raw, corpus, tokenizer),
        *(documents for documents in learned.values() if isinstance(documents, Step)),
        *(shards, ladder, plan, base),
        *(tasks, cold_start, reasoning, *(step for pair in rounds for step in pair)),
        *(demonstrations, agent_start, agent, agent_results),
        *(teacher_traces, student_base, student, control, quantised),
        *_judge_and_release(recipe, turn, models, agent_results, registry, shards, previous),
    ]


def _open_model(recipe: OpenModelRecipe, turn: int) -> list[Step]:
    """An open model instead of stages 1 to 4; then the same post-training, evaluation and release, on its own tasks."""
    if turn > 1:
        raise StoreError("a recipe with [open_model] has one turn: no data of its own is there for traffic to join")
    model = open_model_source.imported(recipe.open_model)
    tasks, grader = open_model_tasks.gym(recipe.tasks)
    sections = (recipe.grpo, recipe.evaluation, recipe.release)
    return open_model.journey(model, tasks, *sections, grader, recipe.run.seed, recipe.run.threads)


def _judge_and_release(
    recipe: Recipe,
    turn: int,
    models: Mapping[str, Step],
    agent_results: Step,
    registry: Step,
    shards: Step,
    previous: _Previous | None,
) -> list[Step]:
    """Evaluate every model, decide on a release, serve it; its traffic and evaluations prepare the next turn."""
    numerics = Numerics(threads=recipe.run.threads)
    evaluations = {
        name: s6.evaluate(recipe.evaluation, model, registry, name, numerics) for name, model in models.items()
    }
    chain = ("cold_start", "reasoning_rl", "rejection_sft", "alignment_rl")
    comparison = s6.compare(recipe.evaluation, {name: evaluations[name] for name in chain})
    students = s6.compare(
        recipe.evaluation, {name: evaluations[name] for name in ("student_control", "student")}, "compare_students"
    )

    incumbent = previous.incumbent() if previous else None
    incumbent_evaluation = (
        s6.evaluate(recipe.evaluation, incumbent, registry, "incumbent", numerics) if incumbent else None
    )
    offered = ("rejection_sft", "alignment_rl", "agent_rl", "quantised", "student")
    candidates = s9.candidates(
        recipe.deployment,
        {name: models[name] for name in offered},
        {name: evaluations[name] for name in offered},
        agents={"agent_rl": agent_results},
        incumbent=incumbent,
        incumbent_evaluation=incumbent_evaluation,
    )
    verdict = s9.verdict(recipe.deployment, candidates)
    release = s9.release(recipe.deployment, verdict, {name: models[name] for name in offered}, incumbent)

    traffic = s9.traffic(recipe.deployment, release, numerics)
    next_traffic = traffic_to_data(TrafficRule(), traffic, registry, turn)
    teaches = {f"synthetic_{family}": (family,) for family in recipe.raw_data.synthetic.families}
    next_mixture = evals_to_pretraining(MixtureRule(), verdict, {}, teaches, shards, turn)

    return [
        *(*evaluations.values(), comparison, students),
        *((incumbent_evaluation,) if incumbent_evaluation else ()),
        *(candidates, verdict, release, traffic, next_traffic, next_mixture),
    ]


class _Previous:
    """The finished turn before this one, whose artifacts this one starts from."""

    def __init__(self, recipe: Recipe, turn: int, store: Store) -> None:
        self._steps = {step.name: step for step in build(recipe, turn - 1, store)}
        self._store, self._turn = store, turn - 1

    def get(self, name: str) -> Artifact:
        found = self._store.get(self._steps[name].key)
        if found is None:
            raise StoreError(
                f"with this recipe and these --set, turn {self._turn} has not made {name} yet: "
                f"`noria plan RECIPE --turn {self._turn}` says what differs from what it made, `noria run` makes it"
            )
        return found

    def incumbent(self) -> Artifact | None:
        """What the next candidates must beat: that turn's release, unless it is a mere preview of what was rejected."""
        release = self.get("release")
        return release if s9.holds_a_release(release) else None

    def traffic(self, registry: Step) -> dict[str, Step | Artifact]:
        """What loop A made of that turn's traffic, and, where `noria run --traffic` brought one, of a live log."""
        made: dict[str, Step | Artifact] = {"traffic": self.get(f"traffic_to_data_{self._turn}")}
        if live := self._store.alias(s9.live_traffic_alias(self._turn)):
            made["live_traffic"] = traffic_to_data(TrafficRule(), live, registry, self._turn, "live_traffic_to_data")
        return made
