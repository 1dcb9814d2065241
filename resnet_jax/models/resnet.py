"""Residual networks: one general `ResNet` and the blocks it is made of.

Sources: "Deep Residual Learning for Image Recognition" (He et al. 2015), "Identity Mappings in Deep
Residual Networks" (He et al. 2016), "Wide Residual Networks" (Zagoruyko and Komodakis 2016).
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnet_jax.config.checks import Bounds, Rate, checked
from resnet_jax.errors import UserError
from resnet_jax.models import layers
from resnet_jax.models.layers import Activation, CountOrNone, Depth, Depths, FloatDtype, Sizes
from resnet_jax.models.normalization import BatchNorm, relu

ModuleDef = Callable[..., Any]

Shortcut = Literal["projection", "projection_3x3", "convolution", "zero_pad", "none"]


class ResidualBlock(nn.Module):
    """What all residual blocks share: their fields, the shortcut, the end of the branch.

    Attributes:
      filters: width of the block; its output has `filters * expansion` channels.
      conv: constructor of convolutions, bound to dtypes and bias.
      norm: constructor of normalisations, bound to dtypes.
      strides: step of the block, pixels.
      shortcut: how the input reaches the sum where shapes differ. "projection": 1x1 convolution
        and norm; "projection_3x3": 3x3 convolution and norm; "convolution": 1x1 convolution
        alone; "zero_pad": subsampling and zero channels; "none": there is no sum at all.
      num_convs: number of 3x3 convolutions in a basic block.
      activation: the non-linearity.
      dropout_rate: dropout between the convolutions of a pre-activation block.
      attention: constructor of channel attention on the branch, bound to dtypes; None: none.
      stochastic_depth_rate: probability of dropping the branch in training.
      zero_init_residual: whether the branch starts at zero.
    """

    filters: int
    conv: ModuleDef
    norm: ModuleDef
    strides: int = 1
    shortcut: Shortcut = "projection"
    num_convs: int = 2
    activation: Activation = relu
    dropout_rate: float = 0.0
    attention: ModuleDef | None = None
    stochastic_depth_rate: float = 0.0
    zero_init_residual: bool = False

    expansion: ClassVar[int] = 1
    pre_activation: ClassVar[bool] = False

    def finish(
        self, branch: jax.Array, shortcut: jax.Array, name: str, *, train: bool
    ) -> jax.Array:
        """Ends a post-activation block: its last norm, of that name, sum and activation."""
        init = {"scale_init": nn.initializers.zeros} if self.zero_init_residual else {}
        norm = self.norm(name=name, **init)
        if self.attention is None and not self.stochastic_depth_rate:  # all in one
            added = None if self.shortcut == "none" else shortcut
            return norm(branch, train=train, shortcut=added, activation=self.activation)
        branch = norm(branch, train=train)
        return layers.Function(self.activation)(self.add_shortcut(branch, shortcut, train=train))

    @nn.nowrap
    def last_conv(self, features: int, side: int, name: str) -> nn.Module:
        """Returns the convolution that ends the branch of a pre-activation block.

        Here it is the kernel that starts at zero: a norm at zero before an activation would get no
        gradient, ever.
        """
        init = {"kernel_init": nn.initializers.zeros} if self.zero_init_residual else {}
        return self.conv(features, (side, side), 1, side // 2, name=name, **init)

    @nn.nowrap
    def same_shape(self, x: jax.Array) -> bool:
        """Returns whether the block's output has the shape of its input `x`."""
        return self.strides == 1 and x.shape[-1] == self.filters * self.expansion

    def project(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Returns the shortcut of `x`, `[batch, height', width', filters * expansion]`."""
        features = self.filters * self.expansion
        if self.shortcut == "none":
            return x
        if self.shortcut == "zero_pad":
            missing = features - x.shape[-1]
            if missing < 0:
                raise UserError("shortcut 'zero_pad' needs stages that never narrow (num_filters)")
            pads = ((0, 0), (0, 0), (0, 0), (missing // 2, missing - missing // 2))
            return jnp.pad(x[:, :: self.strides, :: self.strides], pads)
        side, padding = (3, 1) if self.shortcut == "projection_3x3" else (1, 0)
        conv = self.conv(features, (side, side), self.strides, padding, name="shortcut_conv")
        x = conv(x)
        if self.shortcut == "convolution":
            return x
        return self.norm(name="shortcut_bn")(x, train=train)

    def add_shortcut(self, branch: jax.Array, shortcut: jax.Array, *, train: bool) -> jax.Array:
        """Returns branch + shortcut projection, with the branch's regularisers applied."""
        if self.attention is not None:
            branch = self.attention(name="squeeze_excitation")(branch)
        if self.shortcut == "none":
            return branch
        if rate := self.stochastic_depth_rate:  # the branch of a whole image (Huang et al. 2016)
            drop = nn.Dropout(rate, (1, 2, 3), deterministic=not train, name="stochastic_depth")
            branch = drop(branch)
        return branch + shortcut


class BasicBlock(ResidualBlock):
    """3x3 convolutions, each with a norm; the activation follows the sum."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps `[batch, height, width, channels]` to `[batch, height', width', filters]`."""
        shortcut = x if self.same_shape(x) else self.project(x, train=train)
        for index in range(1, self.num_convs + 1):
            strides = self.strides if index == 1 else 1
            x = self.conv(self.filters, (3, 3), strides, 1, name=f"conv{index}")(x)
            if index < self.num_convs:
                x = self.norm(name=f"bn{index}")(x, train=train, activation=self.activation)
        return self.finish(x, shortcut, f"bn{self.num_convs}", train=train)


class BottleneckBlock(ResidualBlock):
    """1x1, 3x3 and 1x1 convolutions with a fourfold output; the stride is on the 3x3 one."""

    expansion: ClassVar[int] = 4

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps `[batch, height, width, channels]` to `[batch, height', width', 4 * filters]`."""
        shortcut = x if self.same_shape(x) else self.project(x, train=train)
        x = self.conv(self.filters, (1, 1), name="conv1")(x)
        x = self.norm(name="bn1")(x, train=train, activation=self.activation)
        x = self.conv(self.filters, (3, 3), self.strides, 1, name="conv2")(x)
        x = self.norm(name="bn2")(x, train=train, activation=self.activation)
        x = self.conv(self.filters * self.expansion, (1, 1), name="conv3")(x)
        return self.finish(x, shortcut, "bn3", train=train)


class PreActivationBlock(ResidualBlock):
    """Norm and activation before each 3x3 convolution; nothing follows the sum."""

    pre_activation: ClassVar[bool] = True

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps `[batch, height, width, channels]` to `[batch, height', width', filters]`."""
        y = self.norm(name="bn1")(x, train=train, activation=self.activation)
        shortcut = x if self.same_shape(x) else self.project(y, train=train)
        y = self.conv(self.filters, (3, 3), self.strides, 1, name="conv1")(y)
        y = self.norm(name="bn2")(y, train=train, activation=self.activation)
        y = nn.Dropout(self.dropout_rate, deterministic=not train, name="dropout")(y)
        y = self.last_conv(self.filters, 3, "conv2")(y)
        return self.add_shortcut(y, shortcut, train=train)


class PreActivationBottleneckBlock(ResidualBlock):
    """Norm and activation before the 1x1, 3x3 and 1x1 convolutions, with a fourfold output."""

    expansion: ClassVar[int] = 4
    pre_activation: ClassVar[bool] = True

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps `[batch, height, width, channels]` to `[batch, height', width', 4 * filters]`."""
        y = self.norm(name="bn1")(x, train=train, activation=self.activation)
        shortcut = x if self.same_shape(x) else self.project(y, train=train)
        y = self.conv(self.filters, (1, 1), name="conv1")(y)
        y = self.norm(name="bn2")(y, train=train, activation=self.activation)
        y = self.conv(self.filters, (3, 3), self.strides, 1, name="conv2")(y)
        y = self.norm(name="bn3")(y, train=train, activation=self.activation)
        y = nn.Dropout(self.dropout_rate, deterministic=not train, name="dropout")(y)
        y = self.last_conv(self.filters * self.expansion, 1, "conv3")(y)
        return self.add_shortcut(y, shortcut, train=train)


class ResNet(layers.StagedClassifier):
    """A residual network: stem, stages of blocks, global average pooling, linear head.

    Submodules are named `conv1`, `bn1`, `stage<i>_block<j>` (from 1), `head`; the output of each
    stage is sown into the collection "intermediates" as `stage<i>`.

    Attributes:
      stage_sizes: number of blocks in each stage.
      num_filters: width of each stage.
      block_cls: `BasicBlock`, `BottleneckBlock` or one of their pre-activation kin.
      num_classes: number of logits; 0: no head, the pooled features are returned.
      stem: "cifar" (3x3, stride 1) or "imagenet" (7x7, stride 2, and a 3x3 max-pool of stride 2).
      stem_filters: width of the stem; 0: that of the first stage.
      stage_strides: step of each stage, pixels; empty: 1 for the first stage and 2 for the others.
      shortcut: see `ResidualBlock`.
      num_convs: number of 3x3 convolutions in a basic block.
      conv_bias: whether convolutions have a bias.
      final_norm: whether a norm and an activation follow the last stage.
      dropout_rate: dropout between pooling and head.
      block_dropout_rate: dropout inside pre-activation blocks.
      squeeze_excitation: reduction of channel attention in every block; 0: none.
      stochastic_depth_rate: probability of dropping the last block's branch; it grows linearly
        from the first block on.
      zero_init_residual: whether each branch starts at zero: its last norm, or in pre-activation
        blocks its last convolution.
      remat: number of stages, from the first, whose blocks' activations are computed again in the
        backward pass in place of being kept: less memory, more time (Chen et al. 2016).
      virtual_batch_size: see `BatchNorm`; 0: norms are over the whole batch.
      activation: the non-linearity.
      norm_cls: constructor of the norms, called with `dtype`, `param_dtype` and `name` and, where
        they are set, `scale_init` and `virtual_batch_size`; what it makes is called as `BatchNorm`
        is, and adds the shortcut and applies the activation that it is given.
      dtype: dtype of the computation; logits are always float32.
      param_dtype: dtype of the parameters.

    Raises:
      UserError: if fields contradict each other, or `stem` or `shortcut` is none of its names.
    """

    stage_sizes: Depths
    num_filters: Sizes
    block_cls: type[ResidualBlock] = BasicBlock
    num_classes: CountOrNone = 10
    stem: Literal["cifar", "imagenet"] = "cifar"
    stem_filters: CountOrNone = 0
    stage_strides: Sizes = ()
    shortcut: Shortcut = "projection"
    num_convs: Depth = 2
    conv_bias: bool = False
    final_norm: bool = False
    dropout_rate: Rate = 0.0
    block_dropout_rate: Rate = 0.0
    squeeze_excitation: CountOrNone = 0
    stochastic_depth_rate: Rate = 0.0
    zero_init_residual: bool = False
    remat: CountOrNone = 0
    virtual_batch_size: CountOrNone = 0
    activation: Activation = relu
    norm_cls: ModuleDef = BatchNorm
    dtype: FloatDtype = jnp.float32
    param_dtype: FloatDtype = jnp.float32

    def __post_init__(self) -> None:
        """Refuses unknown names, and fields that contradict each other."""
        for field in ("stem", "shortcut"):
            checked(f"model option {field}", ResNet.__annotations__[field], getattr(self, field))
        stages = len(self.stage_sizes)
        for field in ("num_filters", "stage_strides"):
            length = len(getattr(self, field))
            if length != stages and not (field == "stage_strides" and length == 0):
                raise UserError(
                    f"model option {field} has {length} entries but stage_sizes has {stages}; "
                    "give one for each stage"
                )
        if self.num_convs != 2 and not issubclass(self.block_cls, BasicBlock):
            raise UserError("model option num_convs is for block_cls BasicBlock only")
        convs = self.num_convs * sum(self.stage_sizes)
        Bounds(high=2_000)("model options num_convs times stage_sizes, added up,", convs)
        if self.block_dropout_rate and not self.block_cls.pre_activation:
            raise UserError("model option block_dropout_rate is for pre-activation blocks only")
        if self.shortcut == "none" and (self.stochastic_depth_rate or self.zero_init_residual):
            raise UserError(
                "model options stochastic_depth_rate and zero_init_residual need a shortcut"
            )
        super().__post_init__()

    @nn.compact
    def run(self, x: jax.Array, *, train: bool, start: int = 0, stop: int = -1) -> jax.Array:
        """See `layers.StagedClassifier.run`."""
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        conv = functools.partial(layers.Conv, use_bias=self.conv_bias, **dtypes)
        norm = functools.partial(self.norm_cls, **dtypes)
        if self.virtual_batch_size:
            norm = functools.partial(norm, virtual_batch_size=self.virtual_batch_size)
        x = x.astype(self.dtype)
        if start == 0:
            stem_strides = 4 if self.stem == "imagenet" else 1
            layers.check_images(x, stem_strides * math.prod(self.strides()))
            x = self.apply_stem(x, conv, norm, train=train)

        def apply(block: ResidualBlock, x: jax.Array) -> Any:
            return block(x, train=train)

        for stage, size in list(enumerate(self.stage_sizes, start=1))[start:]:
            for index in range(1, size + 1):
                block = self.make_block(stage, index, conv, norm)
                x = (nn.remat(apply) if stage <= self.remat else apply)(block, x)
            self.sow("intermediates", f"stage{stage}", x)
            if stage == stop:
                return x
        if self.final_norm:
            x = norm(name="final_bn")(x, train=train, activation=self.activation)
        x = layers.Function(layers.global_avg_pool)(x)
        x = nn.Dropout(self.dropout_rate, deterministic=not train, name="dropout")(x)
        return layers.apply_head(x, self.num_classes, functools.partial(layers.Dense, **dtypes))

    @nn.nowrap
    def strides(self) -> Sequence[int]:
        """Returns the step of each stage, pixels."""
        return self.stage_strides or (1, *[2] * (len(self.stage_sizes) - 1))

    def apply_stem(
        self, x: jax.Array, conv: ModuleDef, norm: ModuleDef, *, train: bool
    ) -> jax.Array:
        """Returns the stem's output, `[batch, height', width', stem_filters]`."""
        filters = self.stem_filters or self.num_filters[0]
        side, strides = (7, 2) if self.stem == "imagenet" else (3, 1)
        x = conv(filters, (side, side), strides, side // 2, name="conv1")(x)
        if not self.block_cls.pre_activation:
            x = norm(name="bn1")(x, train=train, activation=self.activation)
        if self.stem == "imagenet":
            pool = functools.partial(layers.max_pool, window=3, strides=2, padding=1)
            x = layers.Function(pool)(x)
        return x

    @nn.nowrap
    def make_block(self, stage: int, index: int, conv: ModuleDef, norm: ModuleDef) -> ResidualBlock:
        """Returns block `index` of `stage`, both counted from 1."""
        depth = sum(self.stage_sizes[: stage - 1]) + index
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        attention = None
        if self.squeeze_excitation:
            attention = functools.partial(
                layers.SqueezeExcitation, self.squeeze_excitation, **dtypes
            )
        return self.block_cls(
            filters=self.num_filters[stage - 1],
            conv=conv,
            norm=norm,
            strides=self.strides()[stage - 1] if index == 1 else 1,
            shortcut=self.shortcut,
            num_convs=self.num_convs,
            activation=self.activation,
            dropout_rate=self.block_dropout_rate,
            attention=attention,
            stochastic_depth_rate=self.stochastic_depth_rate * depth / sum(self.stage_sizes),
            zero_init_residual=self.zero_init_residual,
            name=f"stage{stage}_block{index}",
        )
