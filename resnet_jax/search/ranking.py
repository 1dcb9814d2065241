"""The tables of a search: points ranked, and a report's table with what was measured beside it."""

import csv
import io
import pathlib
from collections.abc import Sequence

from resnet_jax.files import write_atomically
from resnet_jax.runs.terminal import duration
from resnet_jax.search.settings import Search
from resnet_jax.search.trials import DONE, FAILED, MEASURES, PRUNED, RUNNING, Standing, ranked

Rows = list[list[str]]  # the first one has the titles

_SHOWN = 20


def write_ranking(workdir: pathlib.Path, search: Search, found: Sequence[Standing]) -> str:
    """Writes ranking.csv and ranking.md, and returns what the terminal shows of them.

    Args:
      workdir: the folder of the search.
      search: what was asked for.
      found: what became of each point.
    """
    order = ranked(found)
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(_table(search, order, "config."))
    write_atomically(workdir / "ranking.csv", stream.getvalue().encode())
    ranking, reported = _table(search, order), _reported(search, found)
    parts = ["# Ranking", _said(search), _markdown(ranking)]
    if reported:
        parts += ["# Reported and measured", _markdown(reported)]
    write_atomically(workdir / "ranking.md", "\n\n".join([*parts, ""]).encode())
    tables = [_aligned(ranking[: _SHOWN + 1]), *([_aligned(reported)] if reported else [])]
    return "\n\n".join([*tables, _said(search), f"all of it: {workdir / 'ranking.md'}, .csv"])


def _said(search: Search) -> str:
    metric = "last" if search.settings.metric == "final" else "best"
    if search.settings.select_on_test:
        return f"Ranked by the {metric} score on the test set itself."
    return (
        f"Ranked by the {metric} score on validation images; the test set is scored for the "
        "winner alone."
    )


def _table(search: Search, order: Sequence[Standing], prefix: str = "") -> Rows:
    """Returns a row for each point, best first."""
    varying = [axis.path for axis in search.axes if axis.varies]
    titles = ["rank", "state", "score", "std", "seeds", "train", "test", "epochs", "seconds"]
    rows = [[*titles, *(prefix + path for path in varying), "trials"]]
    for place, standing in enumerate(order, 1):
        trials = standing.trials
        ended = standing.state == DONE
        numbers = (standing.mean(), standing.deviation())
        accuracies = (standing.mean(name) for name in MEASURES.values())
        rows.append(
            [
                *(str(place) if ended else "", standing.state),
                *map(_percent, numbers),
                str(len(trials)),
                *map(_percent, accuracies),
                f"{sum(trial.epochs for trial in trials):g}",
                f"{sum(trial.seconds for trial in trials):.1f}",
                *(str(standing.point.get(path, "")) for path in varying),
                " ".join(f"{trial.number:04}" for trial in trials),
            ]
        )
    return rows


def _reported(search: Search, found: Sequence[Standing]) -> Rows:
    """Returns the report's table, each of its figures with ours beside it; empty: there is none."""
    columns, given = search.reported.columns, search.reported.rows
    if not given:
        return []
    paths = [name for name in columns if name not in MEASURES]
    measures = columns[len(paths) :]
    titles = [title for name in measures for title in (f"{name} reported", f"{name} measured")]
    rows = [[*paths, *titles]]
    for row in given:
        point = dict(zip(paths, row, strict=False))
        ours = [s for s in ranked(found) if s.point.items() >= point.items() and s.state == DONE]
        cells = [str(value) for value in point.values()]
        for name, figure in zip(measures, row[len(paths) :], strict=True):
            measured = ours[0].mean(MEASURES[name]) if ours else None
            cells += [f"{figure:g}", _percent(measured) or "-"]
        rows.append(cells)
    return rows


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _markdown(rows: Rows) -> str:
    escaped = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    lines = [f"| {' | '.join(row)} |" for row in escaped]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def _aligned(rows: Rows) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.rjust, row, widths)).rstrip() for row in rows)
    return "\n".join(lines)


def progress_lines(found: Sequence[Standing], left: int | None) -> list[str]:
    """Returns lines that say how far a search is, and one for each trial that is running.

    Args:
      found: what became of each point so far.
      left: number of trials that are yet to begin; None: not known.
    """
    trials = [trial for standing in found for trial in standing.trials]
    states = [trial.state for trial in trials]
    counts = {state: states.count(state) for state in (DONE, RUNNING, PRUNED, FAILED)}
    total = f" of {len(trials) + left}" if left is not None else ""
    lines = [", ".join(f"{count} {state}" for state, count in counts.items()) + total]
    best = next((s for s in ranked(found) if s.state == DONE), None)
    if best:
        numbers = " ".join(str(trial.number) for trial in best.trials)
        lines.append(f"best {_percent(best.mean())} % (trial {numbers})")
    seconds = [trial.seconds for trial in trials if trial.state == DONE]
    if seconds and left is not None:
        waiting = (left + counts[RUNNING] / 2) / max(counts[RUNNING], 1)
        lines[0] += f"; about {duration(waiting * sum(seconds) / len(seconds))} left"
    for trial in trials:
        if trial.state == RUNNING:
            epoch, score = trial.curve[-1] if trial.curve else (0, None)
            scored = "" if score is None else f", {score:.2f} %"
            lines.append(f"  trial {trial.number}: epoch {epoch:g}/{trial.epochs:g}{scored}")
    return lines
