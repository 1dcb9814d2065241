"""What a search found, drawn: learning curves, parallel coordinates, importances of the fields."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from resnet_jax.search import sampling
from resnet_jax.search.space import Axis, label
from resnet_jax.search.trials import DONE, Standing, ranked

_INCHES = (8, 4.5)


def write_plots(
    workdir: pathlib.Path, axes: Sequence[Axis], settings: ConfigDict, found: Sequence[Standing]
) -> list[str]:
    """Writes PNG files, and returns their names: none if Matplotlib is not installed.

    Args:
      workdir: the folder of the search.
      axes: what varies.
      settings: the group `search` of its config.
      found: what became of each point.
    """
    if not sampling.is_installed("matplotlib"):
        return []
    from matplotlib.figure import Figure

    varying = [axis for axis in axes if axis.varies]
    drawn = {"curves.png": lambda ax: _curves(ax, found)}
    if varying:
        drawn["parallel.png"] = lambda ax: _parallel(ax, varying, found)
    if shares := sampling.importances(axes, settings, found):
        drawn["importances.png"] = lambda ax: _importances(ax, shares)
    for name, draw in drawn.items():
        figure = Figure(_INCHES, dpi=120, layout="constrained")
        draw(figure.subplots())
        figure.savefig(workdir / name)
    return list(drawn)


def _curves(ax: Any, found: Sequence[Standing]) -> None:
    order = ranked(found)
    for place, standing in reversed(list(enumerate(order))):
        style = {"color": "C3", "zorder": 3} if place == 0 else {"color": "0.7", "linewidth": 0.8}
        for trial in standing.trials:
            if trial.curve:
                ax.plot(*zip(*trial.curve, strict=True), marker=".", **style)
    ax.set(xlabel="epoch", ylabel="score, %", title="Learning curves, those of the winner in red")


def _parallel(ax: Any, axes: Sequence[Axis], found: Sequence[Standing]) -> None:
    """Draws a line for each point that is done, through its values, red for the highest score."""
    done = [standing for standing in ranked(found) if standing.state == DONE]
    scores = np.array([standing.mean() for standing in done])
    spread = np.ptp(scores) or 1.0
    for standing, score in reversed(list(zip(done, scores, strict=True))):
        share = (score - scores.min()) / spread
        heights = [*(_height(axis, standing.point.get(axis.path)) for axis in axes), share]
        line = [(place, height) for place, height in enumerate(heights) if height is not None]
        ax.plot(*zip(*line, strict=True), color=(share, 0.2, 1 - share), alpha=0.3 + 0.7 * share)
    for place, axis in enumerate(axes):
        values = axis.values or (axis.low, axis.high)
        for value in values:
            at = place, _height(axis, value)
            ax.annotate(f" {value}", at, fontsize=7, parse_math=False)
    ax.set_xticks(range(len(axes) + 1), [*(axis.path for axis in axes), "score"], fontsize=7)
    ax.set_yticks([])
    ax.set_title(f"Points, scores from {scores.min():.2f} to {scores.max():.2f} %")


def _height(axis: Axis, value: Any) -> float | None:
    """Returns where a value lies on its axis, in [0, 1]; None for one that its point lacks."""
    if value is None:
        return None
    if axis.values:
        return [label(v) for v in axis.values].index(label(value)) / (len(axis.values) - 1)
    return axis.share(value)


def _importances(ax: Any, shares: dict[str, float]) -> None:
    ax.barh(list(shares)[::-1], list(shares.values())[::-1])
    ax.set(xlabel="importance", title="Importances of the fields for the best tenth, by PED-ANOVA")
