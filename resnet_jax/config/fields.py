"""Every field of a config: its default, what it may be, its meaning and unit."""

import dataclasses
from typing import Annotated, Any, Literal

from resnet_jax.config.checks import Bounds, Count, Factors, Pattern, Rate, Share


@dataclasses.dataclass(frozen=True)
class Field:
    """One field of the config.

    Attributes:
      default: the default value.
      hint: what the value may be; see `resnet_jax.config.checks.checked`.
      help: meaning and unit.
    """

    default: Any
    hint: Any
    help: str


def _whole(low: int, high: int) -> Any:
    return Annotated[int, Bounds(low, high)]


def _number(low: float, high: float) -> Any:
    return Annotated[float, Bounds(low, high)]


_SEED = _STEPS = _whole(0, 2**31)
_EPOCHS = _whole(0, 100_000)
_Label = Annotated[int, Bounds(0, 9)]
_Mean = Annotated[float, Bounds(-10, 10)]
_Std = Annotated[float, Bounds(above=0, high=10)]
_Area = Annotated[float, Bounds(above=0, high=1)]
_Ratio = Annotated[float, Bounds(above=0, high=100)]

FIELDS: dict[str, Field] = {
    "seed": Field(0, _SEED, "seed of initialisation, order, augmentation and dropout"),
    "num_epochs": Field(10, _EPOCHS, "passes over the training images; 0: no training"),
    "batch_size": Field(128, Count, "training images per step"),
    "steps_per_dispatch": Field(
        0, _whole(0, 100_000), "training steps per call of the program; 0: 1 on CPU, 50 elsewhere"
    ),
    "deterministic": Field(
        False, bool, "whether equal runs have equal bits on a GPU too, with slower kernels"
    ),
    "on_nan": Field(
        "stop",
        Literal["stop", "skip"],
        "at a step whose loss or gradient is not finite: end the run, or leave the step out",
    ),
    "on_nan_limit": Field(100, _whole(1, 10**9), "steps that a run may skip; one more ends it"),
    # Model
    "model.name": Field("resnet_v2", str, "a name of resnet_jax.list_models()"),
    "model.num_classes": Field(10, Count, "number of logits"),
    "model.dtype": Field(
        "float32",
        Literal["float32", "bfloat16", "auto"],
        "dtype of the computation; parameters, statistics and loss stay float32; 'auto': bfloat16 "
        "on GPUs and on CPUs that have instructions for it",
    ),
    "model.options": Field({}, dict, "fields of the model that replace the registry's"),
    "init.weights": Field(
        "", str, "file of PyTorch weights to start from, or 'torchvision'; empty: random"
    ),
    "init.cached_stage": Field(
        0, _whole(0, 100), "frozen stage whose output is computed once for all images; 0: none"
    ),
    # Data
    "data.source": Field("auto", str, "where the data come from; see resnet_jax.data.sources"),
    "data.dir": Field("", str, "folder with CIFAR-10, and of its cache; empty: the user's cache"),
    "data.val_fraction": Field(0.1, _number(0, 0.9), "share of each class's images set aside"),
    "data.split_seed": Field(0, _SEED, "seed of that split"),
    "data.classes": Field(
        (), tuple[_Label, ...], "labels that are used, renumbered in this order; empty: all"
    ),
    "data.image_size": Field(
        0, _whole(0, 1024), "side that images are resized to on the device, pixels; 0: as they are"
    ),
    "data.shuffle": Field(True, bool, "whether every epoch has an order of its own"),
    "data.drop_last": Field(False, bool, "whether an epoch's incomplete last batch is left out"),
    "data.mean": Field(
        (0.4914, 0.4822, 0.4465), tuple[_Mean, _Mean, _Mean], "channel means, of pixels in [0, 1]"
    ),
    "data.std": Field(
        (0.2470, 0.2435, 0.2616),
        tuple[_Std, _Std, _Std],
        "their deviations, of pixels in [0, 1]",
    ),
    # Augmentation, in the order in which it is applied
    "augment.crop_padding": Field(
        0, _whole(0, 64), "pixels added on all sides before a random crop; 0: no crop"
    ),
    "augment.crop_mode": Field(
        "zero", Literal["zero", "reflect"], "those pixels: black, or the image mirrored"
    ),
    "augment.flip": Field(
        "none",
        Literal["none", "random", "alternating"],
        "horizontal flip: at random, or alternating (random in epoch 0, then every other epoch)",
    ),
    "augment.policy": Field(
        "none", Literal["none", "randaugment", "trivialaugment"], "colour and shape policy"
    ),
    "augment.policy_layers": Field(2, _whole(1, 10), "operations per image of randaugment"),
    "augment.policy_magnitude": Field(9.0, _number(0, 30), "strength of randaugment, of 30"),
    "augment.brightness": Field(0.0, Share, "largest relative change of brightness; 0: none"),
    "augment.contrast": Field(0.0, Share, "largest relative change of contrast; 0: none"),
    "augment.saturation": Field(0.0, Share, "largest relative change of saturation; 0: none"),
    "augment.cutout": Field(
        0, _whole(0, 1024), "side of the square that is set to the mean, pixels; 0: none"
    ),
    "augment.erasing": Field(0.0, Share, "probability of random erasing; 0: none"),
    "augment.erasing_scale": Field(
        (0.02, 0.33), tuple[_Area, _Area], "smallest and largest share of the area erased"
    ),
    "augment.erasing_ratio": Field(
        (0.3, 3.3), tuple[_Ratio, _Ratio], "least and largest height over width"
    ),
    "augment.mixup": Field(0.0, _number(0, 100), "alpha of mixup's Beta distribution; 0: none"),
    "augment.cutmix": Field(
        0.0, _number(0, 100), "alpha of cutmix's; 0: none; with mixup: one of them at random"
    ),
    # Loss and optimizer
    "loss.label_smoothing": Field(0.0, Rate, "share of each target spread over all classes"),
    "optimizer.name": Field("sgd", str, "a name of resnet_jax.training.optimizers.OPTIMIZERS"),
    "optimizer.learning_rate": Field(0.1, _number(0, 1e6), "peak learning rate"),
    "optimizer.weight_decay": Field(0.0, _number(0, 1e3), "weight decay"),
    "optimizer.decoupled_weight_decay": Field(
        False, bool, "whether decay acts beside the update, not on the gradient as PyTorch's does"
    ),
    "optimizer.no_decay": Field(
        "", Pattern, "regular expression; parameters whose path matches are not decayed"
    ),
    "optimizer.frozen": Field(
        "", Pattern, "regular expression; parameters whose path matches are not trained"
    ),
    "optimizer.learning_rate_factors": Field(
        (), Factors, "pairs (expression of paths, factor on the learning rate); the first wins"
    ),
    "optimizer.gradient_clip": Field(
        0.0, _number(0, 1e9), "largest global norm of the gradient; 0: no clipping"
    ),
    "optimizer.accumulate_steps": Field(
        1, _whole(1, 100_000), "steps whose gradients are averaged into one update"
    ),
    "optimizer.ema_decay": Field(
        0.0, Rate, "share that the evaluated moving average of the weights keeps; 0: none"
    ),
    "optimizer.options": Field({}, dict, "keyword arguments of the optimizer, such as momentum"),
    "schedule.name": Field("constant", str, "a name of resnet_jax.training.schedules.SCHEDULES"),
    "schedule.per": Field("step", Literal["step", "epoch"], "when the learning rate changes"),
    "schedule.warmup_epochs": Field(
        0.0, _number(0, 1e5), "epochs of linear growth from zero before the schedule"
    ),
    "schedule.options": Field({}, dict, "keyword arguments of the schedule, in epochs"),
    # Evaluation, checkpoints, logs
    "evaluate.batch_size": Field(500, Count, "images per evaluation step"),
    "evaluate.batches_per_dispatch": Field(
        0, _whole(0, 1_000_000), "evaluation steps per call; 0: 1 on CPU, all elsewhere"
    ),
    "evaluate.test_time_augmentation": Field(
        "none",
        Literal["none", "mirror"],
        "views of each image whose logits are averaged: itself, or with its mirror image",
    ),
    "evaluate.split": Field(
        "val",
        Literal["val", "test"],
        "what is scored while training; the test set is scored at the end in any case",
    ),
    "evaluate.select_on_test": Field(
        False, bool, "whether the test set may choose the best checkpoint; never for a claim"
    ),
    "evaluate.every_epochs": Field(1, _EPOCHS, "epochs between scores; 0: after the last only"),
    "evaluate.every_steps": Field(0, _STEPS, "steps between further scores; 0: none"),
    "evaluate.patience": Field(
        0, _whole(0, 100_000), "scores without a new best before training stops early; 0: never"
    ),
    "checkpoint.every_epochs": Field(1, _whole(1, 100_000), "epochs between checkpoints"),
    "checkpoint.every_steps": Field(0, _STEPS, "steps between further checkpoints; 0: none"),
    "checkpoint.keep": Field(2, _whole(1, 1000), "newest checkpoints kept, beside the best"),
    "log.every_steps": Field(
        100, _STEPS, "steps between training records in metrics.jsonl; 0: per epoch only"
    ),
    "log.tensorboard": Field(True, bool, "whether TensorBoard events are written"),
    "log.images": Field(16, _whole(0, 256), "training images shown in TensorBoard; 0: none"),
    "log.histograms": Field(
        False, bool, "whether every epoch writes histograms of parameters and gradients"
    ),
}

# Fields that a resumed run may change: they alter neither the result nor the files of the run. Of
# the data, a digest says whether they are the same.
RESUMABLE = frozenset(
    {
        *("data.source", "data.dir", "evaluate.batch_size", "evaluate.batches_per_dispatch"),
        *("checkpoint.keep", "on_nan_limit"),
    }
)
