"""Batch normalization with the numerics of PyTorch, and what follows it in a network.

It is three primitives of JAX: the norm, its forward derivative and its gradient. Their rules and
what they are lowered to are plain JAX; a platform may have other lowerings of them (see
`resnet_jax.cpu`), and whatever differentiates or batches a network need not know.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir


def normalize(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    *shortcut: jax.Array,
    epsilon: float,
    relu: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns `relu(x normalised over its batch * scale + bias + shortcut)`, and the statistics.

    Args:
      x: `[..., features]`.
      scale: float32 `[features]`.
      bias: float32 `[features]`.
      *shortcut: nothing, or an array like `x`.
      epsilon: added to the variance.
      relu: whether there is a ReLU; with a shortcut there must be.

    Returns:
      An array like `x`; mean and biased variance, float32 `[features]`.
    """
    x32 = x.astype(jnp.float32)
    count = x.size // x.shape[-1]
    mean = _sum(x32) / count
    rows = functools.partial(lax.broadcast_to_rank, rank=x.ndim)
    centred = x32 - rows(mean)
    var = _sum(jnp.square(centred)) / count
    y = centred * rows(lax.rsqrt(var + epsilon) * scale) + rows(bias)
    for other in shortcut:
        y = y + other.astype(jnp.float32)
    return (nn.relu(y) if relu else y).astype(x.dtype), mean, var


def _tangent(
    x: jax.Array, scale: jax.Array, bias: jax.Array, *rest: jax.Array, epsilon: float, relu: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the derivatives of what `normalize` returns in the direction of the tangents.

    `rest` is the mean, the variance, `y` if there is a ReLU, and the tangents of all arguments.
    """
    y, tangents = rest[2 : 2 + relu], rest[2 + relu :]
    norm = functools.partial(normalize, epsilon=epsilon, relu=False)
    dy, dmean, dvar = jax.jvp(norm, (x, scale, bias), tangents[:3])[1]
    dy = sum(tangents[3:], dy)
    return (jnp.where(y[0] > 0, dy, 0) if relu else dy), dmean, dvar


def normalize_gradient(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    mean: jax.Array,
    var: jax.Array,
    dy: jax.Array,
    dmean: jax.Array,
    dvar: jax.Array,
    *y: jax.Array,
    epsilon: float,
    relu: bool,
    shortcut: bool,
) -> tuple[jax.Array, ...]:
    """Returns the gradients of the arguments of `normalize`, from those of its results.

    `y` is what `normalize` returned if there is a ReLU, else nothing.
    """
    if relu:
        dy = jnp.where(y[0] > 0, dy, 0)
    dy32 = dy.astype(jnp.float32)
    count = x.size // x.shape[-1]
    rows = functools.partial(lax.broadcast_to_rank, rank=x.ndim)
    centred = x.astype(jnp.float32) - rows(mean)
    rstd = lax.rsqrt(var + epsilon)
    dbias = _sum(dy32)
    dscale = _sum(dy32 * centred) * rstd
    # Three numbers per feature, so that one pass over the two arrays gives dx.
    factor = rstd * scale
    slope = (2 * dvar - factor * rstd * dscale) / count
    offset = (dmean - factor * dbias) / count
    dx = rows(factor) * dy32 + rows(slope) * centred + rows(offset)
    return (dx.astype(x.dtype), dscale, dbias, *([dy] if shortcut else []))


def _sum(x: jax.Array) -> jax.Array:
    """Sums over all axes but the last."""

    # XLA's CPU backend reduces many axes at once slowly, and merges two reductions back into one.
    def in_two_steps(x: jax.Array) -> jax.Array:
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        return lax.optimization_barrier(x.sum(0)).sum(0)

    def at_once(x: jax.Array) -> jax.Array:
        return x.sum(range(x.ndim - 1))

    return lax.platform_dependent(x, cpu=in_two_steps, default=at_once)


def _primitive(name: str, function: Callable[..., Sequence[jax.Array]]) -> Primitive:
    """Returns a primitive that is lowered, differentiated and batched as `function` is."""
    primitive = Primitive(name)
    primitive.multiple_results = True

    @functools.partial(jax.jit, static_argnames="params")
    def run(*args: jax.Array, params: tuple[tuple[str, Any], ...]) -> Sequence[jax.Array]:
        return function(*args, **dict(params))

    def shapes(x: Any, scale: Any, *_: Any, shortcut: bool = False, **__: Any) -> list[Any]:
        return [x, scale, scale, *([x] if shortcut else [])]

    def jvp(primals: Any, tangents: Any, **params: Any) -> Any:
        tangents = tuple(map(ad.instantiate_zeros, tangents))
        return jax.jvp(functools.partial(function, **params), tuple(primals), tangents)

    def batch(args: Any, axes: Any, **params: Any) -> Any:
        results = jax.vmap(functools.partial(function, **params), axes)(*args)
        return results, [0] * len(results)

    primitive.def_impl(lambda *args, **params: run(*args, params=tuple(params.items())))
    primitive.def_abstract_eval(shapes)
    ad.primitive_jvps[primitive] = jvp
    batching.primitive_batchers[primitive] = batch
    mlir.register_lowering(primitive, mlir.lower_fun(function))
    return primitive


normalize_p = _primitive("batch_norm", normalize)
normalize_tangent_p = _primitive("batch_norm_tangent", _tangent)
normalize_gradient_p = _primitive("batch_norm_gradient", normalize_gradient)


def _jvp(primals: Any, tangents: Any, epsilon: float, relu: bool) -> Any:
    y, mean, var = results = normalize_p.bind(*primals, epsilon=epsilon, relu=relu)
    known = (*primals[:3], mean, var, *([y] if relu else []))
    tangents = map(ad.instantiate_zeros, tangents)
    return results, normalize_tangent_p.bind(*known, *tangents, epsilon=epsilon, relu=relu)


def _transpose(cotangents: Any, *args: Any, epsilon: float, relu: bool) -> Any:
    known, tangents = args[: 5 + relu], args[5 + relu :]
    gradients = normalize_gradient_p.bind(
        *known[:5],
        *map(ad.instantiate_zeros, cotangents),
        *known[5:],
        epsilon=epsilon,
        relu=relu,
        shortcut=len(tangents) == 4,
    )
    wanted = map(ad.is_undefined_primal, tangents)
    found = [g if want else None for g, want in zip(gradients, wanted, strict=True)]
    return [None] * len(known) + found


ad.primitive_jvps[normalize_p] = _jvp
ad.primitive_transposes[normalize_tangent_p] = _transpose


def relu(x: jax.Array) -> jax.Array:
    """The rectifier; a module that has it as a field can be pickled, which `nn.relu` can't."""
    return nn.relu(x)


class BatchNorm(nn.Module):
    """Batch normalization (Ioffe and Szegedy, 2015) over all axes but the last.

    A batch is normalised with its biased variance; the running variance is updated with the
    unbiased one, as PyTorch does. Statistics are float32 whatever the inputs are. Under `jit` over
    a sharded mesh they are those of the global batch, in a `shard_map` of each device's share.

    Params: `scale`, `bias`. Collection `batch_stats`: `mean`, `var`, float32.

    Attributes:
      momentum: share of the running statistics kept at each step (1 minus PyTorch's momentum).
      epsilon: added to the variance before the square root.
      scale_init: initializer of `scale`.
      dtype: dtype of the output; None keeps that of the input.
      param_dtype: dtype of `scale` and `bias`.
      virtual_batch_size: number of images that are normalised together ("ghost batch
        normalization", Hoffer et al. 2017), as the share of each of many devices is elsewhere; a
        batch that it does not divide, as 0 doesn't, is normalised as one.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    dtype: Any = None
    param_dtype: Any = jnp.float32
    virtual_batch_size: int = 0

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        train: bool,
        shortcut: jax.Array | None = None,
        activation: Callable[[jax.Array], jax.Array] | None = None,
    ) -> jax.Array:
        """Normalises `x`; returns `activation(norm(x) + shortcut)`.

        Args:
          x: [batch, ..., features], of any float dtype.
          train: use the statistics of the batch and update the running ones, which needs
            `batch_stats` to be mutable; otherwise use the running ones.
          shortcut: added to the normalised values, broadcast to their shape; None: nothing is.
          activation: what follows; None: nothing does. `nn.relu` and `relu` are computed
            with the norm.

        Returns:
          An array of the shape of `x`, in `dtype`.
        """
        features = (x.shape[-1],)
        dtype = self.dtype or x.dtype
        scale = self.param("scale", self.scale_init, features, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, features, self.param_dtype)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, features, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, features, jnp.float32)
        x, scale, bias = x.astype(dtype), scale.astype(jnp.float32), bias.astype(jnp.float32)
        if shortcut is not None:  # our kernel reads as much of it as of x
            shortcut = jnp.broadcast_to(shortcut, x.shape).astype(dtype)
        if train:
            is_relu = activation in (nn.relu, relu)
            fused = (shortcut,) if is_relu and shortcut is not None else ()
            # Of what differs between the devices of a shard_map a primitive would not tell.
            varies = any(getattr(jax.typeof(a), "vma", ()) for a in (x, scale, bias, *fused))
            function = normalize if varies else normalize_p.bind
            norm = functools.partial(function, epsilon=self.epsilon, relu=is_relu)
            size, count = self.virtual_batch_size, x.size // x.shape[-1]
            if size and x.shape[0] % size == 0:
                count = count // x.shape[0] * size
                groups = [array.reshape(-1, size, *x.shape[1:]) for array in (x, *fused)]
                y, *moments = jax.vmap(lambda x, *s: norm(x, scale, bias, *s))(*groups)
                y, (mean, var) = y.reshape(x.shape), [moment.mean(0) for moment in moments]
            else:
                y, mean, var = norm(x, scale, bias, *fused)
            if not self.is_initializing():
                unbiased = var * (count / max(count - 1, 1))
                keep = self.momentum
                running_mean.value = keep * running_mean.value + (1 - keep) * mean
                running_var.value = keep * running_var.value + (1 - keep) * unbiased
            if is_relu:
                return y
        else:
            factor = lax.rsqrt(running_var.value + self.epsilon) * scale
            rows = functools.partial(lax.broadcast_to_rank, rank=x.ndim)
            y = (x.astype(jnp.float32) - rows(running_mean.value)) * rows(factor) + rows(bias)
            y = y.astype(dtype)
        if shortcut is not None:
            y = y + shortcut
        return activation(y) if activation else y
