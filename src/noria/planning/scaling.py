"""How loss falls with parameters and tokens: L(N, D) = E + A / N^alpha + B / D^beta, fitted to a ladder of small runs.

The form and the robust fit are Chinchilla's third approach (Hoffmann et al., arXiv 2203.15556, section 3.3). N counts
the transformer's matrices and the output head, without the embedding table: of the ways to count, this one kept the
optimal tokens-per-parameter ratio steadiest at small sizes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

# Residuals of log loss beyond this count linearly, not squared (arXiv 2203.15556, appendix D.2 uses the same value).
HUBER_DELTA = 1e-3

# Published fits lie at alpha 0.34, beta 0.28 (Chinchilla) to about 0.5 each; tiny, badly trained ladders can suggest
# less or more. Outside these bounds a power law is a constant or a step, and an extrapolation from it is worthless.
EXPONENT_BOUNDS = (0.05, 1.5)

# Five numbers are fitted: with fewer than six points nothing is left to tell how good the fit is.
FEWEST_POINTS = 6


@dataclass(frozen=True)
class Point:
    """One run of the ladder: `parameters` (see module), `tokens` trained on, held-out `loss` in nats a token."""

    parameters: float
    tokens: float
    loss: float


@dataclass(frozen=True)
class Law:
    """L(N, D) = E + A / N^alpha + B / D^beta, in nats a token."""

    E: float
    A: float
    alpha: float
    B: float
    beta: float

    def loss(self, parameters: float, tokens: float) -> float:
        return float(self.E + self.A * parameters**-self.alpha + self.B * tokens**-self.beta)

    def optimal_parameters(self, flops: float, flops_per_parameter_token: float = 6.0) -> float:
        """The N that minimises `loss` where flops = 6 N D: N = G (C/6)^(b/(a+b)), G = (aA/bB)^(1/(a+b)); equation 4."""
        product = flops / flops_per_parameter_token
        total = self.alpha + self.beta
        scale = (self.alpha * self.A / (self.beta * self.B)) ** (1.0 / total)
        return float(scale * product ** (self.beta / total))


@dataclass(frozen=True)
class Fit:
    """A law, the laws refitted to resampled points (its uncertainty), and how one run differs from another like it."""

    law: Law
    resampled: tuple[Law, ...]
    noise: tuple[float, ...]  # of log loss: `run_noise`
    heldout: HeldoutError
    reach: tuple[float, float]  # the largest N and the largest D of the points


@dataclass(frozen=True)
class HeldoutError:
    """Worst relative error on points that a fit did not see, and how far (in log N + log D) they lay beyond it."""

    error: float
    distance: float


def fit_law(points: Sequence[Point], starts: int = 8) -> Law:
    """The law with the smallest Huber loss on log loss, from the best `starts` of a grid of exponents.

    For fixed exponents the law is linear in E, A and B, so each grid point starts at its non-negative least squares.
    Raises ValueError for too few points, a single size or horizon, or a loss that is not positive and finite.
    """
    n_P, d_P, loss_P = _columns(points)
    ranked = sorted((_linear_start(n_P, d_P, loss_P, a, b) for a in _GRID for b in _GRID), key=lambda start: start[0])
    fits = [_polish(start, n_P, d_P, loss_P) for _, start in ranked[:starts]]
    return _law(min(fits, key=lambda fit: fit[0])[1], n_P, d_P)


def fit_with_uncertainty(points: Sequence[Point], samples: int = 200, seed: int = 0) -> Fit:
    """`fit_law`, with `samples` refits to fitted losses plus resampled residuals, and the error on a held-out point.

    Residuals are resampled rather than points: a ladder is a designed grid of few points, and leaving out whole points
    leaves exponents that nothing determines (Efron and Tibshirani 1993, section 9.5).
    """
    law = fit_law(points)
    n_P, d_P, loss_P = _columns(points)
    fitted_P = np.array([law.loss(n, d) for n, d in zip(n_P, d_P, strict=True)])
    residual_P = np.log(loss_P) - np.log(fitted_P)
    free = max(len(points) - 5, 1)
    residual_P = (residual_P - residual_P.mean()) * np.sqrt(len(points) / free)
    rng = np.random.default_rng(seed)
    start = _start_of(law, n_P, d_P)
    resampled = []
    for _ in range(samples):
        noisy_P = fitted_P * np.exp(rng.choice(residual_P, size=len(points)))
        resampled.append(_law(_polish(start, n_P, d_P, noisy_P)[1], n_P, d_P))
    noise = run_noise(points) or tuple(float(r) for r in residual_P)
    return Fit(law, tuple(resampled), noise, heldout_error(points), (n_P.max(), d_P.max()))


def run_noise(points: Sequence[Point]) -> tuple[float, ...]:
    """By how much log losses of runs to the longest horizon differ from the mean of their repeats; () without repeats.

    Scaled up for the degree of freedom that a mean takes. Shorter runs are left out: while skills are learnt, losses
    differ more between seeds than they do in the end.
    """
    longest = max(point.tokens for point in points)
    repeats: dict[float, list[float]] = {}
    for point in points:
        if point.tokens == longest:
            repeats.setdefault(point.parameters, []).append(float(np.log(point.loss)))
    return tuple(
        (loss - float(np.mean(losses))) * float(np.sqrt(len(losses) / (len(losses) - 1)))
        for losses in repeats.values()
        if len(losses) > 1
        for loss in losses
    )


def heldout_error(points: Sequence[Point]) -> HeldoutError:
    """The error of predictions whose outcome is known: one like that of the run where the ladder has one, else each
    size's longest horizon from all shorter ones.

    Residuals of fitted points cannot show that the form is wrong beyond them; this can. Where the shorter ones are too
    few to fit, the worst residual of the full fit stands in, as if it were made at a doubling.
    """
    longest = {
        n: max(point.tokens for point in points if point.parameters == n) for n in {p.parameters for p in points}
    }
    if rehearsed := _rehearsal(points, longest):
        return rehearsed
    judged = [point for point in points if point.tokens == longest[point.parameters]]
    shorter = [point for point in points if point.tokens < longest[point.parameters]]
    try:
        law = fit_law(shorter)
    except ValueError:
        law, judged, distance = fit_law(points), list(points), float(np.log(2.0))
    else:
        seen = {n: max(p.tokens for p in shorter if p.parameters == n) for n in {p.parameters for p in shorter}}
        distance = float(np.mean([np.log(longest[n] / seen[n]) for n in seen]))
    worst = max(abs(law.loss(point.parameters, point.tokens) - point.loss) / point.loss for point in judged)
    return HeldoutError(worst, distance)


def _rehearsal(points: Sequence[Point], longest: Mapping[float, float]) -> HeldoutError | None:
    """The run's own prediction, one size down: where every size but the largest reaches the longest horizon, the last
    of these stands for the run. It is shown only as far as the largest got, and the largest not at all."""
    *smaller, stopped, largest = sorted(longest)
    furthest, shown = max(longest.values()), longest[largest]
    if not smaller or shown == furthest or any(longest[n] < furthest for n in (*smaller, stopped)):
        return None
    seen = [p for p in points if p.parameters in smaller or (p.parameters == stopped and p.tokens <= shown)]
    try:
        law = fit_law(seen)
    except ValueError:
        return None
    loss = float(np.mean([p.loss for p in points if p.parameters == stopped and p.tokens == furthest]))
    return HeldoutError(abs(law.loss(stopped, furthest) - loss) / loss, float(np.log(furthest / shown)))


def predict(fit: Fit, parameters: float, tokens: float, level: float = 0.95) -> tuple[float, float, float]:
    """(loss, low, high) expected at N, D. The interval is that of a new run, not of the curve.

    It holds the spread of the refitted laws, each with the noise of one run added (`run_noise`; without repeats one of
    the fit's residuals, centred and scaled up for the degrees of freedom that it used), and is never narrower than the
    error made on held-out points, taken to grow in proportion to the distance in log N + log D: what bends away from
    the form bends further away further out.
    """
    mean = fit.law.loss(parameters, tokens)
    laws = fit.resampled or (fit.law,)
    draws = np.array([law.loss(parameters, tokens) * np.exp(noise) for law in laws for noise in (fit.noise or (0.0,))])
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    distance = max(0.0, np.log(parameters / fit.reach[0])) + max(0.0, np.log(tokens / fit.reach[1]))
    margin = min(0.5, fit.heldout.error * max(1.0, distance / fit.heldout.distance))
    return mean, min(float(low), float(mean * (1 - margin))), max(float(high), float(mean * (1 + margin)))


def intervals(fit: Fit, level: float = 0.95) -> dict[str, tuple[float, float]]:
    """The bootstrap interval of each of the law's numbers."""
    low, high = (1 - level) / 2, (1 + level) / 2
    names = ("E", "A", "alpha", "B", "beta")
    return {
        name: tuple(float(q) for q in np.quantile([getattr(law, name) for law in fit.resampled], [low, high]))  # type: ignore[misc]
        for name in names
    }


_GRID = (0.1, 0.2, 0.3, 0.4, 0.55, 0.75, 1.0)


def _columns(points: Sequence[Point]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    n_P = np.array([point.parameters for point in points], dtype=float)
    d_P = np.array([point.tokens for point in points], dtype=float)
    loss_P = np.array([point.loss for point in points], dtype=float)
    different = len(set(zip(n_P, d_P, strict=True)))
    if different < FEWEST_POINTS:
        raise ValueError(f"a law of five numbers needs at least {FEWEST_POINTS} points; got {different}")
    for name, values in (("parameters", n_P), ("tokens", d_P), ("loss", loss_P)):
        if not (np.isfinite(values).all() and (values > 0).all()):
            raise ValueError(f"every {name} of the ladder must be positive and finite; got {values.tolist()}")
    if len(set(n_P)) < 2 or len(set(d_P)) < 2:
        raise ValueError("the ladder needs at least two model sizes and two token horizons to tell N from D")
    return n_P, d_P, loss_P


def _scaled(n_P: np.ndarray, d_P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log N and log D about their means, so that A and B are losses at the ladder's centre."""
    return np.log(n_P) - np.log(n_P).mean(), np.log(d_P) - np.log(d_P).mean()


def _linear_start(
    n_P: np.ndarray, d_P: np.ndarray, loss_P: np.ndarray, alpha: float, beta: float
) -> tuple[float, np.ndarray]:
    from scipy.optimize import nnls

    x_P, y_P = _scaled(n_P, d_P)
    design_P3 = np.stack([np.ones_like(x_P), np.exp(-alpha * x_P), np.exp(-beta * y_P)], axis=1) / loss_P[:, None]
    linear, error = nnls(design_P3, np.ones_like(loss_P))
    e, a, b = np.maximum(linear, 1e-6)
    return float(error), np.array([np.log(e), np.log(a), alpha, np.log(b), beta])


def _polish(start: np.ndarray, n_P: np.ndarray, d_P: np.ndarray, loss_P: np.ndarray) -> tuple[float, np.ndarray]:
    """(cost, parameters) where the parameters are (log E, log A', alpha, log B', beta) in the scaled coordinates."""
    from scipy.optimize import least_squares

    x_P, y_P = _scaled(n_P, d_P)
    target_P = np.log(loss_P)

    def residuals(theta: np.ndarray) -> np.ndarray:
        return np.log(np.exp(_terms(theta, x_P, y_P)).sum(axis=0)) - target_P

    def jacobian(theta: np.ndarray) -> np.ndarray:
        parts_3P = np.exp(_terms(theta, x_P, y_P))
        share_3P = parts_3P / parts_3P.sum(axis=0)
        return np.stack([share_3P[0], share_3P[1], -x_P * share_3P[1], share_3P[2], -y_P * share_3P[2]], axis=1)

    low, high = EXPONENT_BOUNDS
    bounds = ([-20, -20, low, -20, low], [20, 20, high, 20, high])
    fit = least_squares(
        residuals, np.clip(start, *bounds), jac=jacobian, bounds=bounds, loss="huber", f_scale=HUBER_DELTA, max_nfev=100
    )
    return float(fit.cost), fit.x


def _terms(theta: np.ndarray, x_P: np.ndarray, y_P: np.ndarray) -> np.ndarray:
    log_e, log_a, alpha, log_b, beta = theta
    return np.stack([np.full_like(x_P, log_e), log_a - alpha * x_P, log_b - beta * y_P])


def _law(theta: np.ndarray, n_P: np.ndarray, d_P: np.ndarray) -> Law:
    """Back from scaled coordinates: A = A' exp(alpha mean(log N)), B = B' exp(beta mean(log D))."""
    log_e, log_a, alpha, log_b, beta = (float(value) for value in theta)
    return Law(
        E=float(np.exp(log_e)),
        A=float(np.exp(log_a + alpha * np.log(n_P).mean())),
        alpha=alpha,
        B=float(np.exp(log_b + beta * np.log(d_P).mean())),
        beta=beta,
    )


def _start_of(law: Law, n_P: np.ndarray, d_P: np.ndarray) -> np.ndarray:
    log_a = np.log(law.A) - law.alpha * np.log(n_P).mean()
    log_b = np.log(law.B) - law.beta * np.log(d_P).mean()
    return np.array([np.log(law.E), log_a, law.alpha, log_b, law.beta])
