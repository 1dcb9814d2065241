"""The folder of a model on the Hugging Face hub: what belongs beside its file of weights."""

import dataclasses
import json
import pathlib

from resnet_jax.weights import hub
from resnet_jax.weights.info import WeightsInfo, described
from resnet_jax.weights.torch_files import TorchFile

_CARD = """---
library_name: resnet_jax
pipeline_tag: image-classification
tags: [jax, flax, image-classification]
---

# {model}, trained on {dataset}

{parameters:,} parameters, {classes} classes, images of {height} x {width} pixels.{accuracy}

```python
import resnet_jax

model, variables = resnet_jax.load_model("{address}")
info = resnet_jax.weights_info("{model}", "{address}")  # class names, mean, deviation, provenance
```

```bash
python -m resnet_jax.main --mode=predict --weights={address} IMAGE
```

PyTorch reads `{file}` by `safetensors.torch.load_file`. `config.json` says how and where it was
trained{where}.
"""


def complete_folder(folder: pathlib.Path, address: str) -> None:
    """Writes `config.json`, what the weights say of themselves, and `README.md`, the model's card.

    Args:
      folder: the folder, which holds the weights, `hub.FILE`.
      address: where it will be.

    Raises:
      UserError: if the file does not say what it is.
    """
    info = described(TorchFile(folder / hub.FILE))
    config = json.dumps(dataclasses.asdict(info), indent=2)
    (folder / "config.json").write_text(f"{config}\n")
    (folder / "README.md").write_text(_card(info, address))


def _card(info: WeightsInfo, address: str) -> str:
    known = {name: info.provenance.get(name) for name in ("time", "commit", "seed")}
    where = ", ".join(f"{name} {value}" for name, value in known.items() if value is not None)
    mirror = ", mirror images counted in" if info.test_time_augmentation == "mirror" else ""
    accuracy = ""
    if info.test_accuracy is not None:
        accuracy = f" Test accuracy: {info.test_accuracy:.2f} %{mirror}."
    height, width, _ = info.image_shape
    return _CARD.format(
        where=where and f" ({where})",
        address=address,
        file=hub.FILE,
        model=info.model,
        dataset=info.dataset,
        parameters=info.num_parameters,
        classes=len(info.class_names),
        height=height,
        width=width,
        accuracy=accuracy,
    )
