"""Teaches XLA's CPU backend what `lax.conv_general_dilated` is lowered to.

JAX traces, differentiates and batches a convolution as ever; only what a CPU executes is another
call. Convolutions that oneDNN has no primitive for, programs for several devices and those for
export keep XLA's.
"""

import ctypes
import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.interpreters import mlir

from resnet_jax.cpu import build
from resnet_jax.cpu.patches import kernel_gradient

Pair = tuple[int, int]
Function = Callable[[jax.Array, jax.Array], jax.Array]

# Where batch, features, rows and columns of images are; outputs, inputs, rows, columns of kernels.
_NHWC, _HWIO = (0, 3, 1, 2), (3, 2, 0, 1)
# The dimension numbers of a convolution and of those that JAX makes its gradients of.
_FORWARD = (_NHWC, _HWIO, _NHWC)
_INPUT_GRADIENT = (_NHWC, (2, 3, 0, 1), _NHWC)
_KERNEL_GRADIENT = ((3, 0, 1, 2), (3, 0, 1, 2), (2, 3, 0, 1))

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


def enable(notify: Callable[[str], None] | None = None) -> bool:
    """Makes programs that are compiled for a CPU from now on compute convolutions by oneDNN.

    Where there is no oneDNN they stay XLA's, but gradients of kernels become matrix products.

    Args:
      notify: called with a line when our calls of oneDNN are compiled, which happens once, or if
        they can't be; None: the line goes to standard error.

    Returns:
      Whether oneDNN is used.
    """
    notify = notify or functools.partial(print, file=sys.stderr)
    library = None
    try:
        library = build.load(notify)
    except build.Unavailable as problem:
        notify(f"convolutions are XLA's own: {problem}")
    replace = functools.partial(_onednn, library) if library else _matrix_products
    if library:
        for kind in KINDS:
            capsule = jax.ffi.pycapsule(getattr(library, f"resnet_jax_{kind}"))
            jax.ffi.register_ffi_target(f"resnet_jax_{kind}", capsule, platform="cpu")
    usual = _usual_lowering()

    def lower(ctx: Any, lhs: Any, rhs: Any, **params: Any) -> Any:
        convolution = recognise(ctx.avals_in, ctx.avals_out[0], params)
        function = replace(convolution) if convolution and _may_be_replaced(ctx) else None
        if function is None:
            return usual(ctx, lhs, rhs, **params)
        return mlir.lower_fun(function, multiple_results=False)(ctx, lhs, rhs)

    mlir.register_lowering(lax.conv_general_dilated_p, lower, platform="cpu")
    return library is not None


@functools.cache  # so that it is never our own
def _usual_lowering() -> Callable[..., Any]:
    """Returns what JAX lowers convolutions to on a CPU, which has no public name."""
    return mlir._platform_specific_lowerings["cpu"][lax.conv_general_dilated_p].rule


def _may_be_replaced(ctx: Any) -> bool:
    """Returns whether a program is for one device, as calls aren't split, and not for export."""
    module = ctx.module_context
    alone = getattr(module.axis_context, "num_devices", 1) in (1, None)
    return alone and not module.lowering_parameters.for_export


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


def _onednn(library: ctypes.CDLL, convolution: Convolution) -> Function | None:
    """Returns a function that calls oneDNN; None if that has no such convolution here."""
    kind, input, kernel, output, strides, pads = convolution
    if input.dtype not in (jnp.float32, jnp.bfloat16):
        return None
    half, number = input.dtype == jnp.bfloat16, KINDS.index(kind)
    # Many terms are added up: for once XLA may keep the precision, if it is to be float32 anyway.
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


def _matrix_products(convolution: Convolution) -> Function | None:
    """Returns a function that computes the gradient of a kernel; None for other convolutions."""
    if convolution.kind != "kernel_gradient" or convolution.input.dtype != jnp.float32:
        return None
    side, strides = convolution.kernel.shape, convolution.strides
    return functools.partial(kernel_gradient, shape=side, strides=strides, pads=convolution.pads)
