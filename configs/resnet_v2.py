"""Trains resnet_v2."""

from resnet_jax.config import default_config


def get_config(variant: str = "sgd"):
    config = default_config()
    config.model.name = "resnet_v2"
    return config
