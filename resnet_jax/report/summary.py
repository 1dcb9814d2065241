"""A config before it runs: its model's layers as a table, its learning rate as a plot."""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import numpy as np
from clu import parameter_overview
from ml_collections import ConfigDict

from resnet_jax.data.registry import open_dataset
from resnet_jax.models.layers import Function
from resnet_jax.models.registry import variable_shapes
from resnet_jax.models.vit import Attention
from resnet_jax.platform import compute_dtype
from resnet_jax.training.task import create_task
from resnet_jax.trees import named_leaves

PLOT_COLUMNS, PLOT_LINES = 72, 8


@dataclasses.dataclass
class Layer:
    """One module of a model, or the model itself where it has parameters of its own.

    Attributes:
      path: names of the module and of those around it, joined by "/"; "." is the model itself.
      kind: class of the module, or name of the function that it applies.
      output_shape: shape of its output for one image, without the batch axis.
      parameters: number of its own parameters.
      macs: multiply-accumulates of its forward pass for one image.
    """

    path: str
    kind: str
    output_shape: tuple[int, ...]
    parameters: int
    macs: int


def layer_table(model: nn.Module, input_shape: Sequence[int]) -> list[Layer]:
    """Returns the layers and blocks of a model in the order in which their outputs are ready.

    The model is traced, not run. Counted are the multiply-accumulates of convolutions, linear
    layers and attention; biases, norms, activations and pools are not, as is usual. Dropout at a
    rate of zero is left out.

    Args:
      model: a classifier of `resnet_jax.models`.
      input_shape: `(height, width, channels)` of one image.

    Raises:
      UserError: if the model can't take such images.
    """
    layers: list[Layer] = []

    def record(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        output, module = call(*args, **kwargs), context.module
        if context.method_name != "__call__" or getattr(module, "rate", None) == 0:
            return output
        kind, path = type(module).__name__, module.path
        if isinstance(module, Function):
            kind = getattr(module.function, "func", module.function).__name__
            path = (*path[:-1], kind)
        params = module.variables.get("params", {})
        own = {name: value for name, value in params.items() if not isinstance(value, dict)}
        if path or own:
            parameters = sum(math.prod(value.shape) for value in own.values())
            macs = _macs(module, own, output.shape)
            layers.append(Layer("/".join(path) or ".", kind, output.shape[1:], parameters, macs))
        if activation := kwargs.get("activation"):  # a norm computes it too
            name = activation.__name__
            layers.append(Layer("/".join((*path[:-1], name)), name, output.shape[1:], 0, 0))
        return output

    with nn.intercept_methods(record):
        variable_shapes(model, input_shape)
    return layers


def format_model(model: nn.Module, input_shape: Sequence[int], frozen: str = "") -> str:
    """Returns a table of a model's layers, totals and sizes, and a table of its parameters.

    Sizes are for one image in float32, as torchsummary estimates them: each output counts twice,
    since its gradient is as large.

    Args:
      model: a classifier of `resnet_jax.models`.
      input_shape: `(height, width, channels)` of one image.
      frozen: regular expression of the paths of parameters that are not trained; empty: none.

    Raises:
      UserError: if the model can't take such images.
    """
    layers, params = layer_table(model, input_shape), variable_shapes(model, input_shape)["params"]
    counts = {path: math.prod(leaf.shape) for path, leaf in named_leaves(params)}
    fixed = sum(n for path, n in counts.items() if frozen and re.search(frozen, path))
    total = sum(counts.values())
    outputs = sum(math.prod(layer.output_shape) for layer in layers)
    sizes = [4 * n / 2**20 for n in (math.prod(input_shape), 2 * outputs, total)]
    return "\n".join(
        [
            parameter_overview.make_table(layers),
            f"Multiply-accumulates: {sum(layer.macs for layer in layers):,} per image",
            f"Total params: {total:,}",
            f"Trainable params: {total - fixed:,}",
            f"Non-trainable params: {fixed:,}",
            f"Input size (MB): {sizes[0]:.2f}",
            f"Forward/backward pass size (MB): {sizes[1]:.2f}",
            f"Params size (MB): {sizes[2]:.2f}",
            f"Estimated Total Size (MB): {sum(sizes):.2f}",
            "",
            parameter_overview.get_parameter_overview(params, include_stats=False),
        ]
    )


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


def print_summary(config: ConfigDict) -> None:
    """Prints the layers of a config's model and a plot of its learning rate.

    Raises:
      UserError: if the config asks for what there is not.
    """
    config.model.dtype = compute_dtype(config.model.dtype)
    task = create_task(config, open_dataset(config.data).info)
    print(format_model(task.network.module, task.input_shape, config.optimizer.frozen))
    print(f"\nlearning rate, {config.schedule.name}")
    print(format_schedule(task.learning_rates, config.num_epochs))


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
