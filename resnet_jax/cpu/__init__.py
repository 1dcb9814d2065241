"""What convolutions and norms become on a CPU: calls of oneDNN. Nothing but `main` imports it."""

from resnet_jax.cpu.lowering import enable

__all__ = ["enable"]
