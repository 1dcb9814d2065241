"""R1.b to R1.e, the small residual network: 195,738 parameters.

  python -m resnet_jax.main --config=configs/resnet_small.py             R1.c: Adam, 20 epochs
  python -m resnet_jax.main --config=configs/resnet_small.py:sgd         R1.b: SGD, 10 epochs
  python -m resnet_jax.main --config=configs/resnet_small.py:dropout     R1.d: R1.c and dropout 0.2
  python -m resnet_jax.main --config=configs/resnet_small.py:grid        R1.e: a point of the grid
  python -m resnet_jax.main --config=configs/resnet_small.py:optuna      R1.g: what a search found
  python -m resnet_jax.main --config=configs/resnet_small.py:better      our recipe

variant   reported test %   ours, final and best test %
sgd       80.95             82.13 and 82.13, measured with seed 0
adam      86.18             85.27 ± 0.59 and 85.31 ± 0.61, three seeds
                            86.10 with a cosine in place of the assumed steps, seed 0, bfloat16
dropout   86 (average)      85.18 and 85.38, two seeds in bfloat16 (plain: 81.92 and 82.26)
optuna    -                 78.20, the mean of three seeds after 3 epochs; R1.c, cut there, 65.79
better    -                 93.05 ± 0.10, three seeds in bfloat16 (92.17 without mirror images)

Words after the variant turn parts on and off: adam_plain, dropout_plain, sgd_augmented,
grid_decay, grid_plain, adam_cosine (in place of the assumed steps), adam_val (scored on a tenth of
the training images). The report's one data slide shows no augmentation; its network and decay are
those of a tutorial that pads, crops and flips. Without, `dropout` ends at 81.92: so `adam`,
`dropout` and `grid` are augmented, `sgd` is plain.

R1.e is SGD, RMSprop, Adagrad, Adadelta, Adam, Adamax and NAdam, at learning rates 0.001, 0.005,
0.007, 0.01 and 0.05, for 10, 30, 50 and 80 epochs, at batches of 100, 150, 200 and 500, with decay
and without; name a point by --config.optimizer.name, .optimizer.learning_rate, .num_epochs and
.batch_size. The best point, which is R1.c, has batch 128 and 20 epochs, which the lists lack.

Assumed where the report is silent: the mean and deviation of 0.5 of its baseline; in R1.b momentum
0.9, batch 5 (the data slide's) and a tenth of the learning rate after 5 epochs; elsewhere a third
of it every 8 epochs; in R1.e no momentum.

`better` was chosen with a tenth of the training images set aside, which scored the following with
seed 0. After 20 epochs: SGD 88.08, Muon 89.92; Muon with alternating flips 89.24, with these and
half the weight decay 90.14, with these and twice the learning rate 89.76; Muon and cutout 88.74.
After 40 epochs with half the decay: 90.72 and falling, at 97.5 % of the training images; with
cutout 90.30, at 94.6 %. So the longest training has cutout, which is a guess. It takes all images,
and scores the test set once, at its end, each image with its mirror image. R5 reports 89.12 for the
same network.

Measured: 38 minutes for the 20 epochs of R1.c on one of two busy CPU cores; 83 minutes for
`better`, three runs side by side on two cores with AVX-512 BF16.
"""

from ml_collections import ConfigDict

from resnet_jax.config import choose, default_config


def _plain(config: ConfigDict) -> None:
    config.augment.crop_padding = 0
    config.augment.flip = "none"


def _augmented(config: ConfigDict) -> None:
    config.augment.crop_padding = 4
    config.augment.flip = "random"


def _decay(config: ConfigDict) -> None:
    config.schedule.name = "step"
    config.schedule.options = {"every_epochs": 8, "factor": 1 / 3}


def _cosine(config: ConfigDict) -> None:
    config.schedule.name = "cosine"
    config.schedule.options = {}


def _validated(config: ConfigDict) -> None:
    config.data.val_fraction = 0.1
    config.evaluate.split = "val"


def _sgd(config: ConfigDict) -> None:
    _plain(config)
    config.reported_accuracy = 80.95
    config.num_epochs = 10
    config.batch_size = 5
    config.optimizer.learning_rate = 1e-3
    config.optimizer.options.momentum = 0.9
    config.schedule.name = "step"
    config.schedule.options = {"every_epochs": 5, "factor": 0.1}
    config.log.every_steps = 1000


def _adam(config: ConfigDict) -> None:
    config.reported_accuracy = 86.18
    config.num_epochs = 20
    config.batch_size = 128
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 1e-3
    _decay(config)


def _dropout(config: ConfigDict) -> None:
    _adam(config)
    config.reported_accuracy = 86.0
    config.model.options.dropout_rate = 0.2


def _grid(config: ConfigDict) -> None:
    _adam(config)
    config.reported_accuracy = 0.0
    config.batch_size = 100
    config.num_epochs = 10
    config.schedule.name = "constant"
    config.schedule.options = {}


def _optuna(config: ConfigDict) -> None:
    """The best of 30 points by configs/search/optuna_resnet_small.py, its numbers rounded."""
    _adam(config)
    config.reported_accuracy = 0.0
    config.num_epochs = 3
    config.optimizer.learning_rate = 0.0192
    config.optimizer.weight_decay = 1.05e-4
    config.schedule.name = "one_cycle"
    config.schedule.per = "step"
    config.schedule.options = {"peak_fraction": 0.2}
    config.loss.label_smoothing = 0.134


def _better(config: ConfigDict) -> None:
    config.model.dtype = "auto"
    config.num_epochs = 90
    config.batch_size = 128
    config.data.drop_last = True
    config.data.mean = (0.4914, 0.4822, 0.4465)
    config.data.std = (0.2470, 0.2435, 0.2616)
    config.augment.cutout = 8
    config.evaluate.every_epochs = 0
    config.evaluate.test_time_augmentation = "mirror"
    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 0.02
    config.optimizer.learning_rate_factors = (("bn|bias|head", 0.1),)
    config.optimizer.weight_decay = 0.025
    config.optimizer.no_decay = "bn|bias"
    config.optimizer.ema_decay = 0.999
    config.schedule.name = "cosine"
    config.schedule.warmup_epochs = 3.0
    config.loss.label_smoothing = 0.05


VARIANTS = {
    "adam": _adam,
    "sgd": _sgd,
    "dropout": _dropout,
    "grid": _grid,
    "optuna": _optuna,
    "better": _better,
}
PARTS = {
    "plain": _plain,
    "augmented": _augmented,
    "decay": _decay,
    "cosine": _cosine,
    "val": _validated,
}


def get_config(variant: str = "adam") -> ConfigDict:
    config = default_config()
    config.model.name = "resnet_small"
    config.data.val_fraction = 0.0
    config.data.mean = (0.5, 0.5, 0.5)
    config.data.std = (0.5, 0.5, 0.5)
    config.schedule.per = "epoch"
    config.evaluate.split = "test"
    name, *parts = variant.split("_")
    _augmented(config)
    choose(VARIANTS, name)(config)
    for part in parts:
        choose(PARTS, part)(config)
    return config
