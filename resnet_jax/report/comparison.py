"""Runs side by side: a row for each, and one for those that differ in nothing but their seed."""

import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

from resnet_jax.config.load import changes
from resnet_jax.errors import shown
from resnet_jax.report.findings import Run
from resnet_jax.runs.terminal import duration


class Column(NamedTuple):
    """A column of the comparison.

    Attributes:
      header: its title.
      value: the number that it shows of a run; None: it is not known.
      text: that number as text.
      varies: whether it varies with the seed, so that its mean and deviation are shown.
    """

    header: str
    value: Callable[[Run], float | None]
    text: Callable[[float], str]
    varies: bool = True


def _final(name: str) -> Callable[[Run], float | None]:
    return lambda run: run.final[name] if run.final else None


COLUMNS = (
    Column("parameters", lambda run: run.parameters, "{:,.0f}".format, False),
    Column("MACs", lambda run: run.macs, "{:,.0f}".format, False),
    Column("epochs", _final("epoch"), "{:g}".format),
    Column("time", _final("seconds"), duration),
    Column("ms a step", lambda run: run.step_milliseconds, "{:,.1f}".format),
    Column("train %", _final("train_accuracy"), "{:.2f}".format),
    Column("final test %", _final("test_accuracy"), "{:.2f}".format),
    Column("best test %", _final("best_test_accuracy"), "{:.2f}".format),
    Column("reported %", lambda run: run.config.reported_accuracy or None, "{:g}".format, False),
)


class Row(NamedTuple):
    """A row of the comparison.

    Attributes:
      name: the run, or how many runs it sums up.
      differs: what its config has that those of others have not.
      cells: a text for each of `COLUMNS`.
      is_mean: whether it is of several runs.
    """

    name: str
    differs: str
    cells: list[str]
    is_mean: bool = False


def compare(runs: Sequence[Run]) -> list[Row]:
    """Returns the rows of runs, and after those that differ in their seed alone their mean ± std.

    The deviation is that of a sample, with n - 1 in place of n.

    Args:
      runs: the runs.
    """
    fields = {field for run in runs for field in changes(runs[0].config, run.config)}
    groups: list[list[Run]] = []
    for run in runs:
        for group in groups:
            same_images = group[0].info.digest == run.info.digest
            if same_images and changes(group[0].config, run.config).keys() <= {"seed"}:
                group.append(run)
                break
        else:
            groups.append([run])
    rows = []
    for group in groups:
        rows += [
            Row(run.name, _differs(run, fields), [_cell(c, [run]) for c in COLUMNS])
            for run in group
        ]
        if len({run.config.seed for run in group}) == len(group) > 1:
            cells = [_cell(column, group) for column in COLUMNS]
            differs = _differs(group[0], fields - {"seed"})
            rows.append(Row(f"mean ± std of {len(group)} seeds", differs, cells, True))
    return rows


def _cell(column: Column, runs: Sequence[Run]) -> str:
    values = [value for run in runs if (value := column.value(run)) is not None]
    if len(values) < len(runs):
        return "-"
    mean = column.text(statistics.fmean(values))
    if len(values) == 1 or not column.varies:
        return mean
    return f"{mean} ± {column.text(statistics.stdev(values))}"


def _differs(run: Run, fields: set[str]) -> str:
    """Returns the values that a run has of fields in which runs differ."""
    values = {field: after for field, (_, after) in changes({}, run.config).items()}
    return ", ".join(
        f"{field}={shown(values.get(field), str)}" for field in sorted(fields & values.keys())
    )
