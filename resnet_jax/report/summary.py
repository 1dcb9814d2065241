"""A config before it runs: its model's layers as a table, its learning rate as a plot."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from clu import parameter_overview

from resnet_jax.models.vit import Attention

PLOT_COLUMNS, PLOT_LINES = 72, 8


@dataclasses.dataclass
class Layer:
    """One module that has parameters of its own, or multiplies.

    Attributes:
      path: names of the module and of those around it, joined by "/"; "." is the model itself.
      kind: class of the module.
      output_shape: shape of its output for one image, without the batch axis.
      parameters: number of its own trainable parameters.
      macs: multiply-accumulates of its forward pass for one image.
    """

    path: str
    kind: str
    output_shape: tuple[int, ...] = ()
    parameters: int = 0
    macs: int = 0


def layer_table(model: nn.Module, input_shape: Sequence[int]) -> list[Layer]:
    """Returns the layers of a model in the order in which they are called.

    The model is traced, not run. Counted are the multiply-accumulates of convolutions, linear
    layers and attention; biases, norms, activations and pools are not, as is usual.

    Args:
      model: a classifier of `resnet_jax.models`.
      input_shape: `(height, width, channels)` of one image.

    Raises:
      UserError: if the model can't take such images.
    """
    layers: list[Layer] = []

    def record(
        call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        if context.method_name != "__call__":
            return call(*args, **kwargs)
        module = context.module
        layer = Layer("/".join(module.path) or ".", type(module).__name__)
        layers.append(layer)
        output = call(*args, **kwargs)
        params = module.variables.get("params", {})
        own = {name: value for name, value in params.items() if not isinstance(value, dict)}
        layer.output_shape = output.shape[1:]
        layer.parameters = sum(math.prod(value.shape) for value in own.values())
        layer.macs = _macs(module, own, output.shape)
        return output

    with nn.intercept_methods(record):
        _shapes(model, input_shape)
    return [layer for layer in layers if layer.parameters or layer.macs]


def format_model(model: nn.Module, input_shape: Sequence[int]) -> str:
    """Returns a table of a model's layers and one of its parameters, each with the totals below.

    Args:
      model: a classifier of `resnet_jax.models`.
      input_shape: `(height, width, channels)` of one image.

    Raises:
      UserError: if the model can't take such images.
    """
    layers = layer_table(model, input_shape)
    macs = sum(layer.macs for layer in layers)
    parameters = parameter_overview.get_parameter_overview(
        _shapes(model, input_shape)["params"], include_stats=False
    )
    table = parameter_overview.make_table(layers)
    return f"{table}\nTotal: {macs:,} multiply-accumulates per image\n\n{parameters}"


def format_schedule(learning_rates: np.ndarray, num_epochs: int) -> str:
    """Returns the learning rate over a run as a plot of text, with as many lines as `PLOT_LINES`.

    Args:
      learning_rates: the rate of every step, `[steps]`.
      num_epochs: length of the run, epochs.
    """
    if not len(learning_rates):
        return "no steps"
    peak = max(float(learning_rates.max()), 1e-30)
    repeats = -(-PLOT_COLUMNS // len(learning_rates))  # of a run with fewer steps than columns
    parts = np.array_split(np.repeat(learning_rates, repeats), PLOT_COLUMNS)
    columns = [part.mean() / peak for part in parts]
    eighths = [round(float(height) * PLOT_LINES * 8) for height in columns]
    lines = []
    for line in reversed(range(PLOT_LINES)):
        cells = "".join(" ▁▂▃▄▅▆▇█"[min(max(n - 8 * line, 0), 8)] for n in eighths)
        label = {PLOT_LINES - 1: f"{peak:.3g}", 0: "0"}.get(line, "")
        lines.append(f"{label:>9} |{cells}")
    lines.append(f"{'epoch':>9} 0{num_epochs:>{PLOT_COLUMNS}}")
    return "\n".join(lines)


def _shapes(model: nn.Module, input_shape: Sequence[int]) -> Any:
    """Returns the shapes and dtypes of a model's variables."""
    images = jnp.zeros((1, *input_shape))
    return jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))


def _macs(module: nn.Module, own: dict[str, Any], output_shape: tuple[int, ...]) -> int:
    """Returns the multiply-accumulates of a module itself, without its submodules, for one image.

    A kernel, of a convolution or a linear layer, is used once at each position of the output.
    """
    if isinstance(module, Attention):
        tokens, width = output_shape[1:]
        return 2 * tokens * tokens * width
    if "kernel" not in own:
        return 0
    return math.prod(own["kernel"].shape) * math.prod(output_shape[1:-1])
