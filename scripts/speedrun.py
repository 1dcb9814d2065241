"""94 and 96 % on CIFAR-10 as fast as can be: the speed records (Jordan 2024), in one file.

python scripts/speedrun.py --optimizer=muon --seeds=200 --json=speedrun94.json
python scripts/speedrun.py --optimizer=muon --epochs=9 --seeds=3        on a CPU
python scripts/speedrun.py --record=96 --seeds=100
python scripts/speedrun.py --optimizer=muon --epochs=9 --resolutions=24,28,32
python scripts/speedrun.py --source=sample --epochs=3        a try without the data

record, optimizer   published mean test %   published time, one A100   expected test %
94, SGD             94.01, 1,000 runs       3.09 s, 9.9 epochs         94.0
94, Muon            94.01, 200 runs         2.59 s, 8 epochs           94.0
96, SGD             96.03, 400 runs         34.7 s, 37 epochs          96.0

Measured: the second command (docs/guides/speed.md). Not measured yet: all on GPUs.

A training, from random weights and whitening to the last epoch, is one compiled program of seed,
images and labels; another scores the test set, which has no other use. "Training" is the time of
the first, "time" that of both. Neither counts loading, with the data on the device, nor
compilation; on a GPU a run with made-up labels comes first. The 95 % interval is that of the mean,
by Student's t. On a CPU a line says how each epoch went, and convolutions are oneDNN's (the extra
cpu); XLA's own would take far longer in such a program.

From "94% on CIFAR-10 in 3.29 Seconds on a Single GPU" (arXiv:2404.00498) and its code, airbench.
Ours differ in this: 10 epochs by SGD in place of 9.9, float32 parameters, and bfloat16 in place of
float16. The images of `--resolutions` are the newest record's: scaled down at first, in equal parts
of the training. That takes its global max-pool, which at 32 pixels is the others' pool of three.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import os
import pathlib
import signal
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from resnet_jax import cpu
from resnet_jax.config import default_config
from resnet_jax.data.datasets import Examples
from resnet_jax.data.registry import load_dataset
from resnet_jax.errors import UserError
from resnet_jax.files import write_atomically, writing
from resnet_jax.platform import compute_dtype, enable_cache, keep_freed_memory, memory_errors
from resnet_jax.runs.folder import provenance

Params = dict[str, jax.Array]  # float32, by name: conv1_1, norm1_1, ..., head
Stats = dict[str, tuple[jax.Array, jax.Array]]  # running mean and variance of each norm
Net = tuple[Params, Stats]

NUM_CLASSES = 10
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of CIFAR-10's training images
LABEL_SMOOTHING = 0.2  # so few epochs should not go into fitting labels exactly

WHITENING_SIZE = 2  # side of the patches, pixels
WHITENING_IMAGES = 5000  # enough for the covariance of 12 numbers
WHITENING_EPSILON = 5e-4  # added to the variances, so that the weakest directions aren't blown up
WHITENING_BIAS_EPOCHS = 3  # it is trained for; after that no gradient goes back to the first layer

NORM_EPSILON = 1e-12  # smaller than any variance

MOMENTUM = 0.85  # Nesterov's, of SGD
# The records sum the loss over a batch and divide SGD's learning rate and decay by this: the sum of
# the steps that one gradient leads to, for 1,024 images. So both mean the same at any momentum.
SGD_SCALE = 1024 * (1 + 1 / (1 - MOMENTUM))
LOOKAHEAD_STEPS, LOOKAHEAD_DECAY, LOOKAHEAD_POWER = 5, 0.95, 3  # the average grows longer with time

MUON_MOMENTUM = 0.6  # Nesterov's, of Muon
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # as steep as can be at 0: weak directions grow fastest
NEWTON_SCHULZ_STEPS = 3

EVAL_BATCH_SIZE = 400  # images, of which there are six views
KINDS = ("conv", "norm", "head", "whitening_bias")  # of parameters that are trained


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Net, data and optimizer of a record; the defaults are those of the 94 % by SGD."""

    widths: tuple[int, ...] = (64, 256, 256)  # filters of each group
    convs: int = 2  # convolutions in each group
    residual: bool = False  # a group's first activation is added before its last one
    norm_kept: float = 0.6  # share of the running statistics that a step keeps
    whitening_bias: float = 0.0  # bound of the whitening layer's random biases
    unit_head: bool = False  # the last layer's random weights are scaled to deviation 1
    logit_scale: float = 1 / 9
    epochs: int = 10
    batch_size: int = 1024
    crop_padding: int = 2  # pixels that an image is moved by at most, both ways
    cutout: int = 0  # side of the square that is blanked, pixels
    resolutions: tuple[int, ...] = (32,)  # sides of the images, each for an equal share of epochs
    muon: bool = False  # Muon trains the convolutions, and all rates fall to 0; no lookahead
    rate: float = 11.5 / SGD_SCALE  # learning rate at the peak, for the loss summed over a batch
    rates: tuple[float, ...] = (1, 64, 1, 1)  # of KINDS, times `rate`: norms' biases learn fast
    decay: float = 0.0153 * 1024 / SGD_SCALE  # share of a weight that a step at the peak takes off
    schedule: tuple[float, float, float] = (0.2, 0.23, 0.07)  # SGD's: first rate, peak's time, last


MUON = Recipe(
    whitening_bias=12**-0.5,  # PyTorch's default, for 2 x 2 pixels of 3 channels
    unit_head=True,
    logit_scale=1 / 256,
    epochs=8,
    batch_size=2000,
    muon=True,
    rate=1,
    rates=(0.24, 0.053, 0.67, 0.053),
    decay=2e-6 * 2000,  # not of convolutions, which Muon scales to a norm
)
WIDE = Recipe(
    widths=(128, 384, 512),
    convs=3,
    residual=True,
    norm_kept=0.9,
    epochs=37,
    crop_padding=4,
    cutout=12,
    rate=9.0 / SGD_SCALE,
    decay=0.012 * 1024 / SGD_SCALE,
    schedule=(0.2, 0.1, 0.0),
)
RECIPES = {("94", "sgd"): Recipe(), ("94", "muon"): MUON, ("96", "sgd"): WIDE}


# ------------------------------------------------------------------------------------- the network


def conv(x: jax.Array, kernel: jax.Array, before: int, after: int) -> jax.Array:
    """Convolves `[batch, height, width, channels]`, padded on both axes, with a kernel HWIO."""
    pads, layout = ((before, after), (before, after)), ("NHWC", "HWIO", "NHWC")
    kernel = kernel.astype(x.dtype)
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), pads, dimension_numbers=layout)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def max_pool(x: jax.Array, size: int) -> jax.Array:
    """Takes maxima of windows side by side, which fill `x`, `[batch, height, width, channels]`."""
    return _max_pool(x, size)[0]


def _max_pool(x: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """Returns the maxima and where in its window each is, which is all that the gradient needs."""
    batch, height, width, channels = x.shape
    windows = x.reshape(batch, height // size, size, width // size, size, channels)
    best = windows[:, :, 0, :, 0]
    winner = jnp.zeros(best.shape, jnp.int8)
    for place in range(1, size * size):
        other = windows[:, :, place // size, :, place % size]
        better = (other > best) | jnp.isnan(other)
        best, winner = jnp.where(better, other, best), jnp.where(better, jnp.int8(place), winner)
    return best, winner


def _max_pool_gradient(size: int, winner: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    batch, rows, columns, channels = gradient.shape
    places = jnp.arange(size * size, dtype=jnp.int8).reshape(size, 1, size, 1)
    won = winner[:, :, None, :, None] == places
    spread = jnp.where(won, gradient[:, :, None, :, None], 0)
    return (spread.reshape(batch, rows * size, columns * size, channels),)


max_pool.defvjp(_max_pool, _max_pool_gradient)


def _mean(x: jax.Array) -> jax.Array:
    """Returns each channel's mean, axis by axis: many times faster than at once by XLA on a CPU."""
    return x.mean(1).mean(1).mean(0)


@jax.custom_vjp
def batch_norm(x: jax.Array, bias: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalises `[batch, height, width, channels]` in float32; returns mean and variance too."""
    return _batch_norm(x, bias)[0]


def _batch_norm(x: jax.Array, bias: jax.Array) -> Any:
    mean = _mean(x.astype(jnp.float32))
    var = _mean(jnp.square(x.astype(jnp.float32) - mean))
    return (_normalized(x, mean, var, bias), mean, var), (x, mean, var)


def _normalized(x: jax.Array, mean: jax.Array, var: jax.Array, bias: Any) -> jax.Array:
    scale = jax.lax.rsqrt(var + NORM_EPSILON)
    return ((x.astype(jnp.float32) - mean) * scale + bias).astype(x.dtype)


def _batch_norm_gradient(saved: Any, gradients: Any) -> tuple[jax.Array, jax.Array]:
    (x, mean, var), gradient = saved, gradients[0].astype(jnp.float32)
    normal = _normalized(x.astype(jnp.float32), mean, var, 0)
    shift, slope = _mean(gradient), _mean(gradient * normal)
    result = (gradient - shift - slope * normal) * jax.lax.rsqrt(var + NORM_EPSILON)
    return result.astype(x.dtype), shift * (x.size // x.shape[-1])


batch_norm.defvjp(_batch_norm, _batch_norm_gradient)


def gelu(x: jax.Array) -> jax.Array:
    """Returns `x` times the share of the normal distribution below it, computed in float32."""
    x32 = x.astype(jnp.float32)
    return (0.5 * x32 * (1 + jax.lax.erf(0.5**0.5 * x32))).astype(x.dtype)


def layers(recipe: Recipe) -> Iterator[tuple[str, int, int]]:
    """Yields each convolution's name, its place in its group, from 1, and its filters."""
    for group, width in enumerate(recipe.widths, start=1):
        yield from ((f"{group}_{i}", i, width) for i in range(1, recipe.convs + 1))


def forward(recipe: Recipe, net: Net, x: jax.Array, *, train: bool) -> tuple[jax.Array, Stats]:
    """Returns logits, float32 `[batch, classes]`, and the running statistics after the step.

    A whitening layer, groups of convolutions that halve the image, a global max-pool, and a linear
    layer. Each convolution has a norm and an activation, the first of a group a pool before them.
    Images are normalised, `[batch, side, side, 3]`, and of the dtype of the computation.
    """
    (params, stats), after = net, {}
    x = conv(x, params["whitening_kernel"], 0, 0) + params["whitening_bias"].astype(x.dtype)
    first = x = gelu(x)
    for name, place, _ in layers(recipe):
        # The pool drops the last row and column of an odd side: they need no convolution.
        x = conv(x, params[f"conv{name}"], 1, 1 - x.shape[1] % 2 if place == 1 else 1)
        x, bias, kept = max_pool(x, 2) if place == 1 else x, params[f"norm{name}"], recipe.norm_kept
        if train:
            (old_mean, old_var), (x, mean, var) = stats[name], batch_norm(x, bias)
            after[name] = kept * old_mean + (1 - kept) * mean, kept * old_var + (1 - kept) * var
        else:
            x = _normalized(x, *stats[name], bias)
        x = gelu(x + first if recipe.residual and place == recipe.convs else x)
        first = x if place == 1 else first
    x = max_pool(x, x.shape[1])[:, 0, 0]
    return recipe.logit_scale * (x @ params["head"].astype(x.dtype)).astype(jnp.float32), after


def whitening_kernel(images: jax.Array) -> jax.Array:
    """Returns filters that map patches to their principal directions, each scaled to variance 1.

    The second half are the negatives of the first, so that no sign is lost in an activation (Page
    2019, "How to Train Your ResNet 8"). The covariance is about zero, not about the mean. Images
    are normalised, float32 `[batch, height, width, channels]`, filters HWIO.
    """
    size, (_, height, width, channels) = WHITENING_SIZE, images.shape
    rows, columns, places = height - size + 1, width - size + 1, range(size)
    parts = [images[:, i : i + rows, j : j + columns] for i in places for j in places]
    patches = jnp.concatenate(parts, -1).reshape(-1, size * size * channels)
    highest = jax.lax.Precision.HIGHEST  # accelerators would round the inputs
    covariance = jnp.matmul(patches.T, patches, precision=highest) / len(patches)
    variances, directions = jnp.linalg.eigh(covariance)
    filters = directions / jnp.sqrt(variances + WHITENING_EPSILON)
    return jnp.concatenate([filters, -filters], axis=1).reshape(size, size, channels, -1)


def _uniform(key: jax.Array, shape: tuple[int, ...], bound: float) -> jax.Array:
    return bound * jax.random.uniform(key, shape, minval=-1, maxval=1)


def identity_kernel(key: jax.Array, inputs: int, outputs: int) -> jax.Array:
    """Returns a kernel HWIO whose first outputs are its inputs; the others are PyTorch's random."""
    kernel = _uniform(key, (3, 3, inputs, outputs), (9 * inputs) ** -0.5)
    channels = jnp.arange(min(inputs, outputs))
    return kernel.at[..., channels].set(0).at[1, 1, channels, channels].set(1)


def initial_net(recipe: Recipe, key: jax.Array, images: jax.Array) -> Net:
    """Returns the net before training, which whitens images, uint8 `[count, height, width, 3]`."""
    kernel, convs = whitening_kernel(normalized(images)), list(layers(recipe))
    channels, (bias_key, head_key, *keys) = kernel.shape[-1], jax.random.split(key, 2 + len(convs))
    bias = _uniform(bias_key, (channels,), recipe.whitening_bias)
    params, stats = {"whitening_kernel": kernel, "whitening_bias": bias}, {}
    for key, (name, _, width) in zip(keys, convs, strict=True):
        params[f"conv{name}"] = identity_kernel(key, channels, width)
        params[f"norm{name}"] = jnp.zeros(width)
        stats[name], channels = (jnp.zeros(width), jnp.ones(width)), width
    head = _uniform(head_key, (channels, NUM_CLASSES), channels**-0.5)
    return params | {"head": head / head.std() if recipe.unit_head else head}, stats


# ---------------------------------------------------------------------------------------- the data


class Batch(NamedTuple):
    """Which images a step takes and what becomes of them; for an epoch, with steps in front."""

    indices: jax.Array  # positions in the training set, int32 [batch]
    flips: jax.Array  # whether each is mirrored, bool [batch]
    corners: jax.Array  # where its crop begins in the padded image, int32 [batch, 2]
    holes: jax.Array  # where the square that is blanked begins, int32 [batch, 2]


def epoch_batches(recipe: Recipe, key: jax.Array, epoch: jax.Array, images: jax.Array) -> Batch:
    """Returns the batches of an epoch, which `key` decides; images that are left over are dropped.

    Flips alternate: an image is mirrored or not at random in the first epoch, and from then on
    every other time, so that it is seen from both sides in every two epochs.
    """
    count, height, width, _ = images.shape
    shape = (count // recipe.batch_size, recipe.batch_size)
    flips, key = jax.random.split(key)
    order, corners, holes = jax.random.split(jax.random.fold_in(key, epoch), 3)
    indices = jax.random.permutation(order, count)[: shape[0] * shape[1]].reshape(shape)
    mirrored = jax.random.bernoulli(flips, shape=(count,))[indices]
    corners = jax.random.randint(corners, (*shape, 2), 0, 2 * recipe.crop_padding + 1)
    ends = jnp.array([height, width]) - recipe.cutout + 1
    holes = jax.random.randint(holes, (*shape, 2), 0, ends)
    return Batch(indices, mirrored ^ (epoch % 2 == 1), corners, holes)


def normalized(images: jax.Array) -> jax.Array:
    """Returns uint8 images as float32 of mean 0 and deviation 1."""
    return (images.astype(jnp.float32) / 255 - jnp.array(MEAN)) / jnp.array(STD)


def padded(images: jax.Array, pixels: int) -> jax.Array:
    """Returns images, `[batch, height, width, channels]`, continued by their mirror images."""
    pads = (0, 0), (pixels, pixels), (pixels, pixels), (0, 0)
    return jnp.pad(images, pads, mode="reflect")


def augmented(recipe: Recipe, images: jax.Array, batch: Batch, side: int) -> jax.Array:
    """Returns a batch, float32 `[batch, side, side, channels]`, of all images, padded and uint8."""
    _, height, width, channels = images.shape
    rows, columns = (jnp.arange(n - 2 * recipe.crop_padding) for n in (height, width))
    size = (1, len(rows), len(columns), channels)

    def crop(index: jax.Array, corner: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(images, (index, *corner, 0), size)[0]

    x = jax.vmap(crop)(batch.indices, batch.corners)
    x = normalized(jnp.where(batch.flips[:, None, None, None], x[:, :, ::-1], x))
    if recipe.cutout:
        y0, x0 = (batch.holes[:, axis, None] for axis in (0, 1))
        inside = ((rows >= y0) & (rows < y0 + recipe.cutout))[:, :, None]
        inside &= ((columns >= x0) & (columns < x0 + recipe.cutout))[:, None, :]
        x = jnp.where(inside[..., None], 0, x)
    if side == len(rows):
        return x
    return jax.image.resize(x, (len(x), side, side, channels), "linear", antialias=False)


def views(images: jax.Array) -> list[tuple[float, jax.Array]]:
    """Returns what an image is judged by, with weights that add up to 1; the first is the image.

    Half of the weight has the image and its mirror image, half those of the image moved by a pixel
    along the diagonal, both ways. Images are `[batch, height, width, channels]`.
    """
    (height, width), wide = images.shape[1:3], padded(images, 1)
    crops = [(0.25, images), (0.125, wide[:, :height, :width]), (0.125, wide[:, 2:, 2:])]
    return [(weight, view) for weight, crop in crops for view in (crop, crop[:, :, ::-1])]


# ---------------------------------------------------------------------------------- the optimizers


def orthogonalized(matrix: jax.Array) -> jax.Array:
    """Returns a matrix of the same singular vectors, with singular values of about 1, in bfloat16.

    Newton and Schulz's iteration takes only products: each step applies a polynomial to the
    singular values. Three of them raise those above 0.02 to between 0.6 and 1.3.
    """
    x = (matrix / (jnp.linalg.norm(matrix) + 1e-7)).astype(jnp.bfloat16)
    tall = x.shape[0] > x.shape[1]
    x, (a, b, c) = x.T if tall else x, NEWTON_SCHULZ  # the products of the shorter side are smaller
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.T
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.T if tall else x


def updated(
    recipe: Recipe, params: Params, velocities: Params, gradients: Params, epoch: jax.Array
) -> tuple[Params, Params]:
    """Returns parameters and velocities after a step, so many epochs after the beginning.

    SGD with Nesterov's momentum, or, for convolutions, Muon (Jordan 2024): its steps have the same
    size in all directions, and kernels the same norm before each. Gradients are those of the loss
    summed over the batch; what has none stays as it is.
    """
    params, velocities, (initial, peak, final) = {**params}, {**velocities}, recipe.schedule
    for name, gradient in gradients.items():
        kind, param = name.rstrip("_0123456789"), params[name]
        rate, by_muon = (
            recipe.rate * recipe.rates[KINDS.index(kind)],
            recipe.muon and kind == "conv",
        )
        if recipe.muon:
            end = WHITENING_BIAS_EPOCHS if kind == "whitening_bias" else recipe.epochs
            factor = 1 - epoch / end
        else:
            points = jnp.array([0, peak, 1]), jnp.array([initial, 1, final])
            factor = jnp.interp(epoch / recipe.epochs, *points)
        momentum = MUON_MOMENTUM if by_muon else MOMENTUM
        gradient += 0 if by_muon else recipe.decay / rate * param
        velocities[name] = momentum * velocities[name] + gradient
        step = gradient + momentum * velocities[name]
        if by_muon:
            filters = param.shape[-1]
            step = orthogonalized(step.reshape(-1, filters)).reshape(param.shape)
            param = param * (filters**0.5 / jnp.linalg.norm(param))
        params[name] = param - factor * rate * step
    return params, velocities


def lookahead(slow: Net, fast: Net, step: jax.Array, total_steps: int) -> tuple[Net, Net]:
    """Returns slow and fast nets after so many steps ("Lookahead Optimizer", Zhang et al. 2019).

    Every few steps the slow net moves towards the fast one, which starts anew from there. The share
    that the slow one keeps grows with time, and statistics take part.
    """
    kept = LOOKAHEAD_DECAY**LOOKAHEAD_STEPS * (step / total_steps) ** LOOKAHEAD_POWER
    due = step % LOOKAHEAD_STEPS == 0
    moved = jax.tree.map(lambda a, b: a * kept + b * (1 - kept), slow, fast)
    choose = functools.partial(jax.tree.map, lambda a, b: jnp.where(due, a, b), moved)
    return choose(slow), choose(fast)


# ------------------------------------------------------------------------------------ the training


class State(NamedTuple):
    """What a training carries from step to step."""

    fast: Net  # what is trained
    slow: Net | None  # its average by lookahead, which is evaluated, if there is one
    velocities: Params


def train_step(
    recipe: Recipe,
    frozen: tuple[str, ...],
    state: State,
    batch: tuple[jax.Array, jax.Array],
    step: jax.Array,
    total_steps: int,
) -> tuple[State, jax.Array]:
    """Returns the state after a step and its mean loss; `step` steps were taken before.

    A batch is inputs, `[batch, side, side, channels]`, and labels, int32 `[batch]`; parameters that
    are frozen are not trained.
    """
    (inputs, labels), (params, stats), slow = batch, state.fast, state.slow
    right = jax.nn.one_hot(labels, NUM_CLASSES)
    targets = (1 - LABEL_SMOOTHING) * right + LABEL_SMOOTHING / NUM_CLASSES

    def summed_loss(trained: Params) -> tuple[jax.Array, Stats]:
        logits, after = forward(recipe, (params | trained, stats), inputs, train=True)
        return -(targets * jax.nn.log_softmax(logits)).sum(), after

    trained = {name: param for name, param in params.items() if name not in frozen}
    (loss, after), gradients = jax.value_and_grad(summed_loss, has_aux=True)(trained)
    epoch = step / total_steps * recipe.epochs
    params, velocities = updated(recipe, params, state.velocities, gradients, epoch)
    fast = params, after
    if slow:
        slow, fast = lookahead(slow, fast, step + 1, total_steps)
    return State(fast, slow, velocities), loss / len(labels)


def phases(recipe: Recipe) -> Iterator[tuple[int, tuple[str, ...], list[int]]]:
    """Yields the images' side, the parameters that are frozen, and the epochs that have both."""
    sides, epochs = recipe.resolutions, range(recipe.epochs)
    frozen = ("whitening_kernel",), ("whitening_kernel", "whitening_bias")

    def kind(epoch: int) -> tuple[int, tuple[str, ...]]:
        return sides[epoch * len(sides) // len(epochs)], frozen[epoch >= WHITENING_BIAS_EPOCHS]

    for (side, names), group in itertools.groupby(epochs, kind):
        yield side, names, list(group)


def train(
    recipe: Recipe, dtype: str, report: Any, seed: jax.Array, images: jax.Array, labels: jax.Array
) -> tuple[Net, jax.Array]:
    """Returns the trained net, and the mean loss of each step, float32 `[epochs, steps]`.

    To be compiled as a whole. The seed decides all that is random. Images are uint8 `[images,
    height, width, channels]`; `report`, if any, is called with each epoch's number and mean loss.
    """
    key, init_key = jax.random.split(jax.random.key(seed))
    wide, steps = padded(images, recipe.crop_padding), len(images) // recipe.batch_size

    def run_phase(state: State, side: int, frozen: tuple[str, ...], epochs: list[int]) -> Any:
        def run_step(state: State, xs: tuple[Batch, jax.Array]) -> tuple[State, jax.Array]:
            batch, step = xs
            inputs = augmented(recipe, wide, batch, side).astype(dtype), labels[batch.indices]
            return train_step(recipe, frozen, state, inputs, step, recipe.epochs * steps)

        def run_epoch(state: State, epoch: jax.Array) -> tuple[State, jax.Array]:
            batches = epoch_batches(recipe, key, epoch, images)
            numbers = epoch * steps + jnp.arange(steps)
            state, losses = jax.lax.scan(run_step, state, (batches, numbers))
            if report:
                jax.debug.callback(report, epoch, losses.mean())
            return state, losses

        return jax.lax.scan(run_epoch, state, jnp.array(epochs))

    losses, net = [], initial_net(recipe, init_key, images[:WHITENING_IMAGES])
    state = State(net, None if recipe.muon else net, jax.tree.map(jnp.zeros_like, net[0]))
    for phase in phases(recipe):
        state, found = run_phase(state, *phase)
        losses.append(found)
    return state.slow or state.fast, jnp.concatenate(losses)


def score(recipe: Recipe, dtype: str, net: Net, images: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns sums: loss with, hits without and hits with test-time augmentation, float32 `[3]`.

    Images are uint8 `[batches, batch, height, width, channels]`; those of label -1 don't count.
    """

    def sums(batch: tuple[jax.Array, jax.Array]) -> jax.Array:
        weights, inputs = zip(*views(normalized(batch[0])), strict=True)
        logits, _ = forward(recipe, net, jnp.concatenate(inputs).astype(dtype), train=False)
        logits = logits.reshape(len(weights), -1, NUM_CLASSES)
        mean = (jnp.array(weights)[:, None, None] * logits).sum(0)
        loss = -(jax.nn.one_hot(batch[1], NUM_CLASSES) * jax.nn.log_softmax(mean)).sum()
        return jnp.stack([loss, *((x.argmax(-1) == batch[1]).sum() for x in (logits[0], mean))])

    return jax.lax.map(sums, (images, labels)).sum(0)


def runs(
    recipe: Recipe, dtype: str, train_set: Examples, test_set: Examples, seeds: range
) -> Iterator[dict[str, float]]:
    """Compiles both programs; yields what a training by each seed scores, and how long it took.

    Raises:
      UserError: if the loss was not finite.
    """
    count, missing = len(test_set.labels), -len(test_set.labels) % EVAL_BATCH_SIZE
    images = np.pad(test_set.images, ((0, missing), (0, 0), (0, 0), (0, 0)))
    labels = np.pad(test_set.labels, (0, missing), constant_values=-1)
    images = images.reshape(-1, EVAL_BATCH_SIZE, *images.shape[1:])
    test = jax.device_put((images, labels.reshape(-1, EVAL_BATCH_SIZE)))
    data = jax.device_put((train_set.images, train_set.labels))
    begin, on_cpu = 0.0, jax.default_backend() == "cpu"

    def report(epoch: jax.Array, loss: jax.Array) -> None:
        seconds = time.perf_counter() - begin
        print(f"  epoch {int(epoch) + 1:<3} loss {float(loss):.3f}  {seconds:6.1f} s", flush=True)

    whole = functools.partial(train, recipe, dtype, report if on_cpu else None)
    lowered = jax.jit(whole).lower(jnp.int32(0), *data)
    training, (net, _) = lowered.compile(), lowered.out_info
    scoring = jax.jit(functools.partial(score, recipe, dtype)).lower(net, *test).compile()
    if not on_cpu:  # the first run on a GPU also loads its libraries
        np.asarray(scoring(training(jnp.int32(0), data[0], 0 * data[1])[0], *test))
    for seed in seeds:
        begin = time.perf_counter()
        net, losses = training(jnp.int32(seed), *data)
        finite = np.isfinite(np.asarray(losses)).ravel()
        trained = time.perf_counter()
        loss, plain, correct = np.asarray(scoring(net, *test)).tolist()
        end = time.perf_counter()
        if not finite.all():
            steps = int(finite.argmin())
            raise UserError(f"the loss is no longer finite after {steps:,} steps of seed {seed}")
        yield {
            "seed": seed,
            "seconds": end - begin,
            "training_seconds": trained - begin,
            "accuracy": 100 * correct / count,
            "accuracy_without_augmentation": 100 * plain / count,
            "loss": loss / count,
        }


# -------------------------------------------------------------------------------- the command line


def summarize(values: list[float]) -> dict[str, float | None]:
    """Returns mean, deviation, half of the mean's 95 % interval, least and greatest of numbers.

    A single one has no deviation and no interval.
    """
    count, deviation, interval = len(values), None, None
    if count > 1:
        deviation = statistics.stdev(values)
        interval = float(special.stdtrit(count - 1, 0.975)) * deviation / count**0.5
    ends = {"min": min(values), "max": max(values)}
    return {"mean": statistics.fmean(values), "std": deviation, "interval": interval} | ends


def speedrun(arguments: argparse.Namespace) -> None:
    """Runs the seeds that the command line asks for.

    Raises:
      UserError: if a flag, the data or the file of the results can't be used.
    """
    for flag, low, high in (("seeds", 1, 10**6), ("first_seed", 0, 10**9), ("epochs", 1, 10**4)):
        if (value := getattr(arguments, flag)) is not None and not low <= value <= high:
            name = flag.replace("_", "-")
            raise UserError(f"--{name} must be between {low} and {high:,}, not {value}")
    record, optimizer = arguments.record, arguments.optimizer
    if (recipe := RECIPES.get((record, optimizer))) is None:
        raise UserError(f"--record={record} has no recipe for --optimizer={optimizer}; take sgd")
    result: dict[str, Any] = {"record": record, "optimizer": optimizer, "provenance": provenance()}
    if arguments.json and not arguments.json.is_file():  # whether it can be
        _write(arguments.json, result)
    train_set, test_set, source = _load(arguments.source, arguments.data_dir)
    changes = {"epochs": arguments.epochs, "resolutions": arguments.resolutions}
    if (count := len(train_set.labels)) < recipe.batch_size:
        print(f"batches of {count:,} images, since there are no more")
        changes["batch_size"] = count
    recipe = dataclasses.replace(recipe, **{name: new for name, new in changes.items() if new})
    dtype = compute_dtype("auto") if arguments.dtype == "auto" else arguments.dtype
    home = os.path.expanduser("~")  # a record names no folder of a machine
    where = source.replace(home, "~") if len(home) > 1 else source
    result["settings"] = {**dataclasses.asdict(recipe), "dtype": dtype, "data": where}
    result["runs"] = []
    names = {
        "accuracy": "accuracy, %",
        "accuracy_without_augmentation": "without test-time augmentation, %",
        "seconds": "time, s",
        "training_seconds": "training, s",
    }
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    for run in runs(recipe, dtype, train_set, test_set, seeds):
        scores = "{accuracy:.2f} %, without augmentation {accuracy_without_augmentation:.2f} %"
        line = f"seed {{seed:<6}} {scores}  {{seconds:.3f}} s, training {{training_seconds:.3f}} s"
        print(line.format(**run), flush=True)
        result["runs"].append(run)
        result |= {name: summarize([run[name] for run in result["runs"]]) for name in names}
        _write(arguments.json, result)
    count, device = len(seeds), jax.devices()[0].device_kind
    print(f"{count} runs of the {record} % record by {optimizer}, {dtype}, on one {device}")
    for name, text in names.items():
        found = result[name]
        spread = "+- {interval:.3f}, deviation {std:.3f}, " if count > 1 else ""
        line = f"{text:35} mean {{mean:.3f}} {spread}from {{min:.2f}} to {{max:.2f}}"
        print(line.format(**found))


def _load(source: str, directory: str | None) -> tuple[Examples, Examples, str]:
    """Returns what to train on, what to test on, and where they come from."""
    config = default_config().data
    if source == "sample":
        config.name = source
    else:
        config.source, config.dir = source, directory or ""
    data = load_dataset(config, print)
    return data.train, data.test, data.source


def _write(file: pathlib.Path | None, result: dict[str, Any]) -> None:
    if file:
        with writing(f"--json {file}"):
            write_atomically(file, f"{json.dumps(result, indent=1)}\n".encode())


def _resolutions(text: str) -> tuple[int, ...]:
    sides = tuple(int(part) if part.isdecimal() else 0 for part in text.split(","))
    if not all(16 <= side <= 32 for side in sides):
        raise argparse.ArgumentTypeError(f"{text!r} are not sides from 16 to 32, such as 24,28,32")
    return sides


class _Parser(argparse.ArgumentParser):
    """A parser that says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """Refuses the command line."""
        raise UserError(message)


def main() -> int:
    """Runs the command line; returns the exit status."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = _Parser(description=__doc__, formatter_class=layout, allow_abbrev=False)
    parser.add_argument("--record", choices=("94", "96"), default="94", help="which record")
    parser.add_argument("--optimizer", choices=("sgd", "muon"), default="sgd")
    parser.add_argument("--resolutions", type=_resolutions, help="pixels, such as 24,28,32")
    parser.add_argument("--dtype", choices=("auto", "bfloat16", "float32"), default="auto")
    parser.add_argument("--epochs", type=int, help="another length of the training")
    parser.add_argument("--seeds", type=int, default=1, help="number of runs")
    parser.add_argument("--first-seed", type=int, default=0, help="seed of the first one")
    parser.add_argument("--source", default="auto", help="where the data comes from, or sample")
    parser.add_argument("--data-dir", help="a folder with CIFAR-10, or else for the cache")
    parser.add_argument("--json", type=pathlib.Path, help="file that all results are written to")
    try:
        arguments = parser.parse_args()
        keep_freed_memory()
        enable_cache()
        if jax.default_backend() == "cpu":
            cpu.enable()
        with memory_errors("this record needs a larger device"):
            speedrun(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    # Python would not see it before a program ends. The runs before are in the file of --json.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(main())
