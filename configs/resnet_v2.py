"""R2, `resnet_v2`: basic blocks [2, 2, 2, 2], widths 64-128-128-128, 1,891,658 parameters.

  python -m resnet_jax.main --config=configs/resnet_v2.py           SGD
  python -m resnet_jax.main --config=configs/resnet_v2.py:adam      Adam
  python -m resnet_jax.main --config=configs/resnet_v2.py:better    our recipe

variant  reported train / test %                ours, train / final and best test %
sgd      99.81 / 94.21 (15 min, one RTX 8000)   99.81 / 94.02 and 94.13, measured: seed 0, bfloat16
adam     98.13 / 90.98                          91.0 expected (no weight decay)
better   -                                      95.3 expected, a hypothesis

The report tells of a 7x7 stem, and of rotation and crops; its code, followed here, has a 3x3 stem,
crops and flips. `resnet_v2` is the report's name for its network, not a style of blocks.

Measured: 2 hours 29 minutes for the 60 epochs of `sgd` in bfloat16 on two CPU cores with AVX-512
BF16; in float32, on slower ones, 8.4 hours are expected, and minutes on a GPU. Reported test
figures are the best over all epochs, whose checkpoint the code keeps; ours keeps the last one,
unless --config.evaluate.select_on_test=True.
"""

from ml_collections import ConfigDict

from resnet_jax.config import choose, default_config


def _sgd(config: ConfigDict) -> None:
    config.reported_accuracy = 94.21
    config.optimizer.learning_rate = 0.1
    config.optimizer.weight_decay = 5e-4
    config.optimizer.options.momentum = 0.9


def _adam(config: ConfigDict) -> None:
    config.reported_accuracy = 90.98
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 0.1


def _better(config: ConfigDict) -> None:
    config.model.dtype = "auto"
    _sgd(config)
    config.reported_accuracy = 0.0
    config.data.val_fraction = 0.1
    config.evaluate.split = "val"
    config.optimizer.options.nesterov = True
    config.optimizer.no_decay = "bn|bias"
    config.optimizer.ema_decay = 0.999
    config.schedule.per = "step"
    config.schedule.warmup_epochs = 5.0
    config.loss.label_smoothing = 0.1
    config.augment.cutout = 8
    config.augment.cutmix = 1.0
    config.num_epochs = 200


def get_config(variant: str = "sgd") -> ConfigDict:
    config = default_config()
    config.model.name = "resnet_v2"
    config.num_epochs = 60
    config.batch_size = 128
    config.data.val_fraction = 0.0
    config.data.mean = (0.4914, 0.4822, 0.4465)
    config.data.std = (0.2023, 0.1994, 0.2010)
    config.augment.crop_padding = 4
    config.augment.flip = "random"
    config.schedule.name = "cosine"
    config.schedule.per = "epoch"
    config.evaluate.split = "test"
    config.evaluate.batch_size = 100
    choose({"sgd": _sgd, "adam": _adam, "better": _better}, variant)(config)
    return config
