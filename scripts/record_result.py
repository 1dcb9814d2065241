"""Keeps the record of a finished run in results/ and prints its row of the README's table.

python scripts/record_result.py WORKDIR CONFIG[:VARIANT]
"""

import json
import pathlib
import shlex
import sys
from typing import Any

from resnet_jax.errors import UserError
from resnet_jax.runs import folder as workdir
from resnet_jax.runs import records as records_lib
from resnet_jax.runs.terminal import duration

RESULTS = pathlib.Path(__file__).parent.parent / "results"


def collect(folder: pathlib.Path, config: str) -> dict[str, Any]:
    """Returns what there is to tell of a finished run.

    Args:
      folder: the folder of the run.
      config: the config that it ran, FILE:VARIANT of configs/.

    Raises:
      UserError: if it is not finished.
    """
    settings = workdir.read_run(folder)[0]
    records, bad = records_lib.read(folder / workdir.METRICS)
    if bad:
        raise UserError(f"{folder / workdir.METRICS} has {bad} torn or altered lines: not recorded")
    final = records[-1] if records else None
    if final is None or final["kind"] != "final":
        raise UserError(f"the run in {folder} is not finished; start its training again")
    if final["test_accuracy"] is None:
        raise UserError(f"the run in {folder} did not score the test set: evaluate.score_test")
    starts = [json.loads(line) for line in (folder / "starts.jsonl").read_text().splitlines()]
    overrides = [
        argument
        for argument in shlex.split(starts[0]["command"])[1:]
        if argument.startswith("--config.") and "weights" not in argument
    ]
    kept = ("time", "commit", "version", "python", "jax", "devices", "cores")
    return {
        "config": config,
        "overrides": overrides,
        "seed": settings.seed,
        "starts": [{name: start[name] for name in kept} for start in starts],
        "final": final,
        "scores": [record for record in records if record["kind"] == "score"],
    }


def row(result: dict[str, Any]) -> str:
    """Returns a row of the README's table."""
    final, start = result["final"], result["starts"][0]
    train = "-" if final["train_accuracy"] is None else f"{final['train_accuracy']:.2f}"
    return (
        f"| `{' '.join([result['config'], *result['overrides']])}` | | {train} | "
        f"{final['test_accuracy']:.2f} | {final['best_test_accuracy']:.2f} | "
        f"{final['epoch']:g} | {duration(final['seconds'])} | {result['seed']} | "
        f"{start['commit'][:8]} |"
    )


def main() -> int:
    """Runs the command line; returns the exit status."""
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        result = collect(pathlib.Path(sys.argv[1]), sys.argv[2])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    name = sys.argv[2].replace(".py", "").replace(":", "-")
    path = RESULTS / f"{name}-seed{result['seed']}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(row(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
