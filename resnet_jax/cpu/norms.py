"""Batch norms on a CPU, with the shortcut and the ReLU that follow them."""

import ctypes
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.cpu import lowering
from resnet_jax.models import normalization

_NORM, _GRADIENT = "resnet_jax_normalize", "resnet_jax_normalize_gradient"


def use(library: ctypes.CDLL) -> None:
    """Makes batch norms and their gradients calls of our library."""
    lowering.offer(library, _NORM, _GRADIENT)
    lowering.replace(normalization.normalize_p, functools.partial(_call, _NORM))
    lowering.replace(normalization.normalize_gradient_p, functools.partial(_call, _GRADIENT))


def _call(
    name: str, operands: Sequence[Any], results: Sequence[Any], params: dict[str, Any]
) -> lowering.Function | None:
    """Returns a function that calls our library; None for dtypes and shapes that it has not."""
    x = operands[0]
    if x.dtype not in (jnp.float32, jnp.bfloat16) or not x.size:
        return None
    shapes = [jax.ShapeDtypeStruct(result.shape, result.dtype) for result in results]
    attributes = {"epsilon": np.float32(params["epsilon"]), "relu": params["relu"]}
    return functools.partial(jax.ffi.ffi_call(name, shapes), **attributes)
