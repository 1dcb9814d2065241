"""Convolutions on a CPU: by oneDNN, or where there is none, kernel gradients as matrix products.

What oneDNN has no primitive for keeps XLA's convolution.
"""

import ctypes
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.interpreters import mlir

from resnet_jax.cpu import lowering
from resnet_jax.cpu.patches import kernel_gradient

Pair = tuple[int, int]

# Where batch, features, rows and columns of images are; outputs, inputs, rows, columns of kernels.
_NHWC, _HWIO = (0, 3, 1, 2), (3, 2, 0, 1)
# The dimension numbers of a convolution and of those that JAX makes its gradients of.
_FORWARD = (_NHWC, _HWIO, _NHWC)
_INPUT_GRADIENT = (_NHWC, (2, 3, 0, 1), _NHWC)
_KERNEL_GRADIENT = ((3, 0, 1, 2), (3, 0, 1, 2), (2, 3, 0, 1))

_convert = mlir._lowerings[lax.convert_element_type_p].rule  # JAX's own, for which is no other name

KINDS = ("convolution", "input_gradient", "kernel_gradient")


class Convolution(NamedTuple):
    """A convolution or one of its gradients, in terms of the convolution itself.

    Attributes:
      kind: one of `KINDS`: which of the three arrays is computed from the other two.
      input: `[batch, height, width, inputs]`.
      kernel: `[height, width, inputs, outputs]`.
      output: `[batch, height', width', outputs]`.
      strides: of rows and columns, pixels.
      pads: before and after the rows and the columns, pixels.
    """

    kind: str
    input: jax.core.ShapedArray
    kernel: jax.core.ShapedArray
    output: jax.core.ShapedArray
    strides: Pair
    pads: tuple[Pair, Pair]


def use_onednn(library: ctypes.CDLL) -> None:
    """Makes convolutions and their gradients calls of oneDNN by way of our library."""
    lowering.offer(library, *(f"resnet_jax_{kind}" for kind in KINDS))
    _replace(functools.partial(_onednn, library))
    _keep_float32()


def use_matrix_products() -> None:
    """Makes gradients of kernels matrix products; what else there is stays XLA's."""
    _replace(_matrix_products)


def _replace(choose: Callable[["Convolution"], lowering.Function | None]) -> None:
    def choose_known(
        operands: Sequence[Any], results: Sequence[Any], params: dict[str, Any]
    ) -> Any:
        convolution = recognise(operands, results[0], params)
        return convolution and choose(convolution)

    lowering.replace(lax.conv_general_dilated_p, choose_known)


def recognise(operands: Sequence[Any], result: Any, params: dict[str, Any]) -> Convolution | None:
    """Returns what a convolution of JAX computes; None: nothing that is known here.

    Args:
      operands: shapes and dtypes of its operands.
      result: shape and dtype of its result.
      params: parameters of the primitive.
    """
    lhs, rhs = operands
    one_dtype = lhs.dtype == rhs.dtype == result.dtype
    groups = params["feature_group_count"] * params["batch_group_count"]
    empty = 0 in (*lhs.shape, *rhs.shape, *result.shape)
    if lhs.ndim != 4 or not one_dtype or groups > 1 or empty:
        return None
    numbers = tuple(map(tuple, params["dimension_numbers"]))
    steps, pads = params["window_strides"], params["padding"]
    lhs_steps, rhs_steps, ones = params["lhs_dilation"], params["rhs_dilation"], (1, 1)
    before = [before for before, _ in pads]
    if numbers == _FORWARD and lhs_steps == rhs_steps == ones:
        return _convolution(KINDS[0], lhs, rhs, result, steps, before)
    if numbers == _INPUT_GRADIENT and steps == rhs_steps == ones:
        # The gradient of the output, spread out by the strides, meets the kernel turned around.
        before = [rhs.shape[i] - 1 - before[i] for i in (0, 1)]
        return _convolution(KINDS[1], result, rhs, lhs, lhs_steps, before)
    if numbers == _KERNEL_GRADIENT and lhs_steps == steps == ones:
        return _convolution(KINDS[2], lhs, result, rhs, rhs_steps, before)
    return None


def _convolution(
    kind: str, input: Any, kernel: Any, output: Any, strides: Pair, before: Sequence[int]
) -> Convolution | None:
    """Returns a convolution with its padding completed; None if it cuts off rows or columns."""
    pads = []
    for i in (0, 1):
        reach = strides[i] * (output.shape[i + 1] - 1) + kernel.shape[i]
        after = reach - before[i] - input.shape[i + 1]
        if before[i] < 0 or after <= -strides[i]:
            return None
        pads.append((before[i], max(after, 0)))  # no window reaches what is beyond
    return Convolution(kind, input, kernel, output, strides, (pads[0], pads[1]))


def _onednn(library: ctypes.CDLL, convolution: Convolution) -> lowering.Function | None:
    """Returns a function that calls oneDNN; None if that has no such convolution here."""
    kind, input, kernel, output, strides, pads = convolution
    if input.dtype not in (jnp.float32, jnp.bfloat16):
        return None
    half, number = input.dtype == jnp.bfloat16, KINDS.index(kind)
    precise = kind == "kernel_gradient"
    geometry = np.array([*strides, *pads[0], *pads[1]])
    shapes = np.array([*input.shape, *kernel.shape, *output.shape, *geometry])
    pointer = shapes.ctypes.data_as(ctypes.c_void_p)
    if not library.resnet_jax_has_convolution(number, half, half and not precise, pointer):
        return None
    result = {KINDS[0]: output, KINDS[1]: input, KINDS[2]: kernel}[kind]
    dtype = jnp.float32 if precise else result.dtype

    def call(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        if kind == "input_gradient":  # JAX has turned the kernel around, which XLA undoes for free
            rhs = rhs[::-1, ::-1]
        function = jax.ffi.ffi_call(f"resnet_jax_{kind}", jax.ShapeDtypeStruct(result.shape, dtype))
        return function(lhs, rhs, geometry=geometry).astype(result.dtype)

    return call


def _keep_float32() -> None:
    """Leaves out that a kernel's gradient is rounded to bfloat16 and back to float32.

    To JAX a bfloat16 convolution has a bfloat16 kernel, the cast of a float32 parameter. oneDNN
    returns its gradient in float32, which the cast of the gradient takes as it was before rounding.
    """

    def lower(ctx: Any, operand: Any, **params: Any) -> Any:
        rounding = operand.owner
        if getattr(rounding, "name", "") == "stablehlo.convert":
            exact = rounding.operands[0]
            call = getattr(exact.owner, "attributes", {})
            ours = "call_target_name" in call and "kernel_gradient" in str(call["call_target_name"])
            if ours and exact.type == mlir.aval_to_ir_type(ctx.avals_out[0]):
                return [exact]
        return _convert(ctx, operand, **params)

    # Where a lowering may be cached, it does not see where its operands come from. One that may not
    # has to be that of all platforms, or JAX (0.9.2) can't lower for several of them at once.
    mlir.register_lowering(lax.convert_element_type_p, lower, cacheable=False)


def _matrix_products(convolution: Convolution) -> lowering.Function | None:
    """Returns a function that computes the gradient of a kernel; None for other convolutions."""
    if convolution.kind != "kernel_gradient" or convolution.input.dtype != jnp.float32:
        return None
    side, strides = convolution.kernel.shape, convolution.strides
    return functools.partial(kernel_gradient, shape=side, strides=strides, pads=convolution.pads)
