"""Models and variables from files of PyTorch weights."""

import os
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
from flax.traverse_util import flatten_dict

from resnet_jax.errors import UserError
from resnet_jax.models.registry import create_model, variable_shapes
from resnet_jax.weights import hub
from resnet_jax.weights.info import described, find, read_info
from resnet_jax.weights.torch_files import TorchFile
from resnet_jax.weights.torch_names import implied_options
from resnet_jax.weights.torch_weights import fill, new_layers

Tree = Any


def load_model(
    name: str,
    num_classes: int | None = None,
    *,
    weights: str | os.PathLike[str] = "",
    image_shape: tuple[int, int, int] | None = None,
    **options: Any,
) -> tuple[nn.Module, dict[str, Tree]]:
    """Returns a model of the registry and its variables from a file.

    Args:
      name: a name of `resnet_jax.list_models()`; or, without `weights`, an address of the hub,
        `hf://user/name`, whose file says of which model it is.
      num_classes: number of logits; 0: no head; None: as many as the file has. A head of the file
        with another number gives way to a new one.
      weights: a `.pth`, `.pt`, `.th` or `.safetensors` file; nothing in it is executed. A name
        without slash and suffix, such as "cifar10", stands for weights that are part of the
        package, see `--list=weights`; an address for those of the hub.
      image_shape: `(height, width, channels)` of the images; None: as the file says, and of one
        that does not say it as in `import_torch`.
      **options: options of the model; others are taken from what a file of ours says of itself,
        and a ResNet's stem and a VGG's classifier are found from any file.

    Returns:
      The module, to be called as `module.apply(variables, x, train=...)`, and its variables.

    Raises:
      UserError: if there is no such model, or the file can't be used or does not fit it.
    """
    if not weights and not hub.is_address(name):
        raise UserError(f"load_model({name!r}) needs weights, such as weights='cifar10'")
    weights = weights or name
    file = TorchFile(find(name, weights))
    if weights == name:
        name = described(file).model
    info = read_info(file)
    if info is not None and info.model == name:
        image_shape, options = image_shape or info.input_shape, info.options | options
    shapes = {key: array.shape for key, array in file.tensors.items()}
    implied = implied_options(create_model(name, **options), shapes)
    found = implied.pop("num_classes", 0)
    if num_classes is None and not found:
        raise UserError(f"{weights} has no classifier of {name!r}; give num_classes")
    wanted = found if num_classes is None else num_classes
    model = create_model(name, wanted, **(implied | options))
    return model, fill(model, file, "keep" if num_classes is None else "fit", image_shape)


def import_torch(
    path: str | os.PathLike[str],
    model: nn.Module,
    head: str = "keep",
    *,
    image_shape: tuple[int, int, int] | None = None,
    seed: int = 0,
) -> dict[str, Tree]:
    """Returns the variables of a model from a file of PyTorch weights.

    Every tensor of the file is used once and every variable is set once; only `num_batches_tracked`
    and, where it is not kept, the head of the file are left out.

    Args:
      path: a `.pth`, `.pt`, `.th` or `.safetensors` file; nothing in it is executed.
      model: a module of the registry, of the file's architecture; with `num_classes=0` the head of
        the file is dropped.
      head: "keep" takes the classifier from the file, "fit" a new one where its shapes do not fit.
      image_shape: `(height, width, channels)` of the images; None: 32x32x3, or for a Vision
        Transformer the size that the file's positions are for.
      seed: seed of a new head.

    Returns:
      "params" and, if the model has any, "batch_stats", in the dtypes of the model.

    Raises:
      UserError: if the file can't be used, or does not fit the model.
    """
    return fill(model, TorchFile(path), head, image_shape, seed)


def adapted_variables(
    variables: Mapping[str, Tree],
    where: str,
    model: nn.Module,
    image_shape: tuple[int, int, int],
    seed: int,
    notify: Callable[[str], None],
) -> dict[str, Tree]:
    """Returns the variables of a run for another training; a head that does not fit is new.

    Args:
      variables: those of the run.
      where: the folder of the run, for messages.
      model: the module that is trained.
      image_shape: `(height, width, channels)` of its images.
      seed: seed of a new head.
      notify: called with one line: the run, and whether the head is new.

    Raises:
      UserError: if more than the head does not fit the model.
    """
    like = variable_shapes(model, image_shape)
    wanted = {path: leaf.shape for path, leaf in flatten_dict(like).items()}
    found = {path: leaf.shape for path, leaf in flatten_dict(dict(variables)).items()}
    paths = wanted.keys() | found.keys()
    layers = {path[1] for path in paths if wanted.get(path) != found.get(path)}
    if others := sorted(layers - {"head"}):
        raise UserError(
            f"config field init.weights: the model of the run {where} differs in {others[0]}"
        )
    new = "; the head is new, since the run's has other shapes" if layers else ""
    notify(f"starting from the weights of the run {where}{new}")
    head = new_layers(model, image_shape, seed, layers) if layers else {}
    adapted = {**variables, "params": {**variables["params"], **head}}
    return {
        name: jax.tree.map(lambda a, b: a.astype(b.dtype), tree, like.get(name, tree))
        for name, tree in adapted.items()
    }
