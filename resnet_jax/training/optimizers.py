"""Optimizers by name, as optax transformations.

An update rule turns gradients into a direction; around it comes what all optimizers share:
clipping, weight decay, learning-rate factors, the learning rate, freezing and accumulation.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from resnet_jax.config.checks import check_options
from resnet_jax.errors import UserError, unknown
from resnet_jax.training.update_rules import OPTIMIZERS
from resnet_jax.trees import map_with_path

# Optimizers that are defined with a weight decay beside the gradient.
DECOUPLED = frozenset({"adamw", "lamb", "lion", "muon"})

# Pairs of a pattern of parameter paths and a number for what it matches.
Factors = tuple[tuple[str, float], ...]


class OptimizerState(NamedTuple):
    """State of an optimizer whose float hyper-parameters are inputs of the compiled step.

    Attributes:
      hyperparams: float32 scalars by name, `learning_rate` and `weight_decay` among them.
      inner: state of the transformations that use them.
    """

    hyperparams: dict[str, jax.Array]
    inner: optax.OptState


def create_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """Returns an optimizer; its state holds the learning rate, see `set_learning_rate`.

    Args:
      config: the group `optimizer` of a config.

    Raises:
      UserError: if the optimizer is unknown or its options don't suit it, and from `init` if a
        pattern of parameter paths matches none.
    """
    if config.name not in OPTIMIZERS:
        raise unknown("optimizer", config.name, OPTIMIZERS)
    function = OPTIMIZERS[config.name]
    options = check_options("optimizer", config.name, function, config.options)
    # Zero switches a part off and so decides the structure of the state: it stays a constant.
    numbers = {k: v for k, v in options.items() if isinstance(v, float) and v}
    fixed = {k: v for k, v in options.items() if k not in numbers}
    hyperparams = numbers | {
        "learning_rate": config.learning_rate,
        "weight_decay": config.weight_decay,
    }
    if config.gradient_clip:
        hyperparams["gradient_clip"] = config.gradient_clip

    def build(values: dict[str, Any]) -> optax.GradientTransformation:
        direction = function(**fixed, **{k: values[k] for k in numbers})
        return _surround(direction, config, values)

    build(hyperparams)  # options that contradict each other are refused here
    inner = _inject(build, hyperparams)

    def init(params: optax.Params) -> optax.OptState:
        _check_patterns(config, params)
        return inner.init(params)

    tx = optax.GradientTransformation(init, inner.update)
    if config.accumulate_steps > 1:
        return optax.MultiSteps(tx, config.accumulate_steps).gradient_transformation()
    return tx


def set_learning_rate(opt_state: optax.OptState, learning_rate: jax.Array) -> optax.OptState:
    """Returns the state with another learning rate.

    Args:
      opt_state: a state of `create_optimizer`.
      learning_rate: the new learning rate, a float32 scalar.
    """
    if isinstance(opt_state, optax.MultiStepsState):
        inner = set_learning_rate(opt_state.inner_opt_state, learning_rate)
        return opt_state._replace(inner_opt_state=inner)
    assert isinstance(opt_state, OptimizerState)
    rate = jnp.asarray(learning_rate, jnp.float32)
    return opt_state._replace(hyperparams=opt_state.hyperparams | {"learning_rate": rate})


def _inject(
    build: Callable[[dict[str, Any]], optax.GradientTransformation], hyperparams: dict[str, float]
) -> optax.GradientTransformation:
    """Returns the transformation that `build` makes, with its numbers taken from the state."""

    def init(params: optax.Params) -> OptimizerState:
        values = {name: jnp.asarray(v, jnp.float32) for name, v in hyperparams.items()}
        return OptimizerState(values, build(values).init(params))

    def update(
        updates: optax.Updates, state: OptimizerState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, OptimizerState]:
        updates, inner = build(state.hyperparams).update(updates, state.inner, params)
        return updates, state._replace(inner=inner)

    return optax.GradientTransformation(init, update)


def _surround(
    direction: optax.GradientTransformation, config: ConfigDict, values: dict[str, Any]
) -> optax.GradientTransformation:
    """Returns `direction` with everything that all optimizers share."""
    decay = _add_weight_decay(values["weight_decay"], config.no_decay, config.weight_decay_factors)
    decoupled = config.decoupled_weight_decay or config.name in DECOUPLED
    parts = [optax.clip_by_global_norm(values["gradient_clip"])] if config.gradient_clip else []
    parts += [direction, decay] if decoupled else [decay, direction]
    if config.name == "lamb":
        parts.append(optax.scale_by_trust_ratio())
    parts.append(_scale_by_learning_rate(values["learning_rate"], config.learning_rate_factors))
    chain = optax.chain(*parts)
    if not config.frozen:
        return chain
    labels = map_with_path(
        lambda path, _: "frozen" if re.search(config.frozen, path) else "trained"
    )
    return optax.partition({"trained": chain, "frozen": optax.set_to_zero()}, labels)


def stop_finished(updates: optax.Updates, epoch: jax.Array, frozen_after: Factors) -> optax.Updates:
    """Returns the updates, zero for parameters whose training is over.

    Args:
      updates: the updates of a step.
      epoch: epochs of training before it, a float32 scalar.
      frozen_after: pairs of a pattern of parameter paths and the epochs that they are trained.
    """

    def stop(path: str, update: jax.Array) -> jax.Array:
        for pattern, epochs in frozen_after:
            if re.search(pattern, path):
                update = jnp.where(epoch < epochs, update, 0)
        return update

    return map_with_path(stop)(updates)


def _add_weight_decay(
    weight_decay: Any, no_decay: str, factors: Factors
) -> optax.GradientTransformation:
    def add(path: str, update: jax.Array, param: jax.Array) -> jax.Array:
        if no_decay and re.search(no_decay, path):
            return update
        return update + weight_decay * _factor(path, factors) * param

    return optax.stateless(map_with_path(add))


def _scale_by_learning_rate(learning_rate: Any, factors: Factors) -> optax.GradientTransformation:
    def scale(path: str, update: jax.Array) -> jax.Array:
        return -learning_rate * _factor(path, factors) * update

    return optax.stateless(lambda updates, params: map_with_path(scale)(updates))


def _factor(path: str, factors: Factors) -> float:
    return next((factor for pattern, factor in factors if re.search(pattern, path)), 1.0)


def _check_patterns(config: ConfigDict, params: optax.Params) -> None:
    """Refuses patterns that match no parameter, and a freeze of all of them."""
    paths = jax.tree.leaves(map_with_path(lambda path, _: path)(params))
    patterns = [("no_decay", config.no_decay), ("frozen", config.frozen)]
    for field in ("learning_rate_factors", "weight_decay_factors", "frozen_after"):
        patterns += [(field, pattern) for pattern, _ in config[field]]
    for field, pattern in patterns:
        if pattern and not any(re.search(pattern, path) for path in paths):
            raise UserError(
                f"config field optimizer.{field}: pattern {pattern!r} matches no parameter; "
                f"they are called {paths[0]}, {paths[-1]} and so on"
            )
    if config.frozen and all(re.search(config.frozen, path) for path in paths):
        raise UserError("config field optimizer.frozen matches every parameter; nothing is trained")
