"""The config: its fields, the checks of their values, where configs come from."""

from resnet_jax.config.load import choose, default_config, default_search

__all__ = ["choose", "default_config", "default_search"]
