"""Update rules: how each optimizer turns gradients into a direction, with PyTorch's numerics.

The learning rate, the weight decay and the sign are not theirs: see `training.optimizers`. The
keyword-only parameters of a rule are its options, with PyTorch's defaults where PyTorch has it.
Floats may be traced arrays; the constant zero switches a part off.
"""

import functools
import re
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from resnet_jax.config.checks import Bounds, Decay, NonNegative, Pattern, Positive
from resnet_jax.errors import UserError
from resnet_jax.trees import map_with_path


def sgd(
    *, momentum: Decay = 0.0, dampening: Decay = 0.0, nesterov: bool = False
) -> optax.GradientTransformation:
    """Stochastic gradient descent, with momentum as in PyTorch (Sutskever et al. 2013)."""
    if nesterov and (_is_off(momentum) or not _is_off(dampening)):
        raise UserError("option nesterov of optimizer 'sgd' needs momentum and no dampening")
    if _is_off(momentum):
        return optax.identity()
    # The first gradient fills the buffer undamped.
    damp = optax.scale_by_schedule(lambda count: jnp.where(count == 0, 1.0, 1.0 - dampening))
    trace = optax.trace(momentum, nesterov)
    return trace if _is_off(dampening) else optax.chain(damp, trace)


def rmsprop(
    *,
    alpha: Decay = 0.99,
    eps: NonNegative = 1e-8,
    momentum: Decay = 0.0,
    centered: bool = False,
) -> optax.GradientTransformation:
    """RMSprop (Hinton 2012; centred: Graves 2013), with eps outside the square root."""
    scale_by = optax.scale_by_stddev if centered else optax.scale_by_rms
    scale = scale_by(alpha, eps, eps_in_sqrt=False)
    return scale if _is_off(momentum) else optax.chain(scale, optax.trace(momentum))


def adagrad(
    *,
    learning_rate_decay: NonNegative = 0.0,
    initial_accumulator: NonNegative = 0.0,
    eps: NonNegative = 1e-10,
) -> optax.GradientTransformation:
    """Adagrad (Duchi et al. 2011), with eps outside the square root."""

    def init(params: optax.Params) -> optax.Updates:
        return jax.tree.map(lambda p: jnp.full_like(p, initial_accumulator), params)

    def update(
        grads: optax.Updates, sums: optax.Updates, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.Updates]:
        sums = jax.tree.map(lambda s, g: s + g * g, sums, grads)
        return jax.tree.map(lambda s, g: g / (jnp.sqrt(s) + eps), sums, grads), sums

    decay = optax.scale_by_schedule(lambda step: 1 / (1 + step * learning_rate_decay))
    return optax.chain(optax.GradientTransformation(init, update), decay)


def adadelta(*, rho: Decay = 0.9, eps: Positive = 1e-6) -> optax.GradientTransformation:
    """Adadelta (Zeiler 2012)."""
    return optax.scale_by_adadelta(rho, eps)


def adam(
    *, beta1: Decay = 0.9, beta2: Decay = 0.999, eps: NonNegative = 1e-8
) -> optax.GradientTransformation:
    """Adam (Kingma and Ba 2015); as `adamw` with decoupled weight decay."""
    return optax.scale_by_adam(beta1, beta2, eps)


def adamax(
    *, beta1: Decay = 0.9, beta2: Decay = 0.999, eps: NonNegative = 1e-8
) -> optax.GradientTransformation:
    """Adamax, Adam with the infinity norm (Kingma and Ba 2015, section 7.1)."""
    return optax.scale_by_adamax(beta1, beta2, eps)


def nadam(
    *,
    beta1: Decay = 0.9,
    beta2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    momentum_decay: NonNegative = 4e-3,
) -> optax.GradientTransformation:
    """NAdam, Adam with Nesterov momentum and its warm-up (Dozat 2016, algorithm 2)."""

    def momentum(step: jax.Array) -> jax.Array:
        return beta1 * (1 - 0.5 * 0.96 ** (step * momentum_decay))

    def init(params: optax.Params) -> _NadamState:
        mean, square = (jax.tree.map(jnp.zeros_like, params) for _ in range(2))
        return _NadamState(jnp.zeros([], jnp.int32), jnp.ones([], jnp.float32), mean, square)

    def update(
        grads: optax.Updates, state: _NadamState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, _NadamState]:
        step = state.step + 1
        now, following = momentum(step), momentum(step + 1)
        product = state.product * now
        mean = jax.tree.map(lambda m, g: m + (1 - beta1) * (g - m), state.mean, grads)
        square = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * g * g, state.square, grads)
        of_grad, of_mean = (1 - now) / (1 - product), following / (1 - product * following)
        direction = jax.tree.map(
            lambda g, m, v: (of_grad * g + of_mean * m) / (jnp.sqrt(v / (1 - beta2**step)) + eps),
            *(grads, mean, square),
        )
        return direction, _NadamState(step, product, mean, square)

    return optax.GradientTransformation(init, update)


def radam(
    *, beta1: Decay = 0.9, beta2: Decay = 0.999, eps: NonNegative = 1e-8
) -> optax.GradientTransformation:
    """RAdam, Adam with a rectified warm-up (Liu et al. 2020)."""
    averages = optax.scale_by_adam(beta1, beta2, eps)

    def update(
        grads: optax.Updates, state: optax.ScaleByAdamState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.ScaleByAdamState]:
        _, state = averages.update(grads, state, params)
        step = state.count
        # rho is a small difference of large numbers: 1 - beta2**step has to be exact.
        correction = -jnp.expm1(step * jnp.log1p(-(1 - beta2)))
        longest = (1 + beta2) / (1 - beta2)
        rho = longest - 2 * step * (1 - correction) / correction
        rectifier = jnp.sqrt(
            jnp.maximum((rho - 4) * (rho - 2) * longest, 0) / ((longest - 4) * (longest - 2) * rho)
        )

        def direction(mean: jax.Array, square: jax.Array) -> jax.Array:
            # As in PyTorch, eps is added to the root of what is not corrected yet.
            scale = rectifier * jnp.sqrt(correction) / (jnp.sqrt(square) + eps)
            return mean / (1 - beta1**step) * jnp.where(rho > 5, scale, 1.0)

        return jax.tree.map(direction, state.mu, state.nu), state

    return optax.GradientTransformation(averages.init, update)


def lion(*, beta1: Decay = 0.9, beta2: Decay = 0.99) -> optax.GradientTransformation:
    """Lion, the sign of the momentum (Chen et al. 2023)."""
    return optax.scale_by_lion(beta1, beta2)


def lamb(
    *, beta1: Decay = 0.9, beta2: Decay = 0.999, eps: NonNegative = 1e-6
) -> optax.GradientTransformation:
    """LAMB (You et al. 2020), before the trust ratio, which follows the weight decay."""
    return optax.scale_by_adam(beta1, beta2, eps)


def muon(
    *,
    momentum: Decay = 0.95,
    nesterov: bool = True,
    newton_schulz_steps: Annotated[int, Bounds(1, 100)] = 5,
    coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315),
    pattern: Pattern = r"^(?!head/).*kernel$",
    beta1: Decay = 0.9,
    beta2: Decay = 0.999,
    eps: NonNegative = 1e-8,
) -> optax.GradientTransformation:
    """Muon: orthogonalised momentum for the hidden layers, Adam for the rest (Jordan 2024).

    A convolution kernel is taken as a matrix of one column for each output channel. The two parts
    want learning rates of their own: see `optimizer.learning_rate_factors`.

    Args:
      momentum: share of the momentum that is kept.
      nesterov: whether the gradient is added once more to the momentum.
      newton_schulz_steps: iterations of the orthogonalisation.
      coefficients: the three coefficients of its quintic polynomial.
      pattern: regular expression of the paths of the parameters to orthogonalise.
      beta1: Adam's decay of the mean.
      beta2: Adam's decay of the mean square.
      eps: Adam's guard against a division by zero.
    """

    def direction(update: jax.Array) -> jax.Array:
        matrix = update.reshape(-1, update.shape[-1])
        rows, columns = matrix.shape
        matrix = _orthogonalize(matrix, newton_schulz_steps, coefficients)
        return (max(1, columns / rows) ** 0.5 * matrix).reshape(update.shape)

    def label(path: str, param: jax.Array) -> str:
        return "muon" if param.ndim >= 2 and re.search(pattern, path) else "adam"

    orthogonalize = optax.stateless(lambda updates, params: jax.tree.map(direction, updates))
    rules = {
        "muon": optax.chain(optax.trace(momentum, nesterov), orthogonalize),
        "adam": adam(beta1=beta1, beta2=beta2, eps=eps),
    }
    return optax.partition(rules, functools.partial(map_with_path, label))


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adadelta": adadelta,
    "adagrad": adagrad,
    "adam": adam,
    "adamax": adamax,
    "adamw": adam,
    "lamb": lamb,
    "lion": lion,
    "muon": muon,
    "nadam": nadam,
    "radam": radam,
    "rmsprop": rmsprop,
    "sgd": sgd,
}


class _NadamState(NamedTuple):
    """State of NAdam: steps so far, product of momenta, mean and mean square of gradients."""

    step: jax.Array
    product: jax.Array
    mean: optax.Updates
    square: optax.Updates


def _is_off(value: Any) -> bool:
    """Returns whether a hyper-parameter is the constant zero, rather than an input."""
    return isinstance(value, float) and value == 0.0


def _orthogonalize(matrix: jax.Array, steps: int, coefficients: tuple[float, ...]) -> jax.Array:
    """Returns roughly the nearest semi-orthogonal matrix, by Newton-Schulz iterations."""
    a, b, c = coefficients
    rows, columns = matrix.shape
    x = matrix.T if rows > columns else matrix
    x = x / (jnp.linalg.norm(x) + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if rows > columns else x
