"""R4, the custom network [1, 1, 1, 4], widths 32-64-128-256, 4,729,610 parameters.

  python -m resnet_jax.main --config=configs/resnet_custom.py           as its code has it: plain
  python -m resnet_jax.main --config=configs/resnet_custom.py:skip      as its report describes it
  python -m resnet_jax.main --config=configs/resnet_custom.py:clean     validation as it is
  python -m resnet_jax.main --config=configs/resnet_custom.py:better    our recipe

variant  model                 reported train / validation %   expected
plain    resnet_custom         99.5 / 89.75 to 90.24           validation 90
clean    resnet_custom         -                               validation 91
skip     resnet_custom_skip    -                               validation 90
better   resnet_custom         -                               test 94, a hypothesis

The report describes skip connections; its code has none, and only the plain network has the count
it gives, so the plain one is the faithful one. With projections on its shortcuts `skip` has
4,773,962 parameters; the shortcuts of `better` have none, so that it keeps R4's count. Kept as
reported: the 80/20 split, here a fifth of each class, and the best model by validation. The code's
split shares the transform of training, so that the reported validation images are cropped and
flipped; those of `clean` and `better` are not. The test images never are.
The report describes early stopping and reports all 300 epochs: off here, and turned on by
--config.evaluate.patience=30. Assumed: crop padding of 4 pixels.
Expected, not measured yet; 300 epochs, about 12 hours on two CPU cores, are for a GPU.
"""

from ml_collections import ConfigDict

from resnet_jax.config import choose, default_config


def _plain(config: ConfigDict) -> None:
    config.reported_accuracy = 90.24  # of validation, the best that the report names
    config.model.name = "resnet_custom"


def _clean(config: ConfigDict) -> None:
    config.model.name = "resnet_custom"
    config.evaluate.augment = False


def _skip(config: ConfigDict) -> None:
    config.model.name = "resnet_custom_skip"


def _better(config: ConfigDict) -> None:
    config.model.dtype = "auto"
    config.model.name = "resnet_custom"
    config.model.options.shortcut = "zero_pad"
    config.evaluate.augment = False
    config.num_epochs = 200
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.1
    config.optimizer.weight_decay = 5e-4
    config.optimizer.options = {"momentum": 0.9, "nesterov": True}
    config.optimizer.ema_decay = 0.999
    config.schedule.name = "cosine"
    config.schedule.warmup_epochs = 5.0
    config.loss.label_smoothing = 0.1
    config.augment.cutout = 8


def get_config(variant: str = "plain") -> ConfigDict:
    config = default_config()
    config.num_epochs = 300
    config.batch_size = 128
    config.data.val_fraction = 0.2
    config.data.mean = (0.485, 0.456, 0.406)
    config.data.std = (0.229, 0.224, 0.225)
    config.augment.crop_padding = 4
    config.augment.flip = "random"
    config.optimizer.name = "adadelta"
    config.optimizer.learning_rate = 0.1
    config.optimizer.weight_decay = 1e-4
    config.evaluate.split = "val"
    config.evaluate.augment = True
    variants = {"plain": _plain, "clean": _clean, "skip": _skip, "better": _better}
    choose(variants, variant)(config)
    return config
