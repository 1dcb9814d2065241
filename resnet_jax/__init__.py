"""Residual networks for image classification in JAX and Flax."""
