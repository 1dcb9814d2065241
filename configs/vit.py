"""R1.g, Vision Transformers on 32x32 images, patches of 4 pixels.

  python -m resnet_jax.main --config=configs/vit.py           ViT-tiny
  python -m resnet_jax.main --config=configs/vit.py:small     ViT-small

The report names the Vision Transformer as future work and gives no recipe or figure: this one is
ours, with strong augmentation since there is no pre-training. Expected, not measured yet: about
90 % after 200 epochs; for a GPU, since two CPU cores would take two days.
"""

from ml_collections import ConfigDict

from resnet_jax.config import choose, default_config


def get_config(variant: str = "tiny") -> ConfigDict:
    config = default_config()
    config.model.name = choose({"tiny": "vit_tiny", "small": "vit_small"}, variant)
    config.num_epochs = 200
    config.batch_size = 256
    config.data.drop_last = True
    config.augment.crop_padding = 4
    config.augment.flip = "random"
    config.augment.policy = "randaugment"
    config.augment.mixup = 0.8
    config.augment.cutmix = 1.0
    config.loss.label_smoothing = 0.1
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 0.05
    config.optimizer.no_decay = "bias|norm|cls_token|pos_embed"
    config.optimizer.gradient_clip = 1.0
    config.schedule.name = "cosine"
    config.schedule.warmup_epochs = 10.0
    return config
