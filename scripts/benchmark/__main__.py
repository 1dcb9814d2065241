"""`python scripts/benchmark [agree|decode|trials|tables] ...`; training without a name."""

import pathlib
import sys

import jax

sys.path[0] = str(pathlib.Path(__file__).parents[1])  # where the package is, and not its inside

from benchmark import agree, decode, tables, training, trials  # noqa: E402
from resnet_jax.errors import UserError  # noqa: E402

COMMANDS = {
    "agree": agree.main,
    "decode": decode.main,
    "tables": tables.main,
    "trials": trials.main,
}


def main(arguments: list[str]) -> int:
    """Runs the command line; returns the exit status."""
    command = COMMANDS.get(arguments[0]) if arguments else None
    try:
        command(arguments[1:]) if command else training.main(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")  # in this process: others measure the device
    sys.exit(main(sys.argv[1:]))
