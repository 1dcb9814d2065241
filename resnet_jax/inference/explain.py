"""Where a model looks: Grad-CAM of convolutional networks, attention rollout of transformers."""

import functools
import itertools
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from resnet_jax.errors import UserError
from resnet_jax.files import is_within, writing
from resnet_jax.inference.predict import Classifier, Prediction, Watch
from resnet_jax.models.layers import Function
from resnet_jax.models.vit import VisionTransformer, attention_weights
from resnet_jax.training.state import Tree

_SIDE = 224  # least side of an overlay, pixels
# From dark to bright through red, so that those who can't tell red from green see it too.
_COLOURS = np.array([[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]])


def grad_cam(module: nn.Module, variables: Tree, x: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns what speaks for a class, by place: Grad-CAM (Selvaraju et al. 2017), of the last map.

    The last map is what the last convolution, with its norm, sum and activation, makes of the
    image. Its channels are weighted by the mean of the class's gradient over all places, and what
    is negative in their sum is cut off.

    Args:
      module: a convolutional classifier of any kind.
      variables: its parameters and statistics.
      x: what it takes, `[batch, height, width, channels]`.
      labels: the class to explain of each image, integers `[batch]`.

    Returns:
      float32 `[batch, height', width']`, not negative, of the size of the last map.
    """
    maps = jax.eval_shape(lambda: _call(module, variables, x)[1])
    last = len(maps) - 1

    def score(offset: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits, maps = _call(module, variables, x, last, offset)
        return jnp.take_along_axis(logits, labels[:, None], 1).sum(), maps[last]

    zeros = jnp.zeros(maps[last].shape, maps[last].dtype)
    gradient, features = jax.grad(score, has_aux=True)(zeros)
    weights = gradient.astype(jnp.float32).mean((1, 2), keepdims=True)
    return nn.relu((weights * features).sum(-1))


def attention_rollout(module: VisionTransformer, variables: Tree, x: jax.Array) -> jax.Array:
    """Returns how much of each patch reaches the class token: attention rollout.

    Source: "Quantifying Attention Flow in Transformers" (Abnar and Zuidema 2020): of each block
    the mean over heads, and half of the identity for the residual connection.

    Args:
      module: a transformer.
      variables: its parameters.
      x: what it takes, `[batch, height, width, channels]`.

    Returns:
      float32 `[batch, height / patch, width / patch]`, not negative.
    """
    options: Any = {
        "capture_intermediates": lambda layer, _: layer.name == "qkv",
        "mutable": ["intermediates"],
    }
    _, found = module.apply(variables, x, train=False, **options)
    flow: Any = 1.0
    for index in range(1, module.num_layers + 1):
        (qkv,) = found["intermediates"][f"block{index}"]["attention"]["qkv"]["__call__"]
        weights = attention_weights(qkv, module.num_heads)[0].mean(1)
        mixed = 0.5 * (weights + jnp.eye(weights.shape[-1]))
        flow = mixed @ flow if index > 1 else mixed
    side = module.patch_size
    return flow[:, 0, 1:].reshape(len(x), x.shape[1] // side, x.shape[2] // side)


def overlay(pixels: np.ndarray, heat: np.ndarray) -> Image.Image:
    """Returns an image under a map of heat, at least 224 pixels wide and high.

    Args:
      pixels: uint8 `[height, width, channels]`, channels 1 or 3.
      heat: floats `[height', width']`, not negative; its largest number is the brightest place.
    """
    height, width, _ = pixels.shape
    scale = -(-_SIDE // min(height, width))
    size = scale * width, scale * height
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).convert("RGB")
    below = np.asarray(picture.resize(size, Image.Resampling.NEAREST), np.float32)
    share = (heat / max(float(heat.max()), 1e-12)).astype(np.float32)
    share = np.asarray(Image.fromarray(share).resize(size, Image.Resampling.BICUBIC)).clip(0, 1)
    places = np.linspace(0, 1, len(_COLOURS))
    colours = np.stack([np.interp(share, places, channel) for channel in _COLOURS.T], -1)
    strength = 0.3 + 0.4 * share[..., None]
    return Image.fromarray(((1 - strength) * below + strength * colours).astype(np.uint8))


def overlay_writer(classifier: Classifier, folder: pathlib.Path, images: Sequence[str]) -> Watch:
    """Returns what writes overlays of what speaks for the predicted class of each image of a batch.

    Args:
      classifier: what predicts.
      folder: where they go, named by the number of the image and the name of its file; it is made.
      images: names of files and folders, which are read while overlays are written.

    Raises:
      UserError: if the folder can't be made, or is in one of the images, and from what is returned
        if a file can't be written.
    """
    for name in filter(os.path.isdir, images):
        if is_within(folder, name):
            raise UserError(
                f"--cam writes into {folder}, which is in {name}: give the images by a pattern, "
                "such as '*.jpg', or from another folder"
            )
    with writing(folder):
        folder.mkdir(exist_ok=True)
    names, numbers = classifier.class_names, itertools.count(1)
    explain = jax.jit(functools.partial(_explain, classifier.network))

    def write(pixels: np.ndarray, predictions: list[Prediction]) -> None:
        labels = np.array([names.index(found.class_names[0]) for found in predictions])
        heats = np.asarray(explain(classifier.variables, pixels, labels))
        for found, image, heat in zip(predictions, pixels, heats, strict=True):
            stem = os.path.splitext(os.path.basename(found.path))[0]
            path = folder / f"{next(numbers):05}-{stem[:60]}.png"
            with writing(path):
                overlay(image, heat).save(path)

    return write


def _explain(network: Any, variables: Tree, images: jax.Array, labels: jax.Array) -> jax.Array:
    x, module = network.inputs(images), network.module
    if isinstance(module, VisionTransformer):
        return attention_rollout(module, variables, x)
    if getattr(module, "remat", 0):  # what is computed again can't be looked at
        module = module.clone(remat=0)
    return grad_cam(module, variables, x, labels)


def _call(
    module: nn.Module,
    variables: Tree,
    x: jax.Array,
    index: int = -1,
    offset: jax.Array | float = 0.0,
) -> tuple[jax.Array, list[jax.Array]]:
    """Returns logits and all maps of a model, of which one has an offset added to it."""
    maps: list[jax.Array] = []

    def add_offset(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        output = call(*args, **kwargs)
        if context.method_name != "__call__" or output.ndim != 4 or _is_pool(context.module):
            return output
        if len(maps) == index:
            output = output + offset
        maps.append(output)
        return output

    with nn.intercept_methods(add_offset):
        logits: Any = module.apply(variables, x, train=False)
    return logits, maps


def _is_pool(module: nn.Module) -> bool:
    """Returns whether a module pools: what it makes of a map may say less of places."""
    if not isinstance(module, Function):
        return False
    return "pool" in getattr(module.function, "func", module.function).__name__
