"""Optimizers by name, as optax transformations.

An update rule turns gradients into a direction; around it comes what all optimizers share:
clipping, weight decay, learning-rate factors, the learning rate, freezing and accumulation.

An optimizer is built inside the training step, from numbers that are arguments of the compiled
step: so trainings that differ only in numbers share a program. A number that is zero switches its
part off; that decides the structure, and the number is no argument then.
"""

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import optax
from ml_collections import ConfigDict

from resnet_jax.config.checks import check_options
from resnet_jax.errors import UserError, unknown
from resnet_jax.training.update_rules import OPTIMIZERS
from resnet_jax.trees import map_with_path, named_leaves

# Optimizers that are defined with a weight decay beside the gradient.
DECOUPLED = frozenset({"adamw", "lamb", "lion", "muon"})

# Pairs of a pattern of parameter paths and a number for what it matches.
Factors = tuple[tuple[str, float], ...]
Numbers = Mapping[str, Any]


class Optimizer(NamedTuple):
    """An optimizer whose numbers are not fixed yet.

    Attributes:
      numbers: the numbers of the config by the paths of their fields, "optimizer.learning_rate"
        among them.
      build: makes the transformation from such numbers, or from traced arrays in their place.
    """

    numbers: dict[str, float]
    build: Callable[[Numbers], optax.GradientTransformation]


def create_optimizer(config: ConfigDict) -> Optimizer:
    """Returns an optimizer.

    Args:
      config: the group `optimizer` of a config.

    Raises:
      UserError: if the optimizer is unknown or its options don't suit it, and from `init` of what
        it builds if a pattern of parameter paths matches none.
    """
    if config.name not in OPTIMIZERS:
        raise unknown("optimizer", config.name, OPTIMIZERS)
    rule = OPTIMIZERS[config.name]
    options = check_options("optimizer", config.name, rule, config.options)
    traced = {name for name, value in options.items() if isinstance(value, float) and value}
    numbers = {f"optimizer.options.{name}": options[name] for name in sorted(traced)}
    numbers["optimizer.learning_rate"] = config.learning_rate
    for name in ("weight_decay", "gradient_clip"):
        if config[name]:
            numbers[f"optimizer.{name}"] = config[name]

    def build(numbers: Numbers) -> optax.GradientTransformation:
        values = {name: numbers[f"optimizer.options.{name}"] for name in traced}
        tx = _surround(rule(**(options | values)), config, numbers)
        if config.accumulate_steps > 1:
            tx = optax.MultiSteps(tx, config.accumulate_steps).gradient_transformation()

        def init(params: optax.Params) -> optax.OptState:
            _check_patterns(config, options, params)
            return tx.init(params)

        return optax.GradientTransformation(init, tx.update)

    build(numbers)  # options that contradict each other are refused here
    return Optimizer(numbers, build)


def _surround(
    direction: optax.GradientTransformation, config: ConfigDict, numbers: Numbers
) -> optax.GradientTransformation:
    """Returns `direction` with everything that all optimizers share."""
    parts = [direction]
    if config.weight_decay:
        mask = functools.partial(
            map_with_path, lambda path, _: not re.search(config.no_decay or "(?!)", path)
        )
        decay = optax.add_decayed_weights(numbers["optimizer.weight_decay"], mask)
        is_decoupled = config.decoupled_weight_decay or config.name in DECOUPLED
        parts = [direction, decay] if is_decoupled else [decay, direction]
    if config.gradient_clip:
        parts.insert(0, optax.clip_by_global_norm(numbers["optimizer.gradient_clip"]))
    if config.name == "lamb":
        parts.append(optax.scale_by_trust_ratio())
    rate = numbers["optimizer.learning_rate"]
    chain = optax.chain(*parts, _scale_by_learning_rate(rate, config.learning_rate_factors))
    if not config.frozen:
        return chain
    labels = functools.partial(
        map_with_path, lambda path, _: "frozen" if re.search(config.frozen, path) else "trained"
    )
    return optax.partition({"trained": chain, "frozen": optax.set_to_zero()}, labels)


def _scale_by_learning_rate(learning_rate: Any, factors: Factors) -> optax.GradientTransformation:
    def scale(path: str, update: jax.Array) -> jax.Array:
        factor = next((f for pattern, f in factors if re.search(pattern, path)), 1.0)
        return -learning_rate * factor * update

    return optax.stateless(lambda updates, params: map_with_path(scale, updates))


def _check_patterns(config: ConfigDict, options: Mapping[str, Any], params: optax.Params) -> None:
    """Refuses patterns that match no parameter, and a freeze of all of them."""
    paths = [path for path, _ in named_leaves(params)]
    patterns = [("no_decay", config.no_decay), ("frozen", config.frozen)]
    patterns += [("options.pattern", options.get("pattern", ""))]  # Muon's
    patterns += [("learning_rate_factors", pattern) for pattern, _ in config.learning_rate_factors]
    for field, pattern in patterns:
        if pattern and not any(re.search(pattern, path) for path in paths):
            raise UserError(
                f"config field optimizer.{field}: pattern {pattern!r} matches no parameter; "
                f"they are called {paths[0]}, {paths[-1]} and so on"
            )
    if config.frozen and all(re.search(config.frozen, path) for path in paths):
        raise UserError("config field optimizer.frozen matches every parameter; nothing is trained")
