"""94 and 96 % on CIFAR-10 in seconds of one GPU: the speed records (Jordan 2024), in one file.

python scripts/speedrun.py --seeds=200 --json=speedrun94.json
python scripts/speedrun.py --record=96 --seeds=100
python scripts/speedrun.py --dtype=float32 --epochs=8        what a CPU can do, in an hour or two
python scripts/speedrun.py --source=sample --epochs=3        a try without the data

record   published mean test %   published time, one A100   expected test %
94       94.01, 1,000 runs       3.09 s, 9.9 epochs         94.0
96       96.03, 400 runs         34.7 s                     96.0

Measured: 93.51 by one run in float32 (seed 0, two busy CPU cores, 1:27:30) of eight epochs. That
was an older form of this recipe, a config of the training program: results/ names its commit.
Expected, not measured yet: all others, on a GPU.

The clock counts random weights, whitening, training and the final evaluation, the only use of the
test set. It does not count loading, with the data on the device, nor compilation: a whole run with
made-up labels comes first. All seeds run by the same compiled functions. The 95 % interval is that
of the mean, by the normal approximation.

From "94% on CIFAR-10 in 3.29 Seconds on a Single GPU" (arXiv:2404.00498) and its code, airbench.
Ours differ in this: 10 epochs in place of 9.9, the peak of the learning rate one step earlier,
bfloat16 in place of float16, and the mean loss in place of the sum.
"""

import argparse
import dataclasses
import functools
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from resnet_jax.config import default_config
from resnet_jax.data.datasets import Examples
from resnet_jax.data.registry import load_dataset
from resnet_jax.errors import UserError
from resnet_jax.platform import enable_cache, keep_freed_memory, memory_errors
from resnet_jax.runs.folder import provenance

Tree = Any  # nested dicts of arrays

BATCH_SIZE = 1024
MOMENTUM = 0.85  # Nesterov's
# The records sum the loss over a batch and divide the learning rate by 1024 (1 + 1 / (1 -
# momentum)), which decouples it from both. On the mean loss the same steps are these, and the decay
# of a step, published as a share of the weights, goes with the learning rate.
RATE_SCALE = 1 + 1 / (1 - MOMENTUM)
NORM_RATE = 64  # the norms' biases learn so much faster, at the same decay in each step
LABEL_SMOOTHING = 0.2
INITIAL_RATE = 0.2  # the learning rate of the first step, as a share of the peak

WHITENING_SIZE = 2  # side of the patches, pixels
WHITENING_IMAGES = 5000
WHITENING_EPSILON = 5e-4  # added to the variances, so that the weakest directions aren't blown up
WHITENING_BIAS_EPOCHS = 3  # it is trained for; the published code saves time by that

LOOKAHEAD_STEPS, LOOKAHEAD_DECAY, LOOKAHEAD_POWER = 5, 0.95, 3

NORM_EPSILON = 1e-12
LOGIT_SCALE = 1 / 9
NUM_CLASSES = 10
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
EVAL_BATCH_SIZE = 400  # images, of which there are six views


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What the two records differ in; the defaults are the numbers of the 94 %.

    Attributes:
      widths: filters of each group.
      convs: convolutions in each group.
      residual: whether a group's first activation is added before its last one.
      norm_momentum: share of the running statistics that a step keeps.
      epochs: length of the training.
      learning_rate: the peak, as published.
      weight_decay: decay of a step at the peak, as published.
      peak: share of the training before the peak.
      final_rate: the learning rate of the last step, as a share of the peak.
      crop_padding: pixels that an image is moved by at most, both ways.
      cutout: side of the square that is blanked, pixels; 0: none.
    """

    widths: tuple[int, ...] = (64, 256, 256)
    convs: int = 2
    residual: bool = False
    norm_momentum: float = 0.6
    epochs: int = 10
    learning_rate: float = 11.5
    weight_decay: float = 0.0153
    peak: float = 0.23
    final_rate: float = 0.07
    crop_padding: int = 2
    cutout: int = 0


WIDE = Recipe((128, 384, 512), 3, True, 0.9, 37, 9.0, 0.012, 0.1, 0.0, crop_padding=4, cutout=12)
RECORDS = {"94": Recipe(), "96": WIDE}


# ------------------------------------------------------------------------------------- the network


def conv(x: jax.Array, kernel: jax.Array, padding: int) -> jax.Array:
    """Convolves `[batch, height, width, channels]` with a kernel HWIO."""
    pads = ((padding, padding), (padding, padding))
    layout = ("NHWC", "HWIO", "NHWC")
    kernel = kernel.astype(x.dtype)
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), pads, dimension_numbers=layout)


def max_pool(x: jax.Array, window: int) -> jax.Array:
    """Takes maxima of windows side by side; rows and columns left over are dropped."""
    rows, columns = x.shape[1] // window * window, x.shape[2] // window * window
    parts = [x[:, i:rows:window, j:columns:window] for i in range(window) for j in range(window)]

    # Comparing neighbours gives the right gradient even where XLA computes `x` anew for it, rounded
    # otherwise; comparing `x` with the maximum, as the gradient of `max` does, then fails.
    def larger(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.where((b <= a) | jnp.isnan(a), a, b)

    return functools.reduce(larger, parts)


torch_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's default


def identity_init(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns a kernel whose first outputs are its inputs: at first the signal passes unchanged."""
    height, width, inputs, outputs = shape
    channels = jnp.arange(min(inputs, outputs))
    kernel = torch_init(key, shape, jnp.float32).at[..., : len(channels)].set(0)
    return kernel.at[height // 2, width // 2, channels, channels].set(1)


class BatchNorm(nn.Module):
    """Batch normalization with a bias and no scale, in float32; running statistics as PyTorch's."""

    momentum: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Normalises `[batch, height, width, channels]`."""
        features = (x.shape[-1],)
        bias = self.param("bias", nn.initializers.zeros, features)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, features)
        running_var = self.variable("batch_stats", "var", jnp.ones, features)
        x32, mean, var = x.astype(jnp.float32), running_mean.value, running_var.value
        if train:
            kept, count = self.momentum, x.size // x.shape[-1]
            mean, var = x32.mean((0, 1, 2)), x32.var((0, 1, 2))
            running_mean.value = kept * running_mean.value + (1 - kept) * mean
            unbiased = var * (count / (count - 1))
            running_var.value = kept * running_var.value + (1 - kept) * unbiased
        return ((x32 - mean) * jax.lax.rsqrt(var + NORM_EPSILON) + bias).astype(x.dtype)


class Net(nn.Module):
    """A whitening layer, groups of convolutions that halve the image, and a linear layer.

    A group is convolution, pool, norm, activation, and convolution, norm, activation for each
    further convolution.

    Attributes:
      recipe: widths and kind of the groups.
      dtype: dtype of the computation; parameters, norms and logits are float32.
    """

    recipe: Recipe
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps normalised images, `[batch, 32, 32, 3]`, to logits, float32 `[batch, classes]`."""
        x, size = x.astype(self.dtype), WHITENING_SIZE
        features = 2 * size * size * x.shape[-1]  # each principal direction and its negative
        shape = (size, size, x.shape[-1], features)
        kernel = self.param("whitening_kernel", nn.initializers.zeros, shape)
        bias = self.param("whitening_bias", nn.initializers.zeros, (features,))
        x = conv(x, jax.lax.stop_gradient(kernel), 0) + bias.astype(x.dtype)
        x = nn.gelu(x, approximate=False)
        first = x
        for group, width in enumerate(self.recipe.widths, start=1):
            for index in range(1, self.recipe.convs + 1):
                shape = (3, 3, x.shape[-1], width)
                x = conv(x, self.param(f"conv{group}_{index}", identity_init, shape), 1)
                x = max_pool(x, 2) if index == 1 else x
                norm = BatchNorm(self.recipe.norm_momentum, name=f"norm{group}_{index}")
                x = norm(x, train=train)
                if self.recipe.residual and 1 < index == self.recipe.convs:
                    x = x + first
                x = nn.gelu(x, approximate=False)
                first = x if index == 1 else first
        x = max_pool(x, 3).mean((1, 2))
        head = self.param("head", torch_init, (x.shape[-1], NUM_CLASSES))
        return LOGIT_SCALE * (x @ head.astype(x.dtype)).astype(jnp.float32)


def whitening_kernel(images: jax.Array) -> jax.Array:
    """Returns filters that map patches to their principal directions, each scaled to variance 1.

    The second half are the negatives of the first, so that no sign is lost in an activation (Page
    2019, "How to Train Your ResNet 8"). The covariance is about zero, not about the mean.

    Args:
      images: normalised, float32 `[batch, height, width, channels]`.

    Returns:
      float32 `[size, size, channels, 2 * size * size * channels]`.
    """
    size, (_, height, width, channels) = WHITENING_SIZE, images.shape
    rows, columns = height - size + 1, width - size + 1
    patches = jnp.concatenate(
        [images[:, i : i + rows, j : j + columns] for i in range(size) for j in range(size)], -1
    ).reshape(-1, size * size * channels)
    highest = jax.lax.Precision.HIGHEST  # accelerators would round the inputs
    covariance = jnp.matmul(patches.T, patches, precision=highest) / len(patches)
    variances, directions = jnp.linalg.eigh(covariance)
    filters = directions / jnp.sqrt(variances + WHITENING_EPSILON)
    return jnp.concatenate([filters, -filters], axis=1).reshape(size, size, channels, -1)


# ---------------------------------------------------------------------------------------- the data


class Batch(NamedTuple):
    """Which images a step takes and what becomes of them; an epoch has an axis of steps in front.

    Attributes:
      indices: positions in the training set, int32 `[batch]`.
      flips: whether each is mirrored, bool `[batch]`.
      corners: where its crop begins in the padded image, int32 `[batch, 2]`.
      holes: centre of the square that is blanked, int32 `[batch, 2]`.
    """

    indices: np.ndarray | jax.Array
    flips: np.ndarray | jax.Array
    corners: np.ndarray | jax.Array
    holes: np.ndarray | jax.Array


def epochs(
    seed: int, recipe: Recipe, shape: tuple[int, ...], batch_size: int
) -> Iterator[tuple[int, Batch]]:
    """Yields each epoch's number and its batches; what is left of the images is dropped.

    Flips alternate: an image is mirrored or not at random in the first epoch, and from then on
    every other time, so that it is seen from both sides in every two epochs.

    Args:
      seed: decides all of it.
      recipe: length of the training, size of the crops.
      shape: that of the training images, `(images, height, width, channels)`.
      batch_size: images of a step.
    """
    rng = np.random.default_rng(seed)
    count, height, width, _ = shape
    coins, steps = rng.integers(2, size=count), count // batch_size
    for epoch in range(recipe.epochs):
        indices = rng.permutation(count)[: steps * batch_size].reshape(steps, batch_size)
        flips, pairs = (coins[indices] + epoch) % 2 == 1, (*indices.shape, 2)
        corners = rng.integers(2 * recipe.crop_padding + 1, size=pairs, dtype=np.int32)
        holes = rng.integers((height, width), size=pairs, dtype=np.int32)
        yield epoch, Batch(indices.astype(np.int32), flips, corners, holes)


def normalized(images: jax.Array) -> jax.Array:
    """Returns uint8 images as float32 of mean 0 and deviation 1."""
    return (images.astype(jnp.float32) / 255 - jnp.array(MEAN)) / jnp.array(STD)


def augmented(images: jax.Array, batch: Batch, recipe: Recipe) -> jax.Array:
    """Returns cropped, mirrored and blanked images, `[batch, height, width, channels]`."""
    pad, side = recipe.crop_padding, recipe.cutout
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="reflect")
    images = jax.vmap(
        lambda image, corner: jax.lax.dynamic_slice(image, (*corner, 0), images.shape[1:])
    )(padded, batch.corners)
    images = jnp.where(batch.flips[:, None, None, None], images[:, :, ::-1], images)
    if not side:
        return images
    top, left = (batch.holes[:, axis, None] - side // 2 for axis in (0, 1))
    y, x = jnp.arange(images.shape[1]), jnp.arange(images.shape[2])
    rows, columns = (y >= top) & (y < top + side), (x >= left) & (x < left + side)
    inside = rows[:, :, None] & columns[:, None, :]
    return jnp.where(inside[..., None], 0, images)


def views(images: jax.Array) -> list[tuple[float, jax.Array]]:
    """Returns what an image is judged by, with weights that add up to 1; the first is the image.

    Half of the weight has the image and its mirror image, half those of the image moved by a pixel
    along the diagonal, both ways.

    Args:
      images: `[batch, height, width, channels]`.
    """
    height, width = images.shape[1:3]
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    crops = [(0.25, images), (0.125, padded[:, :height, :width]), (0.125, padded[:, 2:, 2:])]
    return [(weight, view) for weight, crop in crops for view in (crop, crop[:, :, ::-1])]


# ------------------------------------------------------------------------------------ the training


class State(NamedTuple):
    """What a training carries from step to step.

    Attributes:
      fast: "params" and "batch_stats", which are trained.
      slow: their average by lookahead, which is evaluated.
      velocity: momentum of the parameters.
      step: steps taken, int32 scalar.
    """

    fast: Tree
    slow: Tree
    velocity: Tree
    step: jax.Array


def learning_rates(recipe: Recipe, steps: int) -> np.ndarray:
    """Returns the rate of each step, float32 `[steps]`: straight up to the peak, straight down."""
    peak = min(max(recipe.peak * steps - 1, 0), steps - 1)
    factors = np.interp(
        np.arange(steps), [0, peak, steps - 1], [INITIAL_RATE, 1, recipe.final_rate]
    )
    return np.asarray(recipe.learning_rate / RATE_SCALE * factors, np.float32)


def sgd(
    params: Tree, velocity: Tree, grads: Tree, rate: jax.Array, epoch: jax.Array, decay: float
) -> tuple[Tree, Tree]:
    """Returns the parameters and their velocity after a step of SGD with Nesterov momentum.

    Args:
      params: the parameters before.
      velocity: their velocity before.
      grads: gradients of the mean loss.
      rate: learning rate.
      epoch: epochs of training before the step.
      decay: weight decay, times the learning rate the share of the weights that a step takes.
    """

    def is_norm(path: tuple[Any, ...]) -> bool:
        return str(path[0].key).startswith("norm")

    def decayed(path: tuple[Any, ...], grad: jax.Array, param: jax.Array) -> jax.Array:
        return grad + (decay / NORM_RATE if is_norm(path) else decay) * param

    def moved(
        path: tuple[Any, ...], param: jax.Array, grad: jax.Array, velocity: jax.Array
    ) -> jax.Array:
        if path[0].key == "whitening_kernel":
            return param
        after = param - (NORM_RATE * rate if is_norm(path) else rate) * (grad + MOMENTUM * velocity)
        if path[0].key == "whitening_bias":
            return jnp.where(epoch < WHITENING_BIAS_EPOCHS, after, param)
        return after

    with_path = jax.tree_util.tree_map_with_path
    grads = with_path(decayed, grads, params)
    velocity = jax.tree.map(lambda v, g: MOMENTUM * v + g, velocity, grads)
    return with_path(moved, params, grads, velocity), velocity


def lookahead(slow: Tree, fast: Tree, step: jax.Array, total_steps: int) -> tuple[Tree, Tree]:
    """Returns slow and fast weights after a step ("Lookahead Optimizer", Zhang et al. 2019).

    Every few steps the slow weights move towards the fast ones, and the fast ones start anew from
    there. The share that the slow ones keep grows with time, and statistics take part.

    Args:
      slow: slow parameters and statistics before the step.
      fast: parameters and statistics after it.
      step: number of steps taken with it, int32 scalar.
      total_steps: steps of the whole training.
    """
    kept = LOOKAHEAD_DECAY**LOOKAHEAD_STEPS * (step / total_steps) ** LOOKAHEAD_POWER
    due = step % LOOKAHEAD_STEPS == 0
    moved = jax.tree.map(lambda a, b: a * kept + b * (1 - kept), slow, fast)

    def choose(then: Tree, otherwise: Tree) -> Tree:
        return jax.tree.map(lambda a, b: jnp.where(due, a, b), then, otherwise)

    return choose(moved, slow), choose(moved, fast)


class Runner:
    """Whole trainings by one recipe, which differ in their seed and share compiled functions."""

    def __init__(self, recipe: Recipe, dtype: str, train: Examples, test: Examples) -> None:
        """Puts the data on the device; nothing is compiled yet.

        Args:
          recipe: the recipe.
          dtype: dtype of the computation.
          train: what is trained on.
          test: what is scored.
        """
        self.recipe, self.net = recipe, Net(recipe, jnp.dtype(dtype))
        self.batch_size = min(BATCH_SIZE, len(train.labels))
        self.steps_per_epoch = len(train.labels) // self.batch_size
        self.total_steps = self.steps_per_epoch * recipe.epochs
        self.train_images, self.train_labels = jax.device_put((train.images, train.labels))
        starts = range(0, len(test.labels), EVAL_BATCH_SIZE)
        parts = [slice(start, start + EVAL_BATCH_SIZE) for start in starts]
        self.test = [jax.device_put((test.images[part], test.labels[part])) for part in parts]
        self._start = jax.jit(self._initial_state)
        self._train = jax.jit(self._train_steps, donate_argnums=0)
        self._score = jax.jit(self._eval_step)

    def warm_up(self) -> None:
        """Compiles everything, by a run whose labels are all the same class."""
        test = [(images, jnp.zeros_like(labels)) for images, labels in self.test]
        self._run(0, jnp.zeros_like(self.train_labels), test)

    def run(self, seed: int) -> dict[str, float]:
        """Returns what a training by a seed scores on the test set, and how long it took.

        Returns:
          "seed", "seconds", "accuracy" in percent, "accuracy_without_augmentation", and "loss".

        Raises:
          UserError: if the loss was not finite.
        """
        return self._run(seed, self.train_labels, self.test)

    def _run(
        self, seed: int, train_labels: jax.Array, test: list[tuple[jax.Array, jax.Array]]
    ) -> dict[str, float]:
        begin = time.perf_counter()
        state, losses = self._start(jax.random.key(seed), self.train_images), []
        rates = learning_rates(self.recipe, self.total_steps).reshape(-1, self.steps_per_epoch)
        # A loop would cost XLA's CPU backend its fast convolutions.
        size = 1 if jax.default_backend() == "cpu" else self.steps_per_epoch
        for epoch, batches in epochs(seed, self.recipe, self.train_images.shape, self.batch_size):
            for first in range(0, self.steps_per_epoch, size):
                part = slice(first, first + size)
                dispatch = Batch(*(array[part] for array in batches)), rates[epoch, part]
                state, loss = self._train(state, self.train_images, train_labels, *dispatch)
                losses.append(loss)
        sums = sum(self._score(state.slow, *batch) for batch in test)
        loss, plain, correct = np.asarray(sums, np.float64) / sum(len(labels) for _, labels in test)
        seconds = time.perf_counter() - begin
        finite = np.isfinite(np.concatenate([*map(np.asarray, losses), [loss]]))
        if not finite.all():
            steps = int(finite.argmin())
            raise UserError(f"the loss is no longer finite after {steps:,} steps of seed {seed}")
        return {
            "seed": seed,
            "seconds": seconds,
            "accuracy": 100 * float(correct),
            "accuracy_without_augmentation": 100 * float(plain),
            "loss": float(loss),
        }

    def _initial_state(self, key: jax.Array, images: jax.Array) -> State:
        inputs = normalized(images[:WHITENING_IMAGES])
        variables = self.net.init(key, inputs[:1], train=False)
        params = variables["params"] | {"whitening_kernel": whitening_kernel(inputs)}
        fast = {"params": params, "batch_stats": variables["batch_stats"]}
        velocity = jax.tree.map(jnp.zeros_like, params)
        # A copy, since no buffer can be donated twice.
        return State(fast, jax.tree.map(jnp.copy, fast), velocity, jnp.int32(0))

    def _train_steps(
        self, state: State, images: jax.Array, labels: jax.Array, batches: Batch, rates: jax.Array
    ) -> tuple[State, jax.Array]:
        """Takes the steps of some batches; returns their losses, float32 `[steps]`, too."""

        def step(state: State, xs: tuple[Batch, jax.Array]) -> tuple[State, jax.Array]:
            batch, rate = xs
            inputs = augmented(normalized(images[batch.indices]), batch, self.recipe)
            return self._train_step(state, inputs, labels[batch.indices], rate)

        if len(rates) == 1:
            state, loss = step(state, jax.tree.map(lambda array: array[0], (batches, rates)))
            return state, loss[None]
        return jax.lax.scan(step, state, (batches, rates))

    def _train_step(
        self, state: State, inputs: jax.Array, labels: jax.Array, rate: jax.Array
    ) -> tuple[State, jax.Array]:
        targets = optax.smooth_labels(jax.nn.one_hot(labels, NUM_CLASSES), LABEL_SMOOTHING)

        def mean_loss(params: Tree) -> tuple[jax.Array, Tree]:
            logits, updates = self.net.apply(
                state.fast | {"params": params}, inputs, train=True, mutable=["batch_stats"]
            )
            return optax.softmax_cross_entropy(logits, targets).mean(), updates["batch_stats"]

        params, epoch = state.fast["params"], state.step / self.steps_per_epoch
        (loss, batch_stats), grads = jax.value_and_grad(mean_loss, has_aux=True)(params)
        decay = self.recipe.weight_decay / self.recipe.learning_rate
        params, velocity = sgd(params, state.velocity, grads, rate, epoch, decay)
        fast, step = {"params": params, "batch_stats": batch_stats}, state.step + 1
        slow, fast = lookahead(state.slow, fast, step, self.total_steps)
        return State(fast, slow, velocity, step), loss

    def _eval_step(self, variables: Tree, images: jax.Array, labels: jax.Array) -> jax.Array:
        """Returns sums: loss, hits without and hits with test-time augmentation, float32 `[3]`."""
        weights, inputs = zip(*views(normalized(images)), strict=True)
        apply: Any = functools.partial(self.net.apply, variables, train=False)
        found = apply(jnp.concatenate(inputs)).reshape(len(inputs), len(labels), -1)
        plain, logits = found[0], (jnp.array(weights)[:, None, None] * found).sum(0)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        hits = [(x.argmax(-1) == labels).sum().astype(jnp.float32) for x in (plain, logits)]
        return jnp.stack([loss.sum(), *hits])


# -------------------------------------------------------------------------------- the command line


def summarize(values: list[float]) -> dict[str, float]:
    """Returns mean, standard deviation, half of the mean's 95 % interval, least and greatest.

    Args:
      values: at least one number; of a single one the deviation is given as 0.
    """
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {
        "mean": statistics.fmean(values),
        "std": deviation,
        "interval": 1.96 * deviation / len(values) ** 0.5,
        "min": min(values),
        "max": max(values),
    }


def speedrun(arguments: argparse.Namespace) -> None:
    """Runs the seeds that the command line asks for.

    Args:
      arguments: its flags.

    Raises:
      UserError: if a flag, the data or the file of the results can't be used.
    """
    for flag, low, high in (("seeds", 1, 10**6), ("first_seed", 0, 10**9), ("epochs", 1, 10**4)):
        if (value := getattr(arguments, flag)) is not None and not low <= value <= high:
            name = flag.replace("_", "-")
            raise UserError(f"--{name} must be between {low} and {high:,}, not {value}")
    recipe = RECORDS[arguments.record]
    recipe = dataclasses.replace(recipe, epochs=arguments.epochs or recipe.epochs)
    result: dict[str, Any] = {"record": arguments.record, "provenance": provenance(), "runs": []}
    _write(arguments.json, result)
    train, test, source = _load(arguments.source, arguments.data_dir)
    runner = Runner(recipe, arguments.dtype, train, test)
    if runner.batch_size < BATCH_SIZE:
        print(f"batches of {runner.batch_size:,} images, since there are no more")
    settings = {"dtype": arguments.dtype, "batch_size": runner.batch_size, "data": source}
    result["settings"] = dataclasses.asdict(recipe) | settings
    runner.warm_up()
    names = {
        "accuracy": "accuracy, %",
        "accuracy_without_augmentation": "without test-time augmentation, %",
        "seconds": "time, s",
    }
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        run = runner.run(seed)
        scores = (run["accuracy"], run["accuracy_without_augmentation"])
        accuracy = "{:.2f} %, without augmentation {:.2f} %".format(*scores)
        print(f"seed {seed:<6} {accuracy}  {run['seconds']:.3f} s", flush=True)
        result["runs"].append(run)
        result |= {name: summarize([run[name] for run in result["runs"]]) for name in names}
        _write(arguments.json, result)
    count, device = len(result["runs"]), jax.devices()[0].device_kind
    print(f"{count} runs of the {arguments.record} % record, {arguments.dtype}, on one {device}")
    for name, text in names.items():
        found = result[name]
        mean = f"mean {found['mean']:.3f} +- {found['interval']:.3f}, deviation {found['std']:.3f}"
        print(f"{text:35} {mean}, from {found['min']:.2f} to {found['max']:.2f}")


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
    if file is None:
        return
    try:
        file.write_text(json.dumps(result, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"--json {file} can't be written: {error.strerror}") from None


class _Parser(argparse.ArgumentParser):
    """A parser that says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """Refuses the command line."""
        raise UserError(message)


def main() -> int:
    """Runs the command line; returns the exit status."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = _Parser(description=__doc__, formatter_class=layout, allow_abbrev=False)
    parser.add_argument("--record", choices=RECORDS, default="94", help="which record")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
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
        with memory_errors("this record needs a larger device"):
            speedrun(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the runs before are in the file of --json, if any", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
