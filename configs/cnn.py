"""R1.a, the baseline CNN: 62,006 parameters.

  python -m resnet_jax.main --config=configs/cnn.py
  python -m resnet_jax.main --config=configs/cnn.py:better

variant   reported test %   ours, final and best test %
reported  62                62.67 and 63.52, the means of three seeds, measured
better    -                 74.18 and 74.21, measured with seed 0 in bfloat16, 5 min. on one core

The report does not say whether its figure is of the last epoch or the best.
Measured: 3 minutes 14 seconds for the ten epochs on one CPU core, the mean of three seeds.
"""

from ml_collections import ConfigDict

from resnet_jax.config import choose, default_config


def _reported(config: ConfigDict) -> None:
    config.reported_accuracy = 62.0
    config.num_epochs = 10
    config.batch_size = 5
    config.data.val_fraction = 0.0
    config.evaluate.split = "test"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.options.momentum = 0.9


def _better(config: ConfigDict) -> None:
    config.model.dtype = "auto"
    config.num_epochs = 30
    config.batch_size = 64
    config.data.drop_last = True
    config.optimizer.learning_rate = 0.02
    config.optimizer.weight_decay = 5e-4
    config.optimizer.options.momentum = 0.9
    config.optimizer.options.nesterov = True
    config.schedule.name = "one_cycle"
    config.augment.crop_padding = 2
    config.augment.flip = "random"


def get_config(variant: str = "reported") -> ConfigDict:
    config = default_config()
    config.model.name = "cnn"
    config.data.mean = (0.5, 0.5, 0.5)
    config.data.std = (0.5, 0.5, 0.5)
    config.log.every_steps = 1000
    choose({"reported": _reported, "better": _better}, variant)(config)
    return config
