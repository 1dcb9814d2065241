"""VGG networks (Simonyan and Zisserman 2015), with and without batch normalization."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from resnet_jax.config.checks import Rate, checked
from resnet_jax.errors import UserError
from resnet_jax.models import layers
from resnet_jax.models.layers import CountOrNone, Depths, FloatDtype, Sizes
from resnet_jax.models.normalization import BatchNorm

# Side of the pooled grid, and widths of the hidden linear layers. "transfer" is the ImageNet one
# whose last layer is replaced by 512 units, ReLU, dropout and the logits.
CLASSIFIERS: dict[str, tuple[int, tuple[int, ...]]] = {
    "imagenet": (7, (4096, 4096)),
    "transfer": (7, (4096, 4096, 512)),
    "cifar": (1, ()),
}

# torchvision's initialisers of this family; its biases start at zero.
conv_kernel_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
dense_kernel_init = nn.initializers.normal(0.01)


class VGG(layers.StagedClassifier):
    """A VGG network in torchvision's layout: convolutions, adaptive average pool, linear layers.

    Submodules are named `conv<i>_<j>` and `bn<i>_<j>` (stage i, convolution j, from 1), `fc<k>`,
    `head`; what the pool of each stage returns is sown into the collection "intermediates" as
    `stage<i>`.

    Attributes:
      stage_sizes: number of 3x3 convolutions in each stage.
      num_filters: width of each stage.
      batch_norm: whether a batch normalization follows each convolution.
      num_classes: number of logits; 0: no head, what it would read is returned.
      classifier: "imagenet" (a 7x7 grid, 4096-4096-logits), "transfer" (a 7x7 grid,
        4096-4096-512-logits) or "cifar" (the global average, then the logits).
      dropout_rate: dropout after each hidden linear layer.
      dtype: dtype of the computation; logits are always float32.
      param_dtype: dtype of the parameters.

    Raises:
      UserError: if the stages' fields differ in length, or `classifier` is none of its names.
    """

    stage_sizes: Depths
    num_filters: Sizes = (64, 128, 256, 512, 512)
    batch_norm: bool = False
    num_classes: CountOrNone = 10
    classifier: Literal["imagenet", "transfer", "cifar"] = "imagenet"
    dropout_rate: Rate = 0.5
    dtype: FloatDtype = jnp.float32
    param_dtype: FloatDtype = jnp.float32

    def __post_init__(self) -> None:
        """Refuses an unknown classifier, and fields that contradict each other."""
        checked("model option classifier", VGG.__annotations__["classifier"], self.classifier)
        if len(self.num_filters) != len(self.stage_sizes):
            raise UserError(
                f"model option num_filters has {len(self.num_filters)} entries but stage_sizes "
                f"has {len(self.stage_sizes)}; give one for each stage"
            )
        super().__post_init__()

    @nn.compact
    def run(self, x: jax.Array, *, train: bool, start: int = 0, stop: int = -1) -> jax.Array:
        """See `layers.StagedClassifier.run`."""
        if start == 0:
            layers.check_images(x, 2 ** len(self.stage_sizes))
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        zeros = nn.initializers.zeros
        conv: Callable[..., layers.Conv] = functools.partial(
            layers.Conv,
            kernel_size=(3, 3),
            padding=1,
            use_bias=True,
            kernel_init=conv_kernel_init,
            bias_init=zeros,
            **dtypes,
        )
        dense: Callable[..., layers.Dense] = functools.partial(
            layers.Dense, kernel_init=dense_kernel_init, bias_init=zeros, **dtypes
        )
        x = x.astype(self.dtype)
        stages = list(enumerate(zip(self.stage_sizes, self.num_filters, strict=True), start=1))
        for stage, (size, filters) in stages[start:]:
            for index in range(1, size + 1):
                x = conv(filters, name=f"conv{stage}_{index}")(x)
                if self.batch_norm:
                    norm = BatchNorm(name=f"bn{stage}_{index}", **dtypes)
                    x = norm(x, train=train, activation=nn.relu)
                else:
                    x = layers.Function(nn.relu)(x)
            x = layers.Function(functools.partial(layers.max_pool, window=2))(x)
            self.sow("intermediates", f"stage{stage}", x)
            if stage == stop:
                return x
        pool_size, hidden_sizes = CLASSIFIERS[self.classifier]
        pool = functools.partial(layers.adaptive_avg_pool, size=pool_size)
        x = lax.collapse(layers.Function(pool)(x), 1)
        for index, features in enumerate(hidden_sizes, start=1):
            if index == 3:  # new layers start as PyTorch's do
                dense = functools.partial(layers.Dense, **dtypes)
            x = layers.Function(nn.relu)(dense(features, name=f"fc{index}")(x))
            x = nn.Dropout(self.dropout_rate, deterministic=not train, name=f"dropout{index}")(x)
        return layers.apply_head(x, self.num_classes, dense)
