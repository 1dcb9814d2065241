"""What our files of weights say of themselves, and those that are part of the package.

A file that `resnet_jax.export_torch` writes has, beside its tensors, a `WeightsInfo` as JSON in the
header of the safetensors format, under the name `HEADER`.
"""

import dataclasses
import json
import math
import os
import pathlib
import typing
from typing import Annotated, Any, Literal

import flax.linen as nn

from resnet_jax.config.checks import Bounds, checked
from resnet_jax.errors import UserError, shown, unknown
from resnet_jax.models.registry import create_model
from resnet_jax.weights import hub
from resnet_jax.weights.torch_files import TorchFile

HEADER = "resnet_jax"
BUNDLED = pathlib.Path(__file__).parent  # of a folder for each dataset, with a file for each model
DEFAULT = "cifar10"

_LONGEST = 2**22  # characters
_NUMBERS = 2**26  # of an image


def _name(what: str, value: str) -> str:
    if not value.isprintable() or len(value) > 200:
        raise UserError(f"{what} must be printable and short, not {shown(value)}")
    return value


_Name = Annotated[str, _name]
_Side = Annotated[int, Bounds(1, 100_000)]
_Mean = Annotated[float, Bounds(-10, 10)]
_Deviation = Annotated[float, Bounds(above=0, high=10)]
_Percent = Annotated[float, Bounds(0, 100)]


@dataclasses.dataclass(frozen=True)
class WeightsInfo:
    """What a file of weights is for, and where it comes from.

    Attributes:
      model: a name of `resnet_jax.list_models()`.
      options: the options of the model that are not the registry's.
      dataset: name of the dataset that it was trained on.
      image_shape: height, width and channels of the images of the dataset.
      image_size: side that images are then resized to, pixels; 0: as they are.
      class_names: the names of the classes, by logit.
      mean: mean of each channel that is subtracted, of pixels in [0, 1].
      std: deviation of each channel that is divided by, of pixels in [0, 1].
      test_time_augmentation: "mirror" if logits are averaged with the mirror image's, or "none".
      num_parameters: number of parameters.
      provenance: "config", "seed", "time", "commit" and "version" of the training, among others.
      test_accuracy: accuracy on the test images as the run recorded it, percent; None: not known.
    """

    model: _Name
    options: dict
    dataset: _Name
    image_shape: tuple[_Side, _Side, _Side]
    image_size: Annotated[int, Bounds(0, 1024)]
    class_names: tuple[_Name, ...]
    mean: tuple[_Mean, ...]
    std: tuple[_Deviation, ...]
    test_time_augmentation: Literal["none", "mirror"]
    num_parameters: int
    provenance: dict
    test_accuracy: _Percent | None = None

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of what the model takes."""
        size = self.image_size
        return (size, size, self.image_shape[-1]) if size else self.image_shape

    def create_model(self) -> nn.Module:
        """Returns the module, with a logit for each class."""
        return create_model(self.model, len(self.class_names), **self.options)

    def header(self) -> dict[str, str]:
        """Returns it as the metadata of a file."""
        known = {n: value for n, value in dataclasses.asdict(self).items() if value is not None}
        return {HEADER: json.dumps(known, allow_nan=False)}


def read_info(file: TorchFile) -> WeightsInfo | None:
    """Returns what a file says of itself; None: it says nothing, as those of others.

    Raises:
      UserError: if what it says is incomplete, contradicts itself, or there is no such model.
    """
    text = file.metadata.get(HEADER)
    if text is None:
        return None
    try:
        if len(text) > _LONGEST:
            raise UserError(f"it is longer than {_LONGEST:,} characters")
        info = _from_json(json.loads(text))
        info.create_model()
    except (ValueError, TypeError, RecursionError) as error:  # of JSON, of checks and of options
        raise UserError(f"{file.path} can't be used: its header: {error}") from None
    return info


def _from_json(value: Any) -> WeightsInfo:
    if not isinstance(value, dict):
        raise UserError(f"it must be an object of JSON, not {shown(value)}")
    hints = typing.get_type_hints(WeightsInfo, include_extras=True)
    hints["test_accuracy"] = _Percent
    if lacking := hints.keys() - value.keys() - {"test_accuracy"}:
        raise UserError(f"it lacks {', '.join(sorted(lacking))}")
    info = WeightsInfo(**{n: checked(n, hints[n], value[n]) for n in hints if n in value})
    if not info.class_names:
        raise UserError("class_names is empty")
    if math.prod(info.image_shape) > _NUMBERS:
        raise UserError(f"image_shape has more than {_NUMBERS:,} numbers")
    if not len(info.mean) == len(info.std) == info.image_shape[-1]:
        raise UserError("mean and std must have a number for each channel of image_shape")
    return info


def weights_info(model: str, weights: str | os.PathLike[str] = DEFAULT) -> WeightsInfo:
    """Returns what there is to tell of a file of weights, such as class names, mean and deviation.

    Args:
      model: a name of `resnet_jax.list_models()`.
      weights: as for `resnet_jax.load_model`.

    Raises:
      UserError: if there is no such file, it can't be used, it is of another model, or it says
        nothing of itself.
    """
    path = find(model, weights)
    info = described(TorchFile(path))
    if info.model != model:
        raise UserError(f"{path} is of the model {info.model!r}, not {model!r}")
    return info


def described(file: TorchFile) -> WeightsInfo:
    """Returns what a file says of itself, as `read_info`, or refuses one that says nothing."""
    info = read_info(file)
    if info is None:
        raise UserError(
            f"{file.path} does not say of which model, classes, mean and std it is (no "
            f"{HEADER!r} in its header); take a file that --mode=export wrote"
        )
    return info


def find(model: str, weights: str | os.PathLike[str]) -> pathlib.Path:
    """Returns the path of a file of weights.

    Args:
      model: name of the model.
      weights: a path, or an address of the hub, `hf://user/name`; or, without slash and suffix,
        the dataset that weights of the package are of.

    Raises:
      UserError: if the package has no such weights, or the hub.
    """
    if _is_path(weights):
        return _local(weights)
    name = os.fspath(weights)
    datasets = {path.parent.name for path in BUNDLED.glob("*/*.safetensors")}
    if name not in datasets:
        raise unknown("weights", name, datasets)
    files = bundled(name)
    if model not in files:
        raise unknown(f"model with {name} weights", model, files)
    return files[model]


def find_by_model(weights: str | os.PathLike[str]) -> pathlib.Path:
    """Returns the file of weights that a path, an address or the name of a model stands for."""
    return _local(weights) if _is_path(weights) else find(os.fspath(weights), DEFAULT)


def bundled(dataset: str = DEFAULT) -> dict[str, pathlib.Path]:
    """Returns the files of the package's weights of a dataset, by their models."""
    return {path.stem: path for path in sorted((BUNDLED / dataset).glob("*.safetensors"))}


def _local(weights: str | os.PathLike[str]) -> pathlib.Path:
    """Returns the file of a path or an address."""
    return hub.fetch(os.fspath(weights)) if hub.is_address(weights) else pathlib.Path(weights)


def _is_path(weights: str | os.PathLike[str]) -> bool:
    return any(mark in os.fspath(weights) for mark in (os.sep, "."))
