"""Parts of a model that are frozen: no gradient, no new statistics."""

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax

from resnet_jax.models.normalization import BatchNorm
from resnet_jax.trees import map_with_path

Tree = Any


def stop_frozen(params: Tree, frozen: str) -> Tree:
    """Returns the parameters, those that are frozen without a gradient.

    No backward pass is compiled for what comes before the first parameter that is trained.

    Args:
      params: the parameters.
      frozen: regular expression of the paths of frozen ones; empty: none.
    """
    if not frozen:
        return params
    return map_with_path(
        lambda path, leaf: jax.lax.stop_gradient(leaf) if re.search(frozen, path) else leaf, params
    )


@contextlib.contextmanager
def frozen_norms(frozen: str) -> Iterator[None]:
    """Makes frozen norms normalise with their running statistics, which stay as they are.

    Args:
      frozen: regular expression of the paths of frozen parameters; empty: none.
    """

    def call(function: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        module = context.module
        if isinstance(module, BatchNorm) and "train" in kwargs:
            path = "/".join((*module.path, "scale"))
            kwargs = kwargs | {"train": kwargs["train"] and not re.search(frozen, path)}
        return function(*args, **kwargs)

    if not frozen:
        yield
        return
    with nn.intercept_methods(call):
        yield
