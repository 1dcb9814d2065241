"""Measures trials of a search side by side in one program, beside one by one.

  python scripts/benchmark trials --model=resnet_small --parallel=1,4,16 --batch=128 --json=FILE

Each number of `--parallel` is a process of its own that trains so many of one shape at once, as
`search.parallel_trials` does; what is timed is the training of `training.py`. They take their turns
one after the other, and the ratio is that to 1, which is one by one.
"""

import argparse
import contextlib
import json
from collections.abc import Sequence
from typing import Any

from benchmark import machine, tables
from benchmark.contestants import Contestant, gather, take_turns
from benchmark.training import DTYPES, names_of, numbers_of, steps_of_a_turn, task_of


def main(arguments: Sequence[str]) -> None:
    """Measures what the command line asks for.

    Raises:
      UserError: if it asks for what there is not, or a process fails.
    """
    parser = argparse.ArgumentParser(
        prog="python scripts/benchmark trials", description=str(__doc__).split("\n")[0]
    )
    parser.add_argument("--model", default="resnet_small", help="registry names, with commas")
    parser.add_argument("--parallel", default="1,4,16", help="trials in a program, with commas")
    parser.add_argument("--batch", type=int, default=128, help="images per step of each trial")
    parser.add_argument("--dtype", default="float32", help=f"of {', '.join(DTYPES)}, with commas")
    machine.add_flags(parser, "process")
    given = parser.parse_args(arguments)
    counts = numbers_of(given.parallel, "--parallel")
    record: dict[str, Any] = {"about": machine.describe(), "absent": {}, "trials": []}
    for dtype in names_of(given.dtype, tuple(DTYPES), "--dtype"):
        for name in given.model.split(","):
            spec, _ = task_of(name, given.batch, dtype, 32)
            rows, provenance = measure(spec, counts, given.rounds)
            record["about"] |= provenance
            record["trials"] += rows
            if given.json:
                given.json.write_text(json.dumps(record, indent=1) + "\n")
    print(tables.markdown(record))


def measure(
    spec: dict[str, Any], counts: Sequence[int], rounds: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Measures a model; returns a row for each number of trials, and what the processes say.

    Args:
      spec: what is trained, as `benchmark.training.task_of` has it.
      counts: numbers of trials in a program.
      rounds: number of turns that each process takes.
    """
    with contextlib.ExitStack() as stack:
        processes: list[Contestant] = []
        for count in counts:
            wanted = [(str(count), "benchmark.training_jax")]
            processes += gather(stack, wanted, spec | {"trials": count})[0].values()
        steps = {process.name: steps_of_a_turn(process) for process in processes}

        def turn(process: Contestant) -> float:
            count = steps[process.name]
            return process.tell(do="train", steps=count)["seconds"] / count

        times = take_turns(processes, rounds, turn)
        rows = [
            {
                **{name: spec[name] for name in ("model", "batch", "dtype")},
                "parallel": int(process.name),
                "step_seconds": times[process.name],
                "compile_seconds": process.started["compile_seconds"],
                "peak_bytes": process.tell(do="memory")["bytes"],
            }
            for process in processes
        ]
        return rows, processes[0].started["provenance"]
