"""The plain convolutional networks that two of the reports compare residual networks with."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from resnet_jax.config.checks import Count, Rate
from resnet_jax.models import layers
from resnet_jax.models.layers import CountOrNone, FloatDtype


class CNN(nn.Module):
    """LeNet-like baseline: two 5x5 convolutions and three linear layers (PyTorch's tutorial).

    Submodules are named `conv1`, `conv2`, `fc1`, `fc2`, `head`; what each pool returns is sown
    into the collection "intermediates" as `stage1` and `stage2`. The images' size at
    initialisation fixes the inputs of `fc1`.

    Attributes:
      num_classes: number of logits; 0: no head, what it would read is returned.
      dtype: dtype of the computation; logits are always float32.
      param_dtype: dtype of the parameters.
    """

    num_classes: CountOrNone = 10
    dtype: FloatDtype = jnp.float32
    param_dtype: FloatDtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps images to logits.

        Args:
          x: normalised images, `[batch, height, width, channels]`, of at least 16x16 pixels.
          train: accepted for uniformity; nothing here depends on it.

        Returns:
          Logits, float32 `[batch, num_classes]`.

        Raises:
          UserError: if the images are too small.
        """
        layers.check_images(x, 16)
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = x.astype(self.dtype)
        for stage, features in enumerate((6, 16), start=1):
            conv = layers.Conv(features, (5, 5), use_bias=True, name=f"conv{stage}", **dtypes)
            x = layers.Function(nn.relu)(conv(x))
            x = layers.Function(functools.partial(layers.max_pool, window=2))(x)
            self.sow("intermediates", f"stage{stage}", x)
        x = lax.collapse(x, 1)
        dense: Callable[..., layers.Dense] = functools.partial(layers.Dense, **dtypes)
        for name, features in (("fc1", 120), ("fc2", 84)):
            x = layers.Function(nn.relu)(dense(features, name=name)(x))
        return layers.apply_head(x, self.num_classes, dense)


class AlexNet(nn.Module):
    """AlexNet (Krizhevsky et al. 2012) for 32x32 images.

    Its report gives no widths. Assumed: those of torchvision's AlexNet, with all convolutions 3x3,
    a stride of 2 in the first one, and 2x2 pools after the first, second and fifth.

    Submodules are named `conv1` to `conv5`, `fc1`, `fc2`, `head`; what each pool returns is sown
    into the collection "intermediates" as `stage1` to `stage3`. The images' size at initialisation
    fixes the inputs of `fc1`.

    Attributes:
      num_classes: number of logits; 0: no head, what it would read is returned.
      num_filters: width of each of the five convolutions.
      hidden_sizes: widths of the two hidden linear layers.
      dropout_rate: dropout before each hidden linear layer.
      dtype: dtype of the computation; logits are always float32.
      param_dtype: dtype of the parameters.
    """

    num_classes: CountOrNone = 10
    num_filters: tuple[Count, Count, Count, Count, Count] = (64, 192, 384, 256, 256)
    hidden_sizes: tuple[Count, Count] = (4096, 4096)
    dropout_rate: Rate = 0.5
    dtype: FloatDtype = jnp.float32
    param_dtype: FloatDtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps images to logits.

        Args:
          x: normalised images, `[batch, height, width, channels]`, of at least 16x16 pixels.
          train: whether to apply dropout.

        Returns:
          Logits, float32 `[batch, num_classes]`.

        Raises:
          UserError: if the images are too small.
        """
        layers.check_images(x, 16)
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = x.astype(self.dtype)
        pooled_stages = {1: "stage1", 2: "stage2", 5: "stage3"}
        for index, features in enumerate(self.num_filters, start=1):
            strides = 2 if index == 1 else 1
            name = f"conv{index}"
            conv = layers.Conv(features, (3, 3), strides, 1, use_bias=True, name=name, **dtypes)
            x = layers.Function(nn.relu)(conv(x))
            if index in pooled_stages:
                x = layers.Function(functools.partial(layers.max_pool, window=2))(x)
                self.sow("intermediates", pooled_stages[index], x)
        x = lax.collapse(x, 1)
        dense: Callable[..., layers.Dense] = functools.partial(layers.Dense, **dtypes)
        for index, features in enumerate(self.hidden_sizes, start=1):
            dropout = nn.Dropout(self.dropout_rate, deterministic=not train, name=f"dropout{index}")
            x = layers.Function(nn.relu)(dense(features, name=f"fc{index}")(dropout(x)))
        return layers.apply_head(x, self.num_classes, dense)
