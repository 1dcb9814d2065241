"""Runs any rows of the published studies, and writes results/README.md from the records.

python scripts/reproduce.py --rows R1.b.augmented,R5.500_0.01_off --seeds 3
python scripts/reproduce.py --all --better --budget 2h
python scripts/reproduce.py --record RUN "FILE:VARIANT --config.FIELD=VALUE"   of a finished run
python scripts/reproduce.py --check                     compares tables, records and configs

A row that has a record is not run again; a run that was interrupted goes on. All rows run with the
first seed before any with the next; searches come last. Further flags, such as
--config.data.dir=DIR, go to the runs.
"""

import argparse
import contextlib
import json
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import results_table
from results_table import README, RESULTS, ROOT, TABLE, Records, is_search, record_name
from studies import BETTER, ROWS

from resnet_jax.config.load import changes, default_config, leaves
from resnet_jax.data.registry import open_dataset
from resnet_jax.errors import UserError, unknown
from resnet_jax.files import write_atomically, writing
from resnet_jax.inference.export import told
from resnet_jax.platform import quieten_libraries
from resnet_jax.runs import folder as workdir
from resnet_jax.runs import records as records_lib

RUNS = ROOT / "runs" / "reproduce"
# What a run shows, and where its files come from, is not what it is.
_UNTOLD = re.compile(
    r"--config\.(base\.)?(log\.\w+|data\.(dir|source|workers|resident_bytes)|init\.weights|"
    r"evaluate\.batch_size|checkpoint\.keep|on_nan_limit|steps_per_dispatch)\b"
)
# What a config may leave to the run, and how it does so.
_OPEN = {"model.dtype": "auto", "model.num_classes": 0, "data.mean": [], "data.std": []}


class Spent(Exception):
    """The budget is spent."""


def collect(folder: pathlib.Path, config: str) -> dict[str, Any]:
    """Returns what there is to tell of a finished run.

    Args:
      folder: the folder of the run.
      config: the config that it ran, FILE:VARIANT of configs/, with `--config` flags after it.

    Raises:
      UserError: if it is not finished, or ran another config.
    """
    (settings, images), (file, *overrides) = workdir.read_run(folder), config.split()
    if images["digest"] != open_dataset(settings.data).info.digest:
        raise UserError(f"the run in {folder} is of other images than {settings.data.name}")
    if differ := _differing(config, settings):
        raise UserError(f"the run in {folder} is none of {config}: {', '.join(differ)} differs")
    records, bad = records_lib.read(folder / workdir.METRICS)
    if bad:
        raise UserError(f"{folder / workdir.METRICS} has {bad} torn or altered lines: not recorded")
    final = records[-1] if records else None
    if final is None or final["kind"] != "final":
        raise UserError(f"the run in {folder} is not finished; start its training again")
    if final["test_accuracy"] is None:
        raise UserError(f"the run in {folder} did not score the test set: evaluate.score_test")
    if not (starts := workdir.starts(folder)):
        raise UserError(f"{folder / workdir.STARTS} does not tell how the run was started")
    return {
        "config": file,
        "overrides": overrides,
        "settings": told(settings),
        "dtype": settings.model.dtype,
        "seed": settings.seed,
        "starts": [workdir.told(start) for start in starts],
        "final": final,
        "scores": [record for record in records if record["kind"] == "score"],
    }


def _differing(config: str, settings: Mapping[str, Any]) -> list[str]:
    """Returns the fields in which what a run was trained with is not what a config says now."""
    wanted = results_table.loaded(config)[0]
    later = leaves(default_config())  # of a field that came later a record knows nothing
    differ = [
        path
        for path, (asked, had) in changes(wanted, settings).items()
        if not (path == "seed" or _UNTOLD.match(f"--config.{path}"))
        and (path, asked) not in _OPEN.items()
        and not (had is None and asked == later.get(path))
    ]
    if bool(wanted.init.weights) != bool(settings["init"]["weights"]):
        differ.append("init.weights")
    return differ


def keep(folder: pathlib.Path, config: str) -> pathlib.Path:
    """Writes the record of a finished run, or of a search, and returns its path.

    Raises:
      UserError: if it is not finished, or of no row; a run, if it is of another config.
    """
    known = [row.config for row in ROWS] + [*BETTER]
    if config not in known:
        raise unknown("config of a row", config, known)
    if is_search(config):
        if not (folder / "ranking.csv").is_file():
            raise UserError(f"the search in {folder} is not finished; start it again")
        path = RESULTS / record_name(config)
        content = (folder / "ranking.csv").read_bytes()
    else:
        record = collect(folder, config)
        path = RESULTS / record_name(config, record["seed"])
        content = f"{json.dumps(record, indent=1)}\n".encode()
    with writing(path):
        write_atomically(path, content)
    return path


def _tables() -> dict[pathlib.Path, str]:
    """Returns the texts of results/README.md and of the README, with tables of the records."""
    records = Records(RESULTS)
    summary = results_table.with_summary(README.read_text(), records)
    return {TABLE: results_table.page(records), README: summary}


def write_tables() -> None:
    """Writes results/README.md and the README's table anew."""
    for path, text in _tables().items():
        with writing(path):
            write_atomically(path, text.encode())


def check() -> list[str]:
    """Returns what is wrong: nothing if the tables are of the records, and these of the configs."""
    wrong = [
        f"{path.relative_to(ROOT)} is not what the records say"
        for path, text in _tables().items()
        if path.read_text() != text
    ]
    for config, runs in Records(RESULTS).by_config.items():
        for found in runs:  # the first records have no settings
            if differ := "settings" in found and _differing(config, found["settings"]):
                name = record_name(config, found["seed"])
                wrong.append(f"{name} is of another {', '.join(differ)} than {config} has")
    return wrong


def run(config: str, seed: int, flags: Sequence[str], deadline: float) -> str:
    """Trains a config until it is done, and keeps its record; returns what is wrong, or "".

    Args:
      config: FILE:VARIANT, with `--config` flags after it.
      seed: of the run; a search has its own.
      flags: further flags of the command line.
      deadline: when to interrupt it, by `time.monotonic`; 0: never.

    Raises:
      Spent: if it was interrupted.
    """
    file, *own = config.split()
    folder = RUNS / record_name(config, seed).rpartition(".")[0]
    mode = ["--mode=search"] if is_search(config) else [f"--config.seed={seed}"]
    if is_search(config):  # the flags are for its runs
        flags = [re.sub(r"^--config\.(?!base\.)", "--config.base.", flag) for flag in flags]
    command = [
        *(sys.executable, "-m", "resnet_jax.main", f"--config={ROOT / 'configs' / file}"),
        *(*own, *mode, *flags, f"--workdir={folder}"),
    ]
    print(f"== {config}, seed {seed}", flush=True)
    process = subprocess.Popen(command, cwd=ROOT, process_group=0)  # its signals come from here

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    # A training outlives its terminal, and this does not.
    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN]
    handlers = {number: signal.signal(number, stop) for number in numbers}
    try:
        process.wait(max(deadline - time.monotonic(), 0) if deadline else None)
    except (subprocess.TimeoutExpired, KeyboardInterrupt) as error:
        process.send_signal(signal.SIGINT)  # it saves its step
        try:
            process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)  # a second one ends it at once
            raise
        if isinstance(error, KeyboardInterrupt):
            raise
        print("the budget is spent; the same command goes on", file=sys.stderr)
        raise Spent from None
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if process.returncode in (130, 143):  # it was interrupted, and so is this
        raise KeyboardInterrupt
    if process.returncode:
        return f"{config} with seed {seed} ended with status {process.returncode}"
    print(f"kept in {keep(folder, config).relative_to(ROOT)}", flush=True)
    write_tables()
    return ""


def _chosen(names: str | None, better: bool) -> list[str]:
    """Returns the configs of rows that are named, of all if none is; or our recipes for them."""
    known = {row.name: row for row in ROWS}
    wanted = names.split(",") if names else list(known)
    for name in wanted:
        if name not in known:
            raise unknown("row", name, known)
    rows = [known[name] for name in wanted]
    faithful = [row.config for row in rows]
    ours = [row.better for row in rows if row.better]
    return list(dict.fromkeys(faithful + ours if better else faithful))


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([hms])", text)
    if not match:
        raise UserError(f"--budget takes a time such as 2h, 90m or 30s, not {text!r}")
    return float(match[1]) * {"h": 3600, "m": 60, "s": 1}[match[2]]


def _execute(given: argparse.Namespace, flags: Sequence[str]) -> int:
    if given.check or given.record:
        if given.record:
            print(f"kept in {keep(pathlib.Path(given.record[0]), given.record[1])}")
            write_tables()
        wrong = check()
        print("\n".join(wrong) or "the tables are those of the records")
        return 1 if wrong else 0
    if not (given.rows or given.all):
        write_tables()
        return 0
    deadline = time.monotonic() + _seconds(given.budget) if given.budget else 0.0
    configs = _chosen(given.rows, given.better)
    failures: list[str] = []
    pairs = [(config, seed) for seed in range(given.seeds) for config in configs]
    with contextlib.suppress(Spent):
        # Searches come last: R1.e alone would take a month.
        for config, seed in sorted(pairs, key=lambda pair: is_search(pair[0])):
            if (RESULTS / record_name(config, seed)).exists():
                print(f"{config}, seed {seed}: recorded in results/{record_name(config, seed)}")
            else:
                failures += filter(None, [run(config, seed, flags, deadline)])
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--rows", help=f"with commas, of {', '.join(row.name for row in ROWS)}")
    parser.add_argument("--all", action="store_true", help="all rows")
    parser.add_argument("--better", action="store_true", help="our recipes for the rows as well")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds, from 0 on")
    parser.add_argument("--budget", help="time after which the run in hand is interrupted")
    parser.add_argument(
        "--record",
        nargs=2,
        metavar=("RUN", "CONFIG"),
        help="keeps the record of a run; CONFIG as the table has it",
    )
    parser.add_argument("--check", action="store_true", help="compares tables, records and configs")
    given, flags = parser.parse_known_args(arguments)
    quieten_libraries()
    try:
        for flag in flags:
            if not flag.startswith("--config."):
                raise UserError(f"unexpected argument {flag!r}; see --help")
            if not _UNTOLD.match(flag):
                raise UserError(f"{flag} would make other runs than those of the rows")
        return _execute(given, flags)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
