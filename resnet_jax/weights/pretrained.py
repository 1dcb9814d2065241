"""Published weights: torchvision's ImageNet models, downloaded once and checked."""

import os
from collections.abc import Callable
from pathlib import Path

from resnet_jax.data import cache
from resnet_jax.data.download import Progress, Remote, fetch
from resnet_jax.errors import UserError
from resnet_jax.weights import hub
from resnet_jax.weights.info import bundled

URL = "https://download.pytorch.org/models/"

# Model -> file; the end of a name is how the SHA-256 of the file begins.
FILES = {
    "resnet18": "resnet18-f37072fd.pth",
    "resnet34": "resnet34-b627a593.pth",
    "resnet50": "resnet50-0676ba61.pth",
    "resnet101": "resnet101-63fe2227.pth",
    "resnet152": "resnet152-394f9c45.pth",
    "vgg11": "vgg11-8a719046.pth",
    "vgg13": "vgg13-19584684.pth",
    "vgg16": "vgg16-397923af.pth",
    "vgg19": "vgg19-dcbb9e9d.pth",
    "vgg11_bn": "vgg11_bn-6002323d.pth",
    "vgg13_bn": "vgg13_bn-abd245e5.pth",
    "vgg16_bn": "vgg16_bn-6c64b313.pth",
    "vgg19_bn": "vgg19_bn-c79401a0.pth",
}


def weights_file(
    weights: str, model: str, notify: Callable[[str], None], progress: Progress | None = None
) -> Path:
    """Returns the file that `init.weights` of a config stands for.

    Args:
      weights: a path; a model of which the package has weights; "torchvision", its file of the
        model; or an address of the hub, `hf://user/name`. The latter are cached or downloaded.
      model: name of the model.
      notify: called with a line if another process is downloading.
      progress: told about every piece of the download; None: `notify` is, in plain lines.

    Raises:
      UserError: if there is no such file, torchvision publishes none, its host is out of reach, or
        what it sends differs.
    """
    if hub.is_address(weights):
        return hub.fetch(weights)
    if not os.path.exists(weights) and weights in bundled():
        return bundled()[weights]
    if weights != "torchvision":
        if not os.path.isfile(weights):
            raise UserError(f"config field init.weights: there is no file or run {weights}")
        return Path(weights)
    if model not in FILES:
        raise UserError(
            f"config field init.weights is 'torchvision', which has no weights for {model}; "
            f"name a file, or take a model of {', '.join(FILES)}"
        )
    path = cache.default_cache_dir() / "weights" / FILES[model]
    if not path.is_file():
        remote = Remote(URL + path.name, 0, path.stem.rpartition("-")[2], "sha256")
        instead = "name a file that you have by --config.init.weights=FILE"
        fetch(remote, path, notify, progress, instead)
    return path
