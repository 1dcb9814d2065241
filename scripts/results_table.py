"""The table of results/README.md, made of the records beside it and of nothing else."""

import csv
import functools
import itertools
import json
import math
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmark.contestants import OURS
from benchmark.tables import commit, table
from ml_collections import ConfigDict
from studies import BETTER, ROWS, STUDIES, Row

from resnet_jax.config import load as config_lib
from resnet_jax.config.flags import override, override_search
from resnet_jax.data.datasets import input_shape
from resnet_jax.data.registry import open_dataset
from resnet_jax.models.registry import create_model
from resnet_jax.report.summary import layer_table
from resnet_jax.runs.terminal import duration
from resnet_jax.search.space import draws, grid, parse

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = ROOT / "results"
TABLE = RESULTS / "README.md"
README = ROOT / "README.md"
BEGIN, END = "<!-- results -->\n", "<!-- end of results -->"

_HEAD = (
    *("row", "model", "parameters", "reported train / test %", "train %", "final test %"),
    *("best test %", "our recipe, final test %", "epochs", "time", "device", "commit", "config"),
)
_INTRODUCTION = """# Results

This file is written by `python scripts/reproduce.py` from the records beside it, and compared with
them and the configs by `--check`. Each row is one command, `python -m resnet_jax.main
--config=configs/CONFIG`, for a search with `--mode=search --workdir=FOLDER`; or `python
scripts/reproduce.py --rows ROW --seeds 3`, which runs what has no record yet, with `--better` our
recipe of the row too. `final` is the test accuracy after the last epoch, `best` that of the best
epoch: chosen by validation where there are validation images, and else by the test set itself.
`train` is the mean over the images of the last epoch, augmented and in mid-training. With several
seeds: mean ± deviation of a sample (number of seeds). "our recipe" is the study's own model by our
recipe, listed below: longer trainings, and in `resnet_small:better` mirror images counted in, which
are worth 0.9 points. Of rows not run here the time is an estimate for two CPU cores: three times
the multiplications of a forward pass, at the speed that `benchmark-cpu.json` has for the model of
nearest size, or `benchmark-cpu-vit.json`.

[DISCUSSION.md](DISCUSSION.md) says what holds up.
"""
"""What stands above the tables."""
_OURS = (
    "Their checkpoints are chosen by validation images; the recipes were by them where the config "
    "says so, and are guesses elsewhere. `resnet_small:better` trains on all images; its one "
    "score, of the test set, is that of its end, mirror images counted in."
)


class Records:
    """The records of results/: of runs by their config, and of searches.

    Attributes:
      by_config: the records of runs, those of a config together.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        """Reads them.

        Args:
          folder: where they are.
        """
        self.by_config: dict[str, list[dict[str, Any]]] = {}
        self._folder = folder
        for path in sorted(folder.glob("*-seed*.json")):
            record = json.loads(path.read_text())
            if "config" in record:
                name = " ".join([record["config"], *record["overrides"]])
                self.by_config.setdefault(name, []).append(record)

    def runs(self, config: str) -> list[dict[str, Any]]:
        """Returns the records of a config, one for each seed."""
        return self.by_config.get(config, [])

    def has(self, config: str) -> bool:
        """Returns whether a config was run."""
        return bool(self.runs(config) or self.search(config))

    def search(self, config: str) -> list[dict[str, str]]:
        """Returns the points of a search, best first; none if it is no search, or not recorded."""
        path = self._folder / record_name(config)
        is_recorded = is_search(config) and path.exists()
        return list(csv.DictReader(path.open())) if is_recorded else []


def is_search(config: str) -> bool:
    """Returns whether a config is that of a search."""
    return config.startswith("search/")


def record_name(config: str, seed: int = 0) -> str:
    """Returns the name of the file that keeps the record of a config.

    Args:
      config: FILE:VARIANT, with `--config` flags after it.
      seed: the run's; a search has none.
    """
    name = _stem(config).replace(" --config.", "-").replace(":", "-").replace("/", "-")
    return f"{name}.csv" if is_search(config) else f"{name}-seed{seed}.json"


def page(records: Records) -> str:
    """Returns the text of results/README.md."""
    parts = [_INTRODUCTION.strip()]
    for study in STUDIES:
        lines = [_cells(row, records) for row in study.rows]
        parts += [f"## {study.title}", study.compare, table(_HEAD, lines)]
    lines = [_cells(Row(_stem(config), config), records) for config in BETTER]
    parts += ["## Our recipes", _OURS, table(_HEAD, lines)]
    return "\n\n".join(parts) + "\n"


def with_summary(text: str, records: Records) -> str:
    """Returns the README's text with its table of what was run made anew."""
    rows = [*ROWS, *(Row(f"ours, {_stem(config)}", config) for config in BETTER)]
    kept = [_HEAD.index(name) for name in _HEAD if name not in ("model", "time", "device")]
    head, *lines = (
        [cells[column] for column in kept]
        for cells in [_HEAD, *(_cells(row, records) for row in rows if records.has(row.config))]
    )
    before, _, rest = text.partition(BEGIN)
    found = table(head, lines).replace("](search-", "](results/search-")  # beside that page
    return f"{before}{BEGIN}\n{found}\n\n{END}{rest.partition(END)[2]}"


def _stem(config: str) -> str:
    return config.replace(".py", "")


def _cells(row: Row, records: Records) -> list[str]:
    """Returns a line of the table."""
    runs = records.runs(row.config)
    settings, epochs = loaded(row.config)
    head = [row.name, settings.model.name, f"{_size(row.config)[0]:,}", row.reported or "-"]
    better = _spread([run["final"]["test_accuracy"] for run in records.runs(row.better)])
    tail = [f"`{row.config}`"]
    points = records.search(row.config)
    if points:
        return [*head, *_searched(points, record_name(row.config)), *tail]
    if not runs:
        cost = f"({_cost(row.config)})"
        return [*head, "-", "not run here", "-", better, f"{epochs:,}", cost, "-", "-", *tail]
    finals = [run["final"] for run in runs]
    measured = (
        _spread([final[name] for final in finals if final.get(name) is not None])
        for name in ("train_accuracy", "test_accuracy", "best_test_accuracy")
    )
    return [
        *head,
        *measured,
        better,
        f"{finals[0]['epoch']:g}",
        duration(statistics.fmean(final["seconds"] for final in finals)),
        ", ".join(dict.fromkeys(map(_device, runs))),
        ", ".join(dict.fromkeys(commit(run["starts"][-1]) for run in runs)),
        *tail,
    ]


def _searched(points: Sequence[Mapping[str, str]], file: str) -> list[str]:
    """Returns the cells of a search, from its train accuracy to its commit."""
    best, link = points[0], f"[{len(points)} points]({file})"
    seconds = sum(float(point["seconds"]) for point in points)
    return [
        *(best["train"] or "-", f"{best['test'] or '-'}, best of {link}", "-", "-"),
        *(f"{sum(float(point['epochs']) for point in points):g}", duration(seconds), "-", "-"),
    ]


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    mean = f"{statistics.fmean(values):.2f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {statistics.stdev(values):.2f} ({len(values)})"


def _device(run: Mapping[str, Any]) -> str:
    """Returns the device that a run ended on, and its dtype where that is not float32."""
    start = run["starts"][-1]
    names, cores = start["devices"], start["cores"] * (start.get("processes") or 1)
    device = f"{len(names)} x {names[0]}"
    if names[0] == "cpu":
        device = f"{cores} CPU core{'s' if cores > 1 else ''}"
    return device if run["dtype"] == "float32" else f"{device}, {run['dtype']}"


@functools.cache
def loaded(config: str) -> tuple[ConfigDict, float]:
    """Returns the config of a row, of a search its base, and the epochs of all its runs.

    Args:
      config: FILE:VARIANT, with `--config` flags after it.
    """
    file, *flags = config.split()
    base = config_lib.load(str(config_lib.CONFIGS / file))
    if not is_search(config):
        settings = override(base, ["", *flags])
        return settings, settings.num_epochs
    found = override_search(base, ["", *flags])
    axes = parse(found.space.to_dict())
    drawn = itertools.islice(draws(axes, found.search.seed), found.search.trials)
    points = grid(axes) if found.search.method == "grid" else drawn
    epochs = sum(point.get("num_epochs", found.base.num_epochs) for point in points)
    return found.base, len(found.seeds) * epochs


@functools.cache
def _network(name: str, shape: tuple[int, int, int], options: str) -> tuple[int, int]:
    """Returns parameters and multiply-accumulates for an image of a model with JSON options."""
    layers = layer_table(create_model(name, **json.loads(options)), shape)
    return sum(layer.parameters for layer in layers), sum(layer.macs for layer in layers)


def _size(config: str) -> tuple[int, int]:
    """Returns parameters and multiply-accumulates for an image of a config's model."""
    settings = loaded(config)[0]
    shape = input_shape(open_dataset(settings.data).info, settings.data)
    classes = settings.model.num_classes or 10
    options = {"num_classes": classes, **settings.model.options.to_dict()}
    return _network(settings.model.name, shape, json.dumps(options))


@functools.cache
def _speeds(file: str, dtype: str) -> dict[int, float]:
    """Returns the FLOP/s of training on a CPU, by the multiply-accumulates of an image."""
    rows = json.loads((RESULTS / file).read_text())["training"]
    return {
        _network(row["model"], (32, 32, 3), "{}")[1]: row["flops"]
        for row in rows
        if row["contestant"] == OURS and row["dtype"] == dtype
    }


def _cost(config: str) -> str:
    """Returns how long all runs of a row would take two CPU cores, about."""
    settings, epochs = loaded(config)
    family = "-vit" if settings.model.name.startswith("vit") else ""
    dtype = settings.model.dtype.replace("auto", "float32")
    macs, speeds = _size(config)[1], _speeds(f"benchmark-cpu{family}.json", dtype)
    nearest = min(speeds, key=lambda known: abs(math.log(known / macs)))
    if settings.init.cached_stage:  # one forward pass for all epochs
        seconds = 2 * macs * 60_000 / speeds[nearest]
    else:
        images = 50_000 * (1 - settings.data.val_fraction)
        seconds = epochs * images * 6 * macs / speeds[nearest]
    return f"about {seconds / 3600:.1f} h" if seconds >= 3600 else f"about {seconds / 60:.0f} min"
