"""Learning-rate schedules by name, computed on the host for many steps at once.

A schedule maps the time since the end of the warm-up to a factor on the peak learning rate. Its
keyword-only parameters are its options; what counts time counts it in epochs.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Literal, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from resnet_jax.config.checks import Bounds, NonNegative, Positive, Share, check_options
from resnet_jax.errors import UserError, unknown


class Clock(NamedTuple):
    """How long a schedule lasts and how finely it moves.

    Attributes:
      num_epochs: epochs of training after the warm-up.
      tick: epochs between two changes of the learning rate: one step's share, or 1.
    """

    num_epochs: float
    tick: float


def constant(epoch: np.ndarray, clock: Clock) -> np.ndarray:
    """Keeps the peak."""
    return np.ones_like(epoch)


def cosine(
    epoch: np.ndarray, clock: Clock, *, num_epochs: NonNegative = 0.0, final_factor: Share = 0.0
) -> np.ndarray:
    """Falls along half a cosine (Loshchilov and Hutter 2017, "SGDR").

    Args:
      epoch: epochs since the warm-up, float64 `[steps]`.
      clock: length and resolution of the training.
      num_epochs: epochs until the end of the fall, PyTorch's `T_max`; 0: all. A training that ends
        earlier stops in mid-fall.
      final_factor: factor at the end and after it.
    """
    progress = np.minimum(epoch / (num_epochs or clock.num_epochs), 1.0)
    return final_factor + (1 - final_factor) * 0.5 * (1 + np.cos(np.pi * progress))


def polynomial(
    epoch: np.ndarray,
    clock: Clock,
    *,
    num_epochs: NonNegative = 0.0,
    power: Positive = 1.0,
    final_factor: Share = 0.0,
) -> np.ndarray:
    """Falls as a power of the time that is left; with power 1, in a straight line.

    Args:
      epoch: epochs since the warm-up, float64 `[steps]`.
      clock: length and resolution of the training.
      num_epochs: epochs until the end of the fall; 0: all.
      power: exponent of the share of time that is left.
      final_factor: factor at the end and after it.
    """
    left = 1.0 - np.minimum(epoch / (num_epochs or clock.num_epochs), 1.0)
    return final_factor + (1 - final_factor) * left**power


def step(
    epoch: np.ndarray, clock: Clock, *, every_epochs: Positive, factor: Positive = 0.1
) -> np.ndarray:
    """Multiplies by `factor` every `every_epochs` epochs."""
    return factor ** np.floor(epoch / every_epochs + 1e-9)


def milestones(
    epoch: np.ndarray, clock: Clock, *, epochs: tuple[NonNegative, ...], factor: Positive = 0.1
) -> np.ndarray:
    """Multiplies by `factor` at each of the `epochs`."""
    return factor ** np.searchsorted(np.sort(epochs), epoch + 1e-9, side="right")


def exponential(epoch: np.ndarray, clock: Clock, *, factor: Positive) -> np.ndarray:
    """Multiplies by `factor` in the course of every epoch."""
    return factor**epoch


def one_cycle(
    epoch: np.ndarray,
    clock: Clock,
    *,
    peak_fraction: Share = 0.3,
    initial_factor: Share = 0.04,
    final_factor: Share = 4e-6,
    anneal: Literal["cosine", "linear"] = "cosine",
) -> np.ndarray:
    """Rises to the peak and falls to almost nothing (Smith and Topin 2018, "Super-Convergence").

    The last step has the final factor, and the defaults are those of PyTorch's `OneCycleLR`.

    Args:
      epoch: epochs since the warm-up, float64 `[steps]`.
      clock: length and resolution of the training.
      peak_fraction: share of the training before the peak.
      initial_factor: factor of the first step.
      final_factor: factor of the last step.
      anneal: shape of both slopes.
    """
    end = clock.num_epochs - clock.tick
    peak = np.clip(peak_fraction * clock.num_epochs - clock.tick, 0.0, end)
    rise = np.clip(epoch / peak, 0.0, 1.0) if peak > 0 else np.ones_like(epoch)
    fall = np.clip((epoch - peak) / (end - peak), 0.0, 1.0) if end > peak else np.zeros_like(epoch)
    if anneal == "cosine":
        rise, fall = ((1 - np.cos(np.pi * progress)) / 2 for progress in (rise, fall))
    rising = initial_factor + (1 - initial_factor) * rise
    return np.where(epoch <= peak, rising, 1 + (final_factor - 1) * fall)


def plateau_factor(
    scores: Sequence[float],
    *,
    factor: Annotated[float, Bounds(above=0, below=1)] = 0.1,
    patience: Annotated[int, Bounds(low=0)] = 10,
    threshold: NonNegative = 1e-4,
    cooldown: Annotated[int, Bounds(low=0)] = 0,
    min_factor: Share = 0.0,
) -> float:
    """Returns the factor that reduce-on-plateau has reached after a history of scores.

    It is a function of the whole history, so that a resumed run needs no state for it. The rule
    is that of PyTorch's `ReduceLROnPlateau(mode="max")`.

    Args:
      scores: the scores so far, oldest first; higher is better.
      factor: factor on the learning rate at each reduction.
      patience: scores without progress that are borne before a reduction.
      threshold: relative gain on the best score that counts as progress.
      cooldown: scores after a reduction in which lack of progress is not counted.
      min_factor: smallest factor.
    """
    best, waited, cooling, reached = -np.inf, 0, 0, 1.0
    for score in scores:
        if score > best * (1 + threshold):
            best, waited = score, 0
        else:
            waited += 1
        if cooling > 0:
            cooling, waited = cooling - 1, 0
        if waited > patience:
            reached, cooling, waited = max(reached * factor, min_factor), cooldown, 0
    return reached


SCHEDULES: dict[str, Callable[..., np.ndarray]] = {
    "constant": constant,
    "cosine": cosine,
    "exponential": exponential,
    "milestones": milestones,
    "one_cycle": one_cycle,
    # Its scores are known to the train loop alone, which multiplies by `plateau_factor`.
    "plateau": constant,
    "polynomial": polynomial,
    "step": step,
}


def options_of(name: str) -> Callable[..., object]:
    """Returns the function whose keyword arguments are the options of a schedule."""
    return plateau_factor if name == "plateau" else SCHEDULES[name]


def learning_rates(config: ConfigDict, num_epochs: int, steps_per_epoch: int) -> np.ndarray:
    """Returns the learning rate of every step, float32 `[num_epochs * steps_per_epoch]`.

    Args:
      config: the whole config.
      num_epochs: epochs of the training, warm-up included.
      steps_per_epoch: training steps in an epoch.

    Raises:
      UserError: if the schedule is unknown, or its options or the warm-up don't suit it.
    """
    peak, config = config.optimizer.learning_rate, config.schedule
    if config.name not in SCHEDULES:
        raise unknown("schedule", config.name, SCHEDULES)
    warmup, per_epoch = config.warmup_epochs, config.per == "epoch"
    if 0 < num_epochs <= warmup:
        raise UserError(
            f"schedule.warmup_epochs is {warmup:g} of num_epochs {num_epochs:g}; lower it, or "
            "raise num_epochs"
        )
    options = check_options("schedule", config.name, options_of(config.name), config.options)
    options = {} if config.name == "plateau" else options
    clock = Clock(max(num_epochs - warmup, 0.0), 1.0 if per_epoch else 1.0 / steps_per_epoch)
    steps = np.arange(num_epochs * steps_per_epoch)
    now = steps // steps_per_epoch if per_epoch else steps / steps_per_epoch
    # Never quite zero: the first step must count, and the first one after the warm-up is the first
    # with the full rate.
    warming = (steps + 1) / (warmup * steps_per_epoch + 1)
    with np.errstate(over="ignore", invalid="ignore"):
        factors = SCHEDULES[config.name](np.maximum(now - warmup, 0.0), clock, **options)
        factors = np.where(steps < warmup * steps_per_epoch, warming, factors)
        rates = (peak * factors).astype(np.float32)
    if not np.isfinite(rates).all():
        raise UserError(
            f"schedule {config.name!r} raises the learning rate beyond all numbers; change its "
            "options, or lower optimizer.learning_rate"
        )
    return rates
