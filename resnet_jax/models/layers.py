"""Layers that every model shares: PyTorch's default initialisers, explicit padding, regularisers.

All arrays are NHWC, `[batch, height, width, channels]`; convolution kernels are HWIO.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from flax.typing import Dtype, Initializer

from resnet_jax.config.checks import Bounds, Count
from resnet_jax.errors import UserError, shown
from resnet_jax.models.normalization import relu


def _floating(what: str, value: Any) -> jnp.dtype:
    with contextlib.suppress(TypeError):
        if value is not None and jnp.issubdtype(jnp.dtype(value), jnp.floating):
            return jnp.dtype(value)
    raise UserError(f"{what} takes a floating-point dtype, such as 'bfloat16', not {shown(value)}")


# What options of models may be. More layers or wider ones would fit no machine, or take hours to
# trace: such a number is a slip, or not meant well.
FloatDtype = Annotated[Dtype, _floating]
CountOrNone = Annotated[int, Bounds(0, 1_000_000)]
Depth = Annotated[int, Bounds(1, 1_000)]


def _few(what: str, values: tuple[int, ...]) -> tuple[int, ...]:
    Bounds(1, 1_000)(f"{what}, added up,", sum(values))
    return values


Depths = Annotated[tuple[Count, ...], _few]
Sizes = tuple[Count, ...]


def silu(x: jax.Array) -> jax.Array:
    """As `nn.silu`; it can be pickled, as `relu` can."""
    return nn.silu(x)


def leaky_relu(x: jax.Array) -> jax.Array:
    """As `nn.leaky_relu`; it can be pickled, as `relu` can."""
    return nn.leaky_relu(x)


Activation = Annotated[
    Callable[[jax.Array], jax.Array],
    {"relu": relu, "gelu": nn.gelu, "silu": silu, "leaky_relu": leaky_relu},
]

# U(-1/sqrt(fan_in), 1/sqrt(fan_in)), what PyTorch's Conv2d and Linear draw by default.
torch_kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def torch_bias_init(fan_in: int) -> Initializer:
    """Returns PyTorch's default bias initialiser, U(-1/sqrt(fan_in), 1/sqrt(fan_in)).

    Args:
      fan_in: inputs that each output of the layer sums over.
    """
    bound = fan_in**-0.5

    def init(key: jax.Array, shape: Sequence[int], dtype: Dtype = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class Conv(nn.Module):
    """Two-dimensional convolution with PyTorch's default initialisers and explicit padding.

    Attributes:
      features: number of output channels.
      kernel_size: height and width of the kernel, pixels.
      strides: step in both directions, pixels.
      padding: zeros added on all four sides, pixels.
      use_bias: whether a bias is added.
      kernel_init: initialiser of the kernel.
      bias_init: initialiser of the bias; None: PyTorch's default.
      dtype: dtype of the computation; None: that of the operands.
      param_dtype: dtype of the parameters.
    """

    features: int
    kernel_size: tuple[int, int] = (3, 3)
    strides: int = 1
    padding: int = 0
    use_bias: bool = False
    kernel_init: Initializer = torch_kernel_init
    bias_init: Initializer | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[batch, height, width, channels]` to `[batch, height', width', features]`."""
        shape = (*self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        bias = None
        if self.use_bias:
            bias_init = self.bias_init or torch_bias_init(math.prod(shape[:-1]))
            bias = self.param("bias", bias_init, (self.features,), self.param_dtype)
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = jax.lax.conv_general_dilated(
            x,
            kernel,
            window_strides=(self.strides, self.strides),
            padding=((self.padding, self.padding), (self.padding, self.padding)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y if bias is None else y + jax.lax.broadcast_to_rank(bias, y.ndim)


class Dense(nn.Module):
    """Linear layer with PyTorch's default initialisers.

    Attributes:
      features: number of outputs.
      kernel_init: initialiser of the kernel.
      bias_init: initialiser of the bias; None: PyTorch's default.
      dtype: dtype of the computation; None: that of the operands.
      param_dtype: dtype of the parameters.
    """

    features: int
    kernel_init: Initializer = torch_kernel_init
    bias_init: Initializer | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[..., inputs]` to `[..., features]`."""
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        bias_init = self.bias_init or torch_bias_init(x.shape[-1])
        bias = self.param("bias", bias_init, (self.features,), self.param_dtype)
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = x @ kernel
        return y + jax.lax.broadcast_to_rank(bias, y.ndim)


class Function(nn.Module):
    """A function of one array as a layer, so that a table of the layers shows it."""

    function: Callable[[jax.Array], jax.Array]

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns what the function makes of `x`."""
        return self.function(x)


class SqueezeExcitation(nn.Module):
    """Channel attention of "Squeeze-and-Excitation Networks" (Hu et al. 2018).

    Attributes:
      reduction: factor between the channels and the hidden width.
      dtype: dtype of the computation.
      param_dtype: dtype of the parameters.
    """

    reduction: int = 16
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Scales the channels of `[batch, height, width, channels]`."""
        channels = x.shape[-1]
        hidden = max(1, channels // self.reduction)
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        scale = Function(global_avg_pool)(x)
        scale = Function(nn.relu)(Dense(hidden, name="fc1", **dtypes)(scale))
        scale = Function(nn.sigmoid)(Dense(channels, name="fc2", **dtypes)(scale))
        return x * scale[:, None, None, :]


class StagedClassifier(nn.Module):
    """A classifier that can be taken apart after each of its stages.

    `classify(features(x, stage=i), stage=i)` is what the model itself makes of `x`.

    Attributes:
      stage_sizes: number of blocks or layers in each stage.
    """

    stage_sizes: Depths

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps images to logits.

        Args:
          x: normalised images, `[batch, height, width, channels]`.
          train: whether to normalise with the batch's statistics and to apply dropout.

        Returns:
          Logits, float32 `[batch, num_classes]`.

        Raises:
          UserError: if the images are smaller than the product of all strides and pools.
        """
        return self.run(x, train=train)

    def features(self, x: jax.Array, *, train: bool, stage: int) -> jax.Array:
        """Maps images to the output of a stage, counted from 1, in the dtype of the computation.

        Raises:
          UserError: if the images are too small, or there is no such stage.
        """
        return self.run(x, train=train, stop=self._checked(stage))

    def classify(self, features: jax.Array, *, train: bool, stage: int) -> jax.Array:
        """Maps the output of a stage, counted from 1, to logits.

        Raises:
          UserError: if there is no such stage.
        """
        return self.run(features, train=train, start=self._checked(stage))

    def run(self, x: jax.Array, *, train: bool, start: int = 0, stop: int = -1) -> jax.Array:
        """Applies the stages after `start` up to `stop`.

        Args:
          x: the images, or the output of stage `start`.
          train: see `__call__`.
          start: stage whose output `x` is; 0: `x` is the images.
          stop: stage whose output is returned; -1: the logits are.
        """
        raise NotImplementedError

    def _checked(self, stage: int) -> int:
        if not 1 <= stage <= len(self.stage_sizes):
            raise UserError(f"this model has stages 1 to {len(self.stage_sizes)}, no {stage}")
        return stage


def apply_head(x: jax.Array, num_classes: int, dense: Callable[..., nn.Module]) -> jax.Array:
    """Returns logits, float32 `[batch, num_classes]`, by a linear layer named `head`.

    Args:
      x: what the layer reads, `[batch, inputs]`.
      num_classes: number of logits; 0: `x` itself is returned, as float32.
      dense: constructor of the linear layer, bound to its dtypes.
    """
    if num_classes:
        x = dense(num_classes, name="head")(x)
    return x.astype(jnp.float32)


def max_pool(x: jax.Array, window: int, strides: int | None = None, padding: int = 0) -> jax.Array:
    """Max-pools `[batch, height, width, channels]` as PyTorch does.

    Windows that do not overlap are maxima of strided slices, whose gradient is far cheaper than
    the select-and-scatter of the general form.

    Args:
      x: the images, `[batch, height, width, channels]`.
      window: side of the square window, pixels.
      strides: step between windows, pixels; None: the window's side.
      padding: pixels of minus infinity added on all sides.

    Returns:
      `[batch, height', width', channels]`; rows and columns left over are dropped.
    """
    strides = strides or window
    if strides != window or padding:
        return nn.max_pool(x, (window, window), (strides, strides), [(padding, padding)] * 2)
    rows, columns = x.shape[1] // window * window, x.shape[2] // window * window
    parts = [x[:, i:rows:window, j:columns:window] for i in range(window) for j in range(window)]

    # Comparing neighbours gives the right gradient even where XLA computes `x` anew for it, rounded
    # otherwise; comparing `x` with the maximum, as the gradient of `max` does, then fails.
    def larger(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.where((b <= a) | jnp.isnan(a), a, b)

    return functools.reduce(larger, parts)


def global_avg_pool(x: jax.Array) -> jax.Array:
    """Averages `[batch, height, width, channels]` to `[batch, channels]`."""
    return x.mean(axis=(1, 2))


def adaptive_avg_pool(x: jax.Array, size: int) -> jax.Array:
    """Averages `[batch, height, width, channels]` into a grid, as PyTorch's AdaptiveAvgPool2d does.

    Cell i of n covers rows floor(i * height / n) up to ceil((i + 1) * height / n), so that cells
    overlap where the height is no multiple of n, and repeat where it is smaller.

    Args:
      x: the images, `[batch, height, width, channels]`.
      size: side of the grid, cells.

    Returns:
      `[batch, size, size, channels]`.
    """

    def weights(length: int) -> jax.Array:
        rows = [[0.0] * length for _ in range(size)]
        for cell, row in enumerate(rows):
            start, stop = cell * length // size, -(-(cell + 1) * length // size)
            row[start:stop] = [1 / (stop - start)] * (stop - start)
        return jnp.array(rows, x.dtype)

    _, height, width, _ = x.shape
    if height == width == size:
        return x
    return jnp.einsum("bhwc,ih,jw->bijc", x, weights(height), weights(width))


def check_images(x: jax.Array, smallest: int) -> None:
    """Refuses an input that is no batch of images, or whose images a model would reduce to nothing.

    Args:
      x: input of a model.
      smallest: least height and width that its strides and pools leave a pixel of.

    Raises:
      UserError: if `x` is not `[batch, height, width, channels]` or an image is too small.
    """
    if x.ndim != 4:
        raise UserError(f"images must be [batch, height, width, channels], not of shape {x.shape}")
    height, width = x.shape[1:3]
    if height < smallest or width < smallest:
        raise UserError(
            f"images of {height}x{width} pixels are too small for the strides of this model; "
            f"give at least {smallest}x{smallest}"
        )
