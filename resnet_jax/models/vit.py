"""Vision Transformer (Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words"), as timm has it."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype
from jax import lax

from resnet_jax.config.checks import Count, Rate
from resnet_jax.errors import UserError
from resnet_jax.models import layers
from resnet_jax.models.layers import CountOrNone, Depth, FloatDtype

# timm truncates this normal distribution at 100 deviations, that is, nowhere.
kernel_init = nn.initializers.normal(0.02)


def _dense(**dtypes: Any) -> Callable[..., layers.Dense]:
    zeros = nn.initializers.zeros
    return functools.partial(layers.Dense, kernel_init=kernel_init, bias_init=zeros, **dtypes)


def attention_weights(qkv: jax.Array, num_heads: int) -> tuple[jax.Array, jax.Array]:
    """Returns how much each token takes of each, and the values that it takes.

    Args:
      qkv: queries, keys and values, `[batch, tokens, 3 * width]`.
      num_heads: number of heads.

    Returns:
      float32 `[batch, heads, tokens, tokens]`, and `[batch, tokens, heads, width / heads]`.
    """
    batch, tokens, size = qkv.shape
    heads = qkv.reshape(batch, tokens, 3, num_heads, size // (3 * num_heads))
    query, key, value = jnp.moveaxis(heads, 2, 0)
    scores = jnp.einsum("bqhd,bkhd->bhqk", query * query.shape[-1] ** -0.5, key)
    return nn.softmax(scores.astype(jnp.float32)), value


class Attention(nn.Module):
    """Multi-head self-attention with one linear layer for queries, keys and values.

    Attributes:
      num_heads: number of heads; divides the width.
      dtype: dtype of the computation; the softmax is float32.
      param_dtype: dtype of the parameters.
    """

    num_heads: int
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps tokens `[batch, tokens, width]` to the same shape."""
        batch, tokens, width = x.shape
        dense = _dense(dtype=self.dtype, param_dtype=self.param_dtype)
        weights, value = attention_weights(dense(3 * width, name="qkv")(x), self.num_heads)
        x = jnp.einsum("bhqk,bkhd->bqhd", weights.astype(value.dtype), value)
        return dense(width, name="proj")(x.reshape(batch, tokens, width))


class TransformerBlock(nn.Module):
    """Pre-norm attention and a two-layer perceptron, each with a residual connection.

    Attributes:
      num_heads: number of attention heads.
      mlp_dim: width of the perceptron's hidden layer.
      stochastic_depth_rate: probability of dropping each of the two branches in training.
      dtype: dtype of the computation.
      param_dtype: dtype of the parameters.
    """

    num_heads: int
    mlp_dim: int
    stochastic_depth_rate: float = 0.0
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps tokens `[batch, tokens, width]` to the same shape."""
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        dense = _dense(**dtypes)
        norm = functools.partial(nn.LayerNorm, use_fast_variance=False, **dtypes)
        y = norm(name="norm1")(x)
        y = Attention(self.num_heads, name="attention", **dtypes)(y)
        # Drops the branch of a whole image (Huang et al. 2016).
        drop = functools.partial(
            nn.Dropout, self.stochastic_depth_rate, (1, 2), deterministic=not train
        )
        x += drop(name="drop1")(y)
        y = norm(name="norm2")(x)
        y = dense(self.mlp_dim, name="fc1")(y)
        y = layers.Function(functools.partial(nn.gelu, approximate=False))(y)
        y = dense(x.shape[-1], name="fc2")(y)
        return x + drop(name="drop2")(y)


class VisionTransformer(nn.Module):
    """Patches, a class token and learned positions, transformer blocks, a linear head.

    Submodules are named `patch_embed`, `block<i>` (from 1), `norm`, `head`; the parameters
    `cls_token` and `pos_embed` are the model's own. The output of block i, tokens `[batch,
    1 + patches, hidden_size]`, is sown into the collection "intermediates" as `stage<i>`. The
    images' size at initialisation fixes the number of positions.

    Attributes:
      patch_size: side of a patch, pixels.
      hidden_size: width of the tokens.
      num_layers: number of blocks.
      num_heads: number of attention heads.
      mlp_ratio: width of the hidden layers over that of the tokens.
      num_classes: number of logits; 0: no head, what it would read is returned.
      dropout_rate: dropout before the head.
      stochastic_depth_rate: probability of dropping the last block's branches; it grows linearly
        from zero at the first block.
      dtype: dtype of the computation; logits are always float32.
      param_dtype: dtype of the parameters.

    Raises:
      UserError: if the heads do not divide the width.
    """

    patch_size: Count
    hidden_size: Count
    num_heads: Count
    num_layers: Depth = 12
    mlp_ratio: Count = 4
    num_classes: CountOrNone = 10
    dropout_rate: Rate = 0.0
    stochastic_depth_rate: Rate = 0.0
    dtype: FloatDtype = jnp.float32
    param_dtype: FloatDtype = jnp.float32

    def __post_init__(self) -> None:
        """Refuses heads that do not divide the width."""
        if self.hidden_size % self.num_heads:
            raise UserError(
                f"model option num_heads={self.num_heads} must divide hidden_size="
                f"{self.hidden_size}"
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps images to logits.

        Args:
          x: normalised images, `[batch, height, width, channels]`.
          train: whether to apply dropout and stochastic depth.

        Returns:
          Logits, float32 `[batch, num_classes]`.

        Raises:
          UserError: if the images are smaller than a patch, or no whole number of patches.
        """
        layers.check_images(x, self.patch_size)
        if x.shape[1] % self.patch_size or x.shape[2] % self.patch_size:
            raise UserError(
                f"images of {x.shape[1]}x{x.shape[2]} pixels can't be cut into patches of "
                f"{self.patch_size}x{self.patch_size}; give multiples of {self.patch_size}"
            )
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = self.embed(x.astype(self.dtype))
        for index in range(1, self.num_layers + 1):
            rate = self.stochastic_depth_rate * (index - 1) / max(1, self.num_layers - 1)
            mlp_dim = self.mlp_ratio * self.hidden_size
            block = TransformerBlock(self.num_heads, mlp_dim, rate, name=f"block{index}", **dtypes)
            x = block(x, train=train)
            self.sow("intermediates", f"stage{index}", x)
        x = nn.LayerNorm(use_fast_variance=False, name="norm", **dtypes)(x)[:, 0]
        x = nn.Dropout(self.dropout_rate, deterministic=not train, name="dropout")(x)
        return layers.apply_head(x, self.num_classes, _dense(**dtypes))

    def embed(self, x: jax.Array) -> jax.Array:
        """Returns the tokens of images, `[batch, 1 + patches, hidden_size]`."""
        side = self.patch_size
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        patch_embed = layers.Conv(
            self.hidden_size, (side, side), side, use_bias=True, name="patch_embed", **dtypes
        )
        x = lax.collapse(patch_embed(x), 1, 3)
        token_init = nn.initializers.normal(1e-6)
        token = self.param("cls_token", token_init, (1, 1, self.hidden_size), self.param_dtype)
        token = jnp.zeros_like(x[:, :1]) + token.astype(self.dtype)  # split over devices as x is
        x = jnp.concatenate([token, x], axis=1)
        return x + self.param("pos_embed", kernel_init, (1, *x.shape[1:]), self.param_dtype).astype(
            self.dtype
        )
