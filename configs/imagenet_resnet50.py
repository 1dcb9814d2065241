"""ImageNet on ResNet-50, the classic 90 epochs: 25,557,032 parameters.

  python -m resnet_jax.main --config=configs/imagenet_resnet50.py

Batch 1,024, the learning rate scaled with it, and warmed up (Goyal et al., "Accurate, Large
Minibatch SGD", 2017); label smoothing 0.1; bfloat16. The classic figure is 76.1 % (torchvision's
first weights, without label smoothing). Not measured here: accuracy and time are unknown.

The photographs are prepared once, `tfds build imagenet2012 --file_format=array_record` with
TensorFlow installed, and stream from there; --config.data.name=folder:PATH takes them from
folders. The validation images test the result, so none choose the checkpoint.
"""

from ml_collections import ConfigDict

from resnet_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.num_epochs = 90
    config.batch_size = 1024
    config.model.name = "resnet50"
    config.model.dtype = "bfloat16"
    config.model.options.stem = "imagenet"
    config.data.name = "imagenet2012"
    config.data.image_size = 224
    config.data.val_fraction = 0.0
    config.data.drop_last = True
    config.data.mean = (0.485, 0.456, 0.406)
    config.data.std = (0.229, 0.224, 0.225)
    config.augment.resized_crop = 0.08
    config.augment.flip = "random"
    config.loss.label_smoothing = 0.1
    config.optimizer.learning_rate = 0.1 * 1024 / 256
    config.optimizer.weight_decay = 1e-4
    config.optimizer.no_decay = "bn|bias"
    config.optimizer.options.momentum = 0.9
    config.optimizer.options.nesterov = True
    config.schedule.name = "cosine"
    config.schedule.warmup_epochs = 5.0
    config.evaluate.split = "test"
    config.evaluate.batch_size = 500
    return config
