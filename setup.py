"""The packages of the wheel; all else is in pyproject.toml."""

from setuptools import find_namespace_packages, setup

setup(
    packages=[
        *find_namespace_packages(include=["resnet_jax*"]),
        "resnet_jax.configs",
        "resnet_jax.configs.search",
    ],
    package_dir={"resnet_jax.configs": "configs"},  # found by name where there is no clone
)
