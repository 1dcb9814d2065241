"""R1.f, VGG-16 with ImageNet weights and a new head of ten classes.

  python -m resnet_jax.main --config=configs/vgg16_transfer.py:vgg16_adam_0.001_10     the default
  python -m resnet_jax.main --config=configs/vgg16_transfer.py:vgg16_bn_adam_0.001_10
  python -m resnet_jax.main --config=configs/vgg16_transfer.py:finetune                our recipe

A variant is <model>_<optimizer>_<learning rate>_<epochs>: vgg16 or vgg16_bn, adam or rmsprop, 0.001
or 0.003, 10 or 20; bn, rmsprop and lr3e-3 are the default with this change. Which of them gave the
reported figures is not said.

model      reported test %   expected   ours, finetune, a hypothesis
vgg16      89.93             90         93, by --config.model.name=vgg16
vgg16_bn   91.03             91         94

As in the notebook that the report cites, which scores 84.25 once, at its end: images of 224 pixels,
ImageNet mean and deviation, batch 128, 4096-512-ReLU-dropout-10 in place of the last linear layer,
with PyTorch's default initialisation. It means to train the linear layer before too, but sets
`requires_grad` on a module, which does nothing: only the 2.10 M parameters of the new head are
trained, here as there. Assumed: norms keep their statistics of ImageNet.

The convolutions are applied once to all images, whose features take 6 GB of the device's memory;
--config.data.image_size=64 makes that twelve times cheaper and smaller. The weights are
torchvision's published ones, which are downloaded; name a file that you have by
--config.init.weights=FILE. Expected, not measured yet: a GPU takes minutes, two CPU cores hours,
and days for `finetune`.
"""

from ml_collections import ConfigDict

from resnet_jax.config import choose, default_config

# Model -> reported test accuracy, of one of its variants.
MODELS = {"vgg16": 89.93, "vgg16_bn": 91.03}
OPTIMIZERS = {"adam": "adam", "rmsprop": "rmsprop"}
LEARNING_RATES = {"0.001": 1e-3, "0.003": 3e-3}
EPOCHS = {"10": 10, "20": 20}
SHORT = {
    "bn": "vgg16_bn_adam_0.001_10",
    "rmsprop": "vgg16_rmsprop_0.001_10",
    "lr3e-3": "vgg16_adam_0.003_10",
}


def _finetune(config: ConfigDict) -> None:
    config.model.name, config.model.dtype = "vgg16_bn", "auto"
    config.data.val_fraction = 0.1
    config.evaluate.split = "val"
    config.init.cached_stage = 0
    config.augment.crop_padding = 4
    config.augment.flip = "random"
    config.loss.label_smoothing = 0.1
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 3e-4
    config.optimizer.weight_decay = 0.05
    config.optimizer.frozen = ""
    config.optimizer.learning_rate_factors = (("^(conv|bn)[12]_", 0.01), ("^(conv|bn)", 0.1))
    config.schedule.name = "cosine"
    config.schedule.warmup_epochs = 1.0


def get_config(variant: str = "vgg16_adam_0.001_10") -> ConfigDict:
    config = default_config()
    config.model.options.classifier = "transfer"
    config.batch_size = 128
    config.data.val_fraction = 0.0
    config.data.image_size = 224
    config.data.mean = (0.485, 0.456, 0.406)
    config.data.std = (0.229, 0.224, 0.225)
    config.init.weights = "torchvision"
    config.init.cached_stage = 5
    config.optimizer.frozen = "^(conv|bn|fc[12]/)"
    config.evaluate.split = "test"
    config.evaluate.batch_size = 100
    if variant == "finetune":
        _finetune(config)
        return config
    variant = SHORT.get(variant, variant)
    model, optimizer, learning_rate, num_epochs = [*variant.rsplit("_", 3), "", "", ""][:4]
    config.reported_accuracy = choose(MODELS, model)
    config.model.name = model
    config.optimizer.name = choose(OPTIMIZERS, optimizer)
    config.optimizer.learning_rate = choose(LEARNING_RATES, learning_rate)
    config.num_epochs = choose(EPOCHS, num_epochs)
    return config
