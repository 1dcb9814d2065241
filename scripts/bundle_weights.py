"""Makes the best checkpoint of a finished run the weights that the package ships for its model.

python scripts/bundle_weights.py WORKDIR
"""

import pathlib
import sys
import tempfile

from resnet_jax.errors import UserError
from resnet_jax.files import write_atomically
from resnet_jax.inference.export import export_torch
from resnet_jax.platform import quieten_libraries
from resnet_jax.weights.info import BUNDLED, DEFAULT, WeightsInfo, described
from resnet_jax.weights.torch_files import TorchFile

LIMIT = 2_000_000  # bytes of a file


def bundle(workdir: str, bundled: pathlib.Path) -> tuple[pathlib.Path, WeightsInfo]:
    """Writes the file of a run's weights, and returns its path and what it says of itself.

    Args:
      workdir: the folder of the run.
      bundled: the folder of the package's weights.

    Raises:
      UserError: if the run is not finished, of another dataset, or its model too large.
    """
    with tempfile.TemporaryDirectory() as scratch:
        file = export_torch(workdir, pathlib.Path(scratch) / "weights.safetensors")
        info, content = described(TorchFile(file)), file.read_bytes()
    if info.test_accuracy is None:
        raise UserError(f"the run in {workdir} is not finished, or did not score the test set")
    if info.dataset != DEFAULT:
        raise UserError(f"the run in {workdir} is of {info.dataset!r}, not of {DEFAULT!r}")
    if len(content) > LIMIT:
        raise UserError(f"{info.model} takes {len(content):,} bytes, more than {LIMIT:,}")
    path = bundled / info.dataset / f"{info.model}.safetensors"
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, content)
    return path, info


def main() -> int:
    """Runs the command line; returns the exit status."""
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    quieten_libraries()
    try:
        path, info = bundle(sys.argv[1], BUNDLED)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {path}: {info.num_parameters:,} parameters, {info.test_accuracy:.2f} %")
    return 0


if __name__ == "__main__":
    sys.exit(main())
