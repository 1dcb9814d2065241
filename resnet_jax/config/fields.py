"""Every field of a config, with its default, meaning, unit and range."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Field:
    """One field of the config.

    Attributes:
      default: the default value; its type is the field's type.
      help: meaning and unit.
      low: smallest value allowed.
      high: largest value allowed.
      above: bound that the value must exceed.
      choices: the values allowed.
      items: what a tuple holds: "numbers", as many as the default has, any number of "integers",
        or "pairs" of a pattern and a factor.
    """

    default: Any
    help: str
    low: float | None = None
    high: float | None = None
    above: float | None = None
    choices: tuple[str, ...] = ()
    items: str = "numbers"


FIELDS: dict[str, Field] = {
    "seed": Field(0, "seed of initialisation, order, augmentation and dropout", low=0, high=2**31),
    "num_epochs": Field(10, "passes over the training images", low=1, high=100_000),
    "batch_size": Field(128, "training images per step", low=1, high=1_000_000),
    "steps_per_dispatch": Field(
        0,
        "training steps that one call of the compiled function takes; 0: 1 on CPU, 50 elsewhere",
        low=0,
        high=100_000,
    ),
    "deterministic": Field(
        False,
        "whether equal runs are to have equal bits on a GPU too: XLA then takes deterministic "
        "kernels only and does not search for the fastest ones, at a cost not measured yet; on a "
        "CPU they have in any case",
    ),
    "on_nan": Field(
        "stop",
        "what is done about a step whose loss or gradient is not finite: the run ends, or the "
        "step is left out, as if it had changed nothing but the step counter",
        choices=("stop", "skip"),
    ),
    "on_nan_limit": Field(
        100, "steps that a run may skip; one more ends it", low=1, high=1_000_000_000
    ),
    # Model
    "model.name": Field("resnet_v2", "a name of resnet_jax.list_models()"),
    "model.num_classes": Field(10, "number of logits", low=1, high=1_000_000),
    "model.dtype": Field(
        "float32",
        "dtype of the computation; parameters, statistics and loss stay float32",
        choices=("float32", "bfloat16", "float16"),
    ),
    "model.options": Field({}, "fields of the model that replace the registry's"),
    "init.weights": Field(
        "",
        "what training starts from: a file of PyTorch weights, 'torchvision' for its published "
        "ones, or empty: random; a head of another shape starts at random in any case",
    ),
    "init.cached_stage": Field(
        0,
        "stage whose output is computed once for all images, since it and all before it are "
        "frozen; 0: none",
        low=0,
        high=100,
    ),
    "init.whitening_images": Field(
        0,
        "first training images, at most, whose patches the whitening layer is made for; 0: none",
        low=0,
        high=1_000_000,
    ),
    "init.whitening_epsilon": Field(
        5e-4, "added to the variance of each direction of those patches", above=0.0, high=1e3
    ),
    # Data
    "data.source": Field("auto", "where CIFAR-10 comes from; see resnet_jax.data.sources"),
    "data.dir": Field("", "folder with CIFAR-10, and of its cache; empty: the user's cache folder"),
    "data.val_fraction": Field(
        0.1, "share of the training images set aside, per class", low=0.0, high=0.9
    ),
    "data.split_seed": Field(0, "seed of that split", low=0, high=2**31),
    "data.classes": Field(
        (),
        "labels of the classes that are used, renumbered in this order; empty: all",
        low=0,
        high=9,
        items="integers",
    ),
    "data.image_size": Field(
        0, "side that images are resized to on the device, pixels; 0: as they are", low=0, high=1024
    ),
    "data.shuffle": Field(True, "whether every epoch has an order of its own"),
    "data.drop_last": Field(False, "whether an epoch's incomplete last batch is left out"),
    "data.mean": Field(
        (0.4914, 0.4822, 0.4465), "per-channel mean, of pixels in [0, 1]", low=-10.0, high=10.0
    ),
    "data.std": Field(
        (0.2470, 0.2435, 0.2616), "per-channel deviation, of pixels in [0, 1]", above=0.0, high=10.0
    ),
    # Augmentation, in the order in which it is applied
    "augment.crop_padding": Field(
        0,
        "pixels added on all sides before a random crop to the old size; 0: no crop",
        low=0,
        high=64,
    ),
    "augment.crop_mode": Field(
        "zero",
        "what the added pixels are: black, or the image mirrored",
        choices=("zero", "reflect"),
    ),
    "augment.flip": Field(
        "none",
        "horizontal flip: at random, or alternating (random in epoch 0, then every other epoch)",
        choices=("none", "random", "alternating"),
    ),
    "augment.policy": Field(
        "none", "colour and shape policy", choices=("none", "randaugment", "trivialaugment")
    ),
    "augment.policy_layers": Field(2, "operations per image of randaugment", low=1, high=10),
    "augment.policy_magnitude": Field(9.0, "strength of randaugment, of 30", low=0.0, high=30.0),
    "augment.brightness": Field(
        0.0, "largest relative change of brightness; 0: none", low=0.0, high=1.0
    ),
    "augment.contrast": Field(
        0.0, "largest relative change of contrast; 0: none", low=0.0, high=1.0
    ),
    "augment.saturation": Field(
        0.0, "largest relative change of saturation; 0: none", low=0.0, high=1.0
    ),
    "augment.cutout": Field(
        0, "side of the square that is set to the mean, pixels; 0: none", low=0, high=1024
    ),
    "augment.erasing": Field(0.0, "probability of random erasing; 0: none", low=0.0, high=1.0),
    "augment.erasing_scale": Field(
        (0.02, 0.33), "smallest and largest share of the area erased", above=0.0, high=1.0
    ),
    "augment.erasing_ratio": Field(
        (0.3, 3.3), "smallest and largest height over width of that area", above=0.0, high=100.0
    ),
    "augment.mixup": Field(0.0, "alpha of mixup's Beta distribution; 0: none", low=0.0, high=100.0),
    "augment.cutmix": Field(
        0.0,
        "alpha of cutmix's Beta distribution; 0: none; with mixup: one of them at random",
        low=0.0,
        high=100.0,
    ),
    # Loss and optimizer
    "loss.label_smoothing": Field(
        0.0, "share of each target spread over all classes", low=0.0, high=0.999
    ),
    "optimizer.name": Field("sgd", "a name of resnet_jax.training.optimizers.OPTIMIZERS"),
    "optimizer.learning_rate": Field(0.1, "peak learning rate", low=0.0, high=1e6),
    "optimizer.weight_decay": Field(0.0, "weight decay", low=0.0, high=1e3),
    "optimizer.decoupled_weight_decay": Field(
        False, "False: decay is added to the gradient (PyTorch); True: it acts beside the update"
    ),
    "optimizer.no_decay": Field(
        "", "regular expression; parameters whose path matches are not decayed; empty: none"
    ),
    "optimizer.frozen": Field(
        "", "regular expression; parameters whose path matches are not trained; empty: none"
    ),
    "optimizer.frozen_after": Field(
        (),
        "pairs (regular expression of parameter paths, epochs after which they are not trained)",
        items="pairs",
    ),
    "optimizer.learning_rate_factors": Field(
        (),
        "pairs (regular expression of parameter paths, factor on the learning rate); first wins",
        items="pairs",
    ),
    "optimizer.weight_decay_factors": Field(
        (),
        "pairs (regular expression of parameter paths, factor on the weight decay); first wins",
        items="pairs",
    ),
    "optimizer.gradient_clip": Field(
        0.0, "largest global norm of the gradient; 0: no clipping", low=0.0, high=1e9
    ),
    "optimizer.accumulate_steps": Field(
        1, "steps whose gradients are averaged into one update", low=1, high=100_000
    ),
    "optimizer.ema_decay": Field(
        0.0,
        "share kept by the moving average of the weights that is evaluated; 0: none",
        low=0.0,
        high=0.999999,
    ),
    "optimizer.lookahead_steps": Field(
        0,
        "steps after which lookahead moves its slow weights, which are evaluated, towards the "
        "trained ones, and these go on from there; 0: no lookahead",
        low=0,
        high=100_000,
    ),
    "optimizer.lookahead_decay": Field(
        0.95,
        "share, to the power of those steps, that the slow weights keep at the end",
        low=0.0,
        high=1.0,
    ),
    "optimizer.lookahead_power": Field(
        3.0, "exponent of the growth of that share from zero with time", low=0.0, high=100.0
    ),
    "optimizer.options": Field({}, "keyword arguments of the optimizer, such as momentum"),
    "schedule.name": Field("constant", "a name of resnet_jax.training.schedules.SCHEDULES"),
    "schedule.per": Field("step", "when the learning rate changes", choices=("step", "epoch")),
    "schedule.warmup_epochs": Field(
        0.0, "epochs of linear growth from zero before the schedule", low=0.0, high=100_000.0
    ),
    "schedule.options": Field({}, "keyword arguments of the schedule, in epochs"),
    # Evaluation, checkpoints, logs
    "evaluate.batch_size": Field(500, "images per evaluation step", low=1, high=1_000_000),
    "evaluate.batches_per_dispatch": Field(
        0,
        "evaluation steps that one call of the compiled function takes; 0: 1 on CPU, all elsewhere",
        low=0,
        high=1_000_000,
    ),
    "evaluate.test_time_augmentation": Field(
        "none",
        "views of each image whose logits are averaged: the image; with its mirror image; or both "
        "with those of two crops, moved by a pixel",
        choices=("none", "mirror", "multi_crop"),
    ),
    "evaluate.split": Field(
        "val",
        "what is scored while training; the test set is scored at the end in any case",
        choices=("val", "test"),
    ),
    "evaluate.select_on_test": Field(
        False, "whether the best checkpoint may be chosen by the test set; never for a claim"
    ),
    "evaluate.every_epochs": Field(
        1, "epochs between scores; 0: only after the last epoch", low=0, high=100_000
    ),
    "evaluate.every_steps": Field(0, "steps between further scores; 0: none", low=0, high=2**31),
    "evaluate.patience": Field(
        0, "scores without a new best before training stops early; 0: never", low=0, high=100_000
    ),
    "checkpoint.every_epochs": Field(1, "epochs between checkpoints", low=1, high=100_000),
    "checkpoint.every_steps": Field(
        0, "steps between further checkpoints; 0: none", low=0, high=2**31
    ),
    "checkpoint.keep": Field(2, "newest checkpoints kept, beside the best", low=1, high=1000),
    "log.every_steps": Field(
        100, "steps between training records in metrics.jsonl; 0: per epoch only", low=0, high=2**31
    ),
    "log.tensorboard": Field(True, "whether TensorBoard events are written"),
    "log.images": Field(16, "training images shown in TensorBoard; 0: none", low=0, high=256),
    "log.histograms": Field(
        False, "whether every epoch writes histograms of parameters and gradients"
    ),
}

# Fields that a resumed run may change: they alter neither the result nor the files of the run.
RESUMABLE = frozenset(
    {
        *("data.dir", "evaluate.batch_size", "evaluate.batches_per_dispatch", "checkpoint.keep"),
        "on_nan_limit",
    }
)
