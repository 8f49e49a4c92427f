"""From a budget in FLOPs to what to train: the shape, the tokens, the batch, the learning rate, the schedule.

Every rule is a pure function with its derivation and source beside it. Machine speed appears only in
`forecast_seconds`, which nothing that enters a key may call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from noria.model.config import ModelConfig


class BudgetError(ValueError):
    """What was asked for contradicts the budget or a serving limit; the message says what to change."""


@dataclass(frozen=True)
class ShapeFamily:
    """Models that differ in width alone; everything else follows from it, so that a ladder extrapolates one curve."""

    vocab_size: int
    context: int
    head_width: int = 32
    width_per_layer: int = 64
    ffn_multiple: int = 4
    query_heads_per_kv_head: int = 2

    def at(self, width: int) -> ModelConfig:
        """The shape at `width`, a multiple of `head_width`; at least two layers, depth in proportion to width.

        A constant width per layer of about 64 is where loss is flat from 100M parameters to 175B (arXiv 2001.08361,
        figure 5; nanochat uses 64); tiny models are deeper for their width. Query heads share a key/value head in pairs
        where their number is even, and all share one where it is odd.
        """
        if width % self.head_width:
            raise BudgetError(f"width {width} is not a multiple of the head width {self.head_width}")
        heads = width // self.head_width
        kv_heads = heads // self.query_heads_per_kv_head if heads % self.query_heads_per_kv_head == 0 else 1
        return ModelConfig(
            vocab_size=self.vocab_size,
            width=width,
            layers=max(2, round(width / self.width_per_layer)),
            heads=heads,
            kv_heads=kv_heads,
            ffn_width=self.ffn_multiple * width,
            context=self.context,
        )

    def shapes(self, minimum_parameters: int, maximum_parameters: int) -> list[ModelConfig]:
        """Every shape of the family whose `parameters()` lie within the limits, smallest first."""
        found, width = [], self.head_width
        while (shape := self.at(width)).parameters() <= maximum_parameters:
            if shape.parameters() >= minimum_parameters:
                found.append(shape)
            # Steps of at most 1/16 of the width: the loss is flat around the optimum, and a huge family stays short.
            width += self.head_width * max(1, width // (16 * self.head_width))
        return found


@dataclass(frozen=True)
class Choice:
    """A shape and the tokens that the budget buys for it, with the loss expected of them."""

    model: ModelConfig
    tokens: int
    loss: float


def tokens_within(flops: float, model: ModelConfig, serving_tokens: float = 0.0) -> int:
    """Training tokens that `flops` buy for `model` once the serving of `serving_tokens` is paid.

    A served token costs a forward pass, a third of a training token's forward and backward (arXiv 2401.00448 counts 2N
    against 6N): tokens = (flops - serving * per_token / 3) / per_token.
    """
    per_token = model.flops_per_token()
    return max(0, int((flops - serving_tokens * per_token / 3.0) / per_token))


def choose(
    expected_loss: Callable[[float, float], float],
    shapes: Iterable[ModelConfig],
    flops: float,
    most_tokens: float = math.inf,
    serving_tokens: float = 0.0,
) -> Choice:
    """The shape with the lowest `expected_loss(matmul_parameters, tokens)` that the budget buys; ties go to the small.

    A search over real shapes rather than the closed form: limits, attention FLOPs, the head and the step between widths
    are then exact. Without limits it agrees with `Law.optimal_parameters` to a step of the family (tests/planning).
    `most_tokens` caps D at what the data offer; with more serving, the optimum moves to smaller models trained longer.
    """
    best: Choice | None = None
    for shape in shapes:
        tokens = int(min(tokens_within(flops, shape, serving_tokens), most_tokens))
        if tokens < shape.context:
            continue
        loss = expected_loss(shape.matmul_parameters(), tokens)
        if best is None or loss < best.loss:
            best = Choice(shape, tokens, loss)
    if best is None:
        raise BudgetError(
            f"a budget of {flops:.3g} FLOPs buys no shape within the limits: raise the budget (system.flops), "
            f"lower system.min_parameters, or widen the limits so that a shape lies between them"
        )
    return best


# With fewer than a few hundred steps the learning rate, not the data, limits the loss.
FEWEST_STEPS = 320

# nanochat's anchor: 2^19 tokens a batch for about 1.2e9 training tokens (its depth-12 reference run).
REFERENCE_BATCH_TOKENS, REFERENCE_TRAIN_TOKENS = 2**19, 1.2e9


def batch_tokens(train_tokens: float, sequence_length: int, fewest_steps: int = FEWEST_STEPS) -> int:
    """Tokens a step: the critical batch grows as D^0.383 (arXiv 2505.13738), but a run keeps `fewest_steps` steps.

    The law was fitted on dense models up to 1.2B and far more tokens; at a few million tokens it would leave some 50
    steps, so the second limit decides there. Rounded down to a power of two of rows.
    """
    critical = REFERENCE_BATCH_TOKENS * (train_tokens / REFERENCE_TRAIN_TOKENS) ** 0.383
    rows = min(critical, train_tokens / fewest_steps) / sequence_length
    return sequence_length * 2 ** max(0, math.floor(math.log2(max(rows, 1.0))))


@dataclass(frozen=True)
class MeasuredRate:
    """The best rate of a sweep, and where it was found: tokens a step, model width, tokens of the run."""

    rate: float
    batch_tokens: float
    width: int
    tokens: float


def learning_rate(measured: MeasuredRate, batch_tokens: float, width: int, tokens: float) -> float:
    """The rate for another batch, width and horizon: times sqrt(batch ratio) / width ratio / horizon ratio ** 0.32.

    Batch: for Adam-like updates of fixed size, gradient noise adds up as the root of the number of steps (arXiv
    2405.14578 finds the root below the critical batch). Width: muP's 1/m for hidden matrices (arXiv 2203.03466,
    2505.01618; an update of fixed root mean square, Muon's included, grows in spectral norm with the width). Measured
    with this optimiser at widths 32 and 96: best near 0.05 and 0.015. Caveat: the embedding shares the rate, where
    muP keeps it. Horizon: the best rate falls as D ** -0.32 (arXiv 2409.19913, found with Adam at billions of tokens
    and assumed here); a sweep is short, and without this it hands its high rate on to the long run.
    Rounded to two digits, so that noise in the last bits of a measurement cannot change what is built from it.
    """
    noise = math.sqrt(batch_tokens / measured.batch_tokens)
    horizon = (tokens / measured.tokens) ** -0.32
    return round_to(measured.rate * noise * horizon * measured.width / width, 2)


def best_rate(rates_and_losses: Iterable[tuple[float, float]]) -> float:
    """The rate at the lowest loss: the vertex of a parabola in log rate through the best three, kept within them.

    At the edge of the sweep, or where the three do not bend upwards, the best measured rate itself.
    """
    pairs = sorted((math.log(rate), loss) for rate, loss in rates_and_losses if math.isfinite(loss))
    if not pairs:
        raise BudgetError("every rate of the sweep diverged: lower system.rate_sweep")
    lowest = min(range(len(pairs)), key=lambda index: pairs[index][1])
    if lowest in (0, len(pairs) - 1):
        return round_to(math.exp(pairs[lowest][0]), 2)
    (x0, y0), (x1, y1), (x2, y2) = pairs[lowest - 1 : lowest + 2]
    bend = (x0 - x1) * (x0 - x2) * (x1 - x2)
    curvature = (x2 * (y1 - y0) + x1 * (y0 - y2) + x0 * (y2 - y1)) / bend
    slope = (x2 * x2 * (y0 - y1) + x1 * x1 * (y2 - y0) + x0 * x0 * (y1 - y2)) / bend
    vertex = -slope / (2 * curvature) if curvature > 0 else x1
    return round_to(math.exp(min(max(vertex, x0), x2)), 2)


@dataclass(frozen=True)
class Schedule:
    """Warm-up, a constant rate, then linear decay to `final_share` of it (WSD, arXiv 2404.06395), in tokens."""

    warmup_tokens: int
    decay_tokens: int
    final_share: float = 0.0


def schedule(train_tokens: int, parameters: int, decay_share: float) -> Schedule:
    """Warm-up of one token a parameter but at most 5% of the run; linear decay to zero over the last `decay_share`.

    For a fixed horizon decay over most of the run is best (to zero at 80 tokens a parameter matched a tenth at 200,
    arXiv 2502.15938); a ladder of branches uses a small share, and what is to be predicted from it must use the same.
    """
    return Schedule(min(parameters, train_tokens // 20), int(decay_share * train_tokens))


def forecast_seconds(flops: float, flops_per_second: float) -> float:
    """How long `flops` take at a measured speed. Observed only: never part of a key or of content."""
    if flops_per_second <= 0:
        raise BudgetError(f"a machine's speed must be positive; got {flops_per_second} FLOP/s")
    return flops / flops_per_second


def round_to(value: float, digits: int) -> float:
    """`value` to `digits` significant decimal digits."""
    if value == 0 or not math.isfinite(value):
        return value
    return round(value, digits - 1 - math.floor(math.log10(abs(value))))
