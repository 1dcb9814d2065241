"""CIFAR-100 on ResNet-18: 100 classes, 11,220,132 parameters.

  python -m resnet_jax.main --config=configs/cifar100.py

Follows the recipe that weiaicunzai's pytorch-cifar100 publishes 75.6 % for (one figure, one run),
without its rotation by up to 15 degrees.
Expected, not measured: 75 to 76 % of the test images; days on two CPU cores, an hour or less on a
GPU. The archive, 169 MB, is fetched once, or found in --config.data.dir=FOLDER.
"""

from ml_collections import ConfigDict

from resnet_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.num_epochs = 200
    config.batch_size = 128
    config.model.name = "resnet18"
    config.data.name = "cifar100"
    config.data.val_fraction = 0.0
    config.augment.crop_padding = 4
    config.augment.flip = "random"
    config.optimizer.learning_rate = 0.1
    config.optimizer.weight_decay = 5e-4
    config.optimizer.options.momentum = 0.9
    config.schedule.name = "milestones"
    config.schedule.options = {"epochs": (58, 118, 158), "factor": 0.2}  # after the warm-up
    config.schedule.warmup_epochs = 1.0
    config.evaluate.split = "test"
    return config
