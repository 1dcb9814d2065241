"""Every field of a config: its default, what it may be, its meaning and unit."""

import dataclasses
from typing import Annotated, Any, Literal

from resnet_jax.config.checks import Bounds, Count, Factors, Pattern, Rate, Share
from resnet_jax.errors import UserError


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


def _rising(what: str, ends: tuple[float, float]) -> tuple[float, float]:
    low, high = ends
    if low > high:
        raise UserError(f"{what}: {low:g} is above {high:g}; swap them")
    return ends


_SEED = _STEPS = _whole(0, 2**31)
_EPOCHS = _whole(0, 100_000)
_SIDE = _whole(0, 1024)
_CLASSES = _whole(0, 1_000_000)
_ALPHA = _number(0, 100)
_Label = Annotated[int, Bounds(0, 999_999)]
_Shift = Annotated[float, Bounds(-10, 10)]
_Scale = Annotated[float, Bounds(above=0, high=10)]
_Part = Annotated[float, Bounds(above=0, high=1)]
_Area = Annotated[tuple[_Part, _Part], _rising]
_Side = Annotated[float, Bounds(above=0, high=100)]
_Ratio = Annotated[tuple[_Side, _Side], _rising]
_Source = Literal["auto", "folder", "cache", "tfds", "archive", "npm"]
_Dtype = Literal["float32", "bfloat16", "auto"]
_OnFault = Literal["stop", "skip"]
_Crop = Literal["zero", "reflect"]
_Flip = Literal["none", "random", "alternating"]
_Policy = Literal["none", "randaugment", "trivialaugment"]
_Views = Literal["none", "mirror"]

FIELDS: dict[str, Field] = {
    "seed": Field(0, _SEED, "seed of initialisation, order, augmentation and dropout"),
    "num_epochs": Field(10, _EPOCHS, "passes over the training images; 0: no training"),
    "batch_size": Field(128, Count, "training images per step"),
    "steps_per_dispatch": Field(0, _EPOCHS, "training steps per call; 0: 1 on CPU, 50 elsewhere"),
    "deterministic": Field(False, bool, "whether runs have equal bits on a GPU too, more slowly"),
    "on_nan": Field("stop", _OnFault, "at a loss or gradient that is not finite: stop, or skip it"),
    "on_nan_limit": Field(100, _whole(1, 10**9), "steps that a run may skip; one more ends it"),
    "reported_accuracy": Field(0.0, _number(0, 100), "figure to compare with, percent; 0: none"),
    # Model
    "model.name": Field("resnet_v2", str, "a name of --list=models"),
    "model.num_classes": Field(0, _CLASSES, "number of logits; 0: as many as the data has classes"),
    "model.dtype": Field("float32", _Dtype, "of the computation; auto: bfloat16 where it is fast"),
    "model.remat": Field(
        0, _whole(0, 1_000), "first stages computed again in the backward pass, for their memory"
    ),
    "model.options": Field({}, dict, "fields of the model that replace the registry's"),
    "init.weights": Field("", str, "file, name of --list=weights, 'torchvision', or run's folder"),
    "init.cached_stage": Field(0, _whole(0, 100), "frozen stage computed once an image; 0: none"),
    # Data
    "data.name": Field("cifar10", str, "one of --list=datasets"),
    "data.source": Field("auto", _Source, "where CIFAR-10's bytes come from; see data/sources.py"),
    "data.dir": Field("", str, "folder of the data, and of CIFAR-10's cache; empty: the user's"),
    "data.test_fraction": Field(0.2, _number(0.01, 0.9), "share of a folder without test images"),
    "data.on_bad_image": Field("stop", _OnFault, "at an unreadable file of a folder"),
    "data.val_fraction": Field(0.1, _number(0, 0.9), "share of each class's images set aside"),
    "data.split_seed": Field(0, _SEED, "seed of that split"),
    "data.classes": Field((), tuple[_Label, ...], "labels used, renumbered in this order; (): all"),
    "data.image_size": Field(0, _SIDE, "side that images are resized to, pixels; 0: as they are"),
    "data.shuffle": Field(True, bool, "whether every epoch has an order of its own"),
    "data.drop_last": Field(False, bool, "whether an epoch's incomplete last batch is left out"),
    "data.resident_bytes": Field(
        -1, _whole(-1, 2**50), "more bytes of images stream; -1: a third of memory, on a CPU 2 GB"
    ),
    "data.workers": Field(
        -1, _whole(-1, 1024), "processes that decode streams; 0: a thread; -1: cores - 1"
    ),
    "data.mean": Field((), tuple[_Shift, ...], "channel means of pixels in [0, 1]; (): the data's"),
    "data.std": Field((), tuple[_Scale, ...], "their deviations; (): the data's"),
    # Augmentation, in the order in which it is applied
    "augment.resized_crop": Field(0.0, Share, "least share of the area that is cut out; 0: no cut"),
    "augment.crop_padding": Field(
        0, _whole(0, 64), "pixels added before a random crop; 0: no crop"
    ),
    "augment.crop_mode": Field("zero", _Crop, "those pixels: black, or the image mirrored"),
    "augment.flip": Field(
        "none", _Flip, "horizontal flip: at random, or by turns (see augment.py)"
    ),
    "augment.policy": Field("none", _Policy, "random operations on colour and shape"),
    "augment.policy_layers": Field(2, _whole(1, 10), "operations per image of randaugment"),
    "augment.policy_magnitude": Field(9.0, _number(0, 30), "strength of randaugment, of 30"),
    "augment.brightness": Field(0.0, Share, "largest relative change of brightness; 0: none"),
    "augment.contrast": Field(0.0, Share, "largest relative change of contrast; 0: none"),
    "augment.saturation": Field(0.0, Share, "largest relative change of saturation; 0: none"),
    "augment.cutout": Field(0, _SIDE, "side of the square set to the mean, pixels; 0: none"),
    "augment.erasing": Field(0.0, Share, "probability of random erasing; 0: none"),
    "augment.erasing_scale": Field((0.02, 0.33), _Area, "least and largest share of area erased"),
    "augment.erasing_ratio": Field((0.3, 3.3), _Ratio, "its least and largest height over width"),
    "augment.mixup": Field(0.0, _ALPHA, "alpha of mixup's Beta, with the reversed batch; 0: none"),
    "augment.cutmix": Field(0.0, _ALPHA, "alpha of cutmix's; 0: none; with mixup: one of the two"),
    # Loss and optimizer
    "loss.label_smoothing": Field(0.0, Rate, "share of each target spread over all classes"),
    "optimizer.name": Field("sgd", str, "a name of --list=optimizers"),
    "optimizer.learning_rate": Field(0.1, _number(0, 1e6), "peak learning rate"),
    "optimizer.weight_decay": Field(0.0, _number(0, 1e3), "weight decay"),
    "optimizer.decoupled_weight_decay": Field(
        False, bool, "whether decay bypasses the update rule"
    ),
    "optimizer.no_decay": Field("", Pattern, "regular expression of paths that are not decayed"),
    "optimizer.frozen": Field("", Pattern, "regular expression of paths that are not trained"),
    "optimizer.learning_rate_factors": Field((), Factors, "pairs (pattern of paths, factor)"),
    "optimizer.gradient_clip": Field(0.0, _number(0, 1e9), "largest norm of the gradient; 0: any"),
    "optimizer.accumulate_steps": Field(1, _whole(1, 100_000), "steps averaged into one update"),
    "optimizer.ema_decay": Field(0.0, Rate, "decay of the moving average that is scored; 0: none"),
    "optimizer.options": Field({}, dict, "keyword arguments of the optimizer, such as momentum"),
    "schedule.name": Field("constant", str, "a name of --list=schedules"),
    "schedule.per": Field("step", Literal["step", "epoch"], "when the learning rate changes"),
    "schedule.warmup_epochs": Field(0.0, _number(0, 1e5), "epochs of linear growth before it"),
    "schedule.options": Field({}, dict, "keyword arguments of the schedule, in epochs"),
    # Evaluation, checkpoints, logs
    "evaluate.batch_size": Field(500, Count, "images per evaluation step"),
    "evaluate.test_time_augmentation": Field(
        "none", _Views, "whether mirror images are scored too"
    ),
    "evaluate.split": Field("val", Literal["val", "test"], "what is scored while training"),
    "evaluate.augment": Field(False, bool, "whether validation images are augmented too"),
    "evaluate.select_on_test": Field(False, bool, "whether the test set chooses the checkpoint"),
    "evaluate.score_test": Field(True, bool, "whether the test set is scored when a run ends"),
    "evaluate.every_epochs": Field(1, _EPOCHS, "epochs between scores; 0: after the last only"),
    "evaluate.every_steps": Field(0, _STEPS, "steps between further scores; 0: none"),
    "evaluate.patience": Field(0, _EPOCHS, "scores without a new best before a stop; 0: no stop"),
    "checkpoint.every_epochs": Field(1, _whole(1, 100_000), "epochs between checkpoints"),
    "checkpoint.every_steps": Field(0, _STEPS, "steps between further checkpoints; 0: none"),
    "checkpoint.keep": Field(2, _whole(1, 1000), "newest checkpoints kept, beside the best"),
    "log.every_steps": Field(100, _STEPS, "steps between training records; 0: one an epoch only"),
    "log.tensorboard": Field(True, bool, "whether TensorBoard events are written"),
    "log.images": Field(16, _whole(0, 256), "augmented images shown in TensorBoard; 0: none"),
    "log.histograms": Field(False, bool, "whether TensorBoard shows parameters and gradients"),
    "log.report": Field(False, bool, "whether the command line ends with a page, as --mode=report"),
    "log.wandb": Field(False, bool, "whether the records go to Weights & Biases too"),
    "log.mlflow": Field(False, bool, "whether the records go to MLflow too"),
}

# The group `search` of the config of a search
SEARCH_FIELDS: dict[str, Field] = {
    "search.method": Field("grid", Literal["grid", "random", "tpe", "cma-es"], "who picks points"),
    "search.seed": Field(0, _SEED, "seed of points that are drawn"),
    "search.trials": Field(0, _whole(0, 10**6), "points tried at most; 0: any number"),
    "search.epochs": Field(
        0, _whole(0, 10**9), "epochs trained at most, all trials; 0: any number"
    ),
    "search.hours": Field(0.0, _number(0, 1e6), "hours trained, after which none starts; 0: any"),
    "search.pruner": Field("none", Literal["none", "median", "hyperband"], "who stops bad trials"),
    "search.parallel_trials": Field(1, _whole(1, 1000), "trials of one shape trained side by side"),
    "search.metric": Field("best", Literal["best", "final"], "which score of a run ranks it"),
    "search.select_on_test": Field(False, bool, "whether the test set ranks, as in some reports"),
    "search.keep": Field("all", Literal["all", "best"], "whose checkpoints are kept"),
    "search.storage": Field("", str, "postgresql:// address; empty: files in the workdir"),
}

# Fields that a resumed run may change, since they don't alter its result.
RESUMABLE = frozenset(
    {
        *("data.source", "data.dir", "data.workers"),
        *("evaluate.batch_size", "evaluate.score_test", "checkpoint.keep", "on_nan_limit"),
        "reported_accuracy",
        *(path for path in FIELDS if path.startswith("log.")),
    }
)
