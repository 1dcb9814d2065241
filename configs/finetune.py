"""Your own photographs, in folders named for their classes, on a network that knows ImageNet.

python -m resnet_jax.main --config=configs/finetune.py --config.data.name=folder:PHOTOS \
    --config.init.weights=torchvision

PHOTOS holds a folder of images for each class, or `train/` and `val/` with such folders. Without
`val/` and `test/` a fifth of each class tests the result; a tenth of the rest chooses the
checkpoint. The new head learns at the full rate, all that torchvision's weights bring at a tenth of
it. `torchvision` downloads 47 MB once; a file of such weights can be named instead. Without
`init.weights` the network starts from random weights, which takes many more images and epochs.

Reproduces no report, and was not measured at 224 pixels; accuracy and time depend on the images.
They stay on the device, as bytes, of which 7,000 of 224x224 pixels take one gigabyte, or stream if
they don't fit (data.resident_bytes).
"""

from ml_collections import ConfigDict

from resnet_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.num_epochs = 10
    config.batch_size = 32
    config.model.dtype = "auto"
    config.model.name = "resnet18"
    config.model.options.stem = "imagenet"
    config.data.name = "folder:photos"
    config.data.image_size = 224
    # Those of ImageNet, which the weights were trained with.
    config.data.mean = (0.485, 0.456, 0.406)
    config.data.std = (0.229, 0.224, 0.225)
    config.augment.resized_crop = 0.25
    config.augment.flip = "random"
    config.loss.label_smoothing = 0.1
    config.optimizer.options.momentum = 0.9
    config.optimizer.learning_rate = 0.02
    config.optimizer.learning_rate_factors = (("^(?!head/)", 0.1),)
    config.optimizer.weight_decay = 1e-4
    config.optimizer.no_decay = "bn|bias"
    config.schedule.name = "cosine"
    config.schedule.warmup_epochs = 0.5
    config.evaluate.batch_size = 100
    return config
