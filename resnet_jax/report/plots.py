"""The figures of a report, by matplotlib; nothing of matplotlib's global state is used."""

import contextlib
import io
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from resnet_jax.inference.scores import Bin
from resnet_jax.report.findings import Pictures, Run

# Colours of Okabe and Ito (2008), which colour-blind people tell apart, and a grey; markers differ.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#868686")
MARKERS = "os^DvPX"
_INK = "#333334"  # the page replaces it by the colour of its text
_STYLE: Any = {
    "axes.edgecolor": _INK,
    "axes.grid": True,
    "axes.labelcolor": _INK,
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": _INK,
    "figure.constrained_layout.use": True,
    "figure.dpi": 150,
    "font.size": 10,
    "grid.alpha": 0.15,
    "grid.color": _INK,
    "legend.frameon": False,
    "legend.labelcolor": _INK,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "report",  # equal figures are equal files
    "text.color": _INK,
    "text.parse_math": False,  # names of classes may have a dollar sign
    "xtick.color": _INK,
    "ytick.color": _INK,
}
_MOST_POINTS = 1000
_MOST_NUMBERS = 20  # classes whose confusion is shown as numbers too
_MOST_PIXELS = 96
_LONGEST = 70  # letters of a run's name
_SHADES = LinearSegmentedColormap.from_list(
    "shades", [(0, 0.447, 0.698, 0), (0, 0.447, 0.698, 0.8)]
)


@contextlib.contextmanager
def style() -> Iterator[None]:
    """A context in which figures have the style of the reports, and do not warn of their looks."""
    with warnings.catch_warnings(action="ignore"), matplotlib.rc_context(_STYLE):
        yield


def svg(figure: Figure) -> str:
    """Returns a figure as an element of HTML, whose text and axes have the page's colour."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    return text.replace(COLOURS[0].lower(), "var(--mark)")  # lighter where the page is dark


def png(figure: Figure) -> bytes:
    """Returns a figure as a PNG file, on white."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", facecolor="white")
    return stream.getvalue()


def metric_curves(runs: Sequence[Run], name: str) -> Figure:
    """Returns loss or accuracy of training, validation and test images over the epochs.

    Several runs differ by colour and marker, and their training curves are dashed. The legend then
    names the runs alone.

    Args:
      runs: the runs.
      name: "loss" or "accuracy".
    """
    figure, axes = _axes("epoch", "accuracy, %" if name == "accuracy" else "loss")
    names = _names(runs)
    for index, run in enumerate(runs):
        alone = len(runs) == 1
        colours = [COLOURS[(index + n * alone) % len(COLOURS)] for n in range(3)]
        train, scores = _of_whole_epochs(run.of("train")), run.of("score")
        label = "train" if alone else "" if scores else names[index]
        _line(axes, train, name, label, color=colours[0], linestyle="--")
        split = run.config.evaluate.split
        spacing = max(1, len(scores) // 12)
        options: dict[str, Any] = {
            "marker": MARKERS[index % len(MARKERS)],
            "markersize": 4,
            "markevery": spacing,
        }
        label = "validation" if split == "val" else "test"
        _line(axes, scores, name, label if alone else names[index], color=colours[1], **options)
        if split == "val" and run.final and run.final[f"test_{name}"] is not None:
            place = [run.final["epoch"]], [run.final[f"test_{name}"]]
            label = "test, at the end" if alone else ""
            axes.plot(*place, "*", color=colours[2], markersize=11, label=label, zorder=3)
    figures = sorted({run.config.reported_accuracy for run in runs} - {0.0})
    for figure_of_report in figures if name == "accuracy" else ():
        axes.axhline(figure_of_report, color=_INK, linestyle=":", linewidth=1.5)
        look: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "bottom", "size": 8}
        axes.text(0.01, figure_of_report, f"reported {figure_of_report:g} %", **look)
    _legend(axes)
    return figure


def record_curves(runs: Sequence[Run], name: str, label: str) -> Figure:
    """Returns a number of the training records over the epochs.

    Args:
      runs: the runs.
      name: key of the number in the records.
      label: title of its axis.
    """
    figure, axes = _axes("epoch", label)
    for index, (run, own) in enumerate(zip(runs, _names(runs), strict=True)):
        _line(axes, run.of("train"), name, own, color=COLOURS[index % len(COLOURS)])
    axes.set_ylim(bottom=0)
    if len(runs) > 1:
        _legend(axes)
    return figure


def confusion_plot(confusion: np.ndarray, class_names: Sequence[str]) -> Figure:
    """Returns a confusion matrix as shades, of each true class, with numbers if there is room."""
    count = len(confusion)
    side = min(max(5.2, 0.5 * count), 9.0)
    figure = Figure(figsize=(side, side))
    axes = figure.add_subplot()
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    axes.pcolormesh(shares, cmap=_SHADES, vmin=0, vmax=1, rasterized=count > _MOST_NUMBERS)
    axes.invert_yaxis()
    axes.set(xlabel="predicted", ylabel="true", aspect="equal")
    axes.grid(False)
    every = -(-count // 40)
    names = class_names[::every]
    ticks = np.arange(0, count, every)
    axes.set_xticks(ticks + 0.5, names, rotation=90)
    axes.set_yticks(ticks + 0.5, names)
    axes.tick_params(length=0)
    if count <= _MOST_NUMBERS:
        for (true, predicted), number in np.ndenumerate(confusion):
            place: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 8}
            axes.text(predicted + 0.5, true + 0.5, f"{number}" if number else "·", **place)
    return figure


def reliability_diagram(bins: Sequence[Bin], error: float) -> Figure:
    """Returns accuracy over confidence, beside the diagonal of a calibrated model."""
    figure, axes = _axes("confidence, %", "accuracy, %")
    width = 100 / len(bins)
    lows = np.array([100 * b.low for b in bins])
    axes.bar(lows, [100 * b.accuracy for b in bins], width, align="edge", alpha=0.75, linewidth=0)
    axes.plot([0, 100], [0, 100], color=COLOURS[1], linestyle="--", label="calibrated")
    used = [b for b in bins if b.size]
    place = [100 * b.confidence for b in used], [100 * b.accuracy for b in used]
    axes.plot(*place, "o", color=_INK, markersize=4, label="means of the bins")
    axes.set(xlim=(0, 100), ylim=(0, 100), title=f"expected calibration error {100 * error:.2f} %")
    _legend(axes)
    return figure


def picture_grid(pictures: Pictures, columns: int = 5) -> Figure:
    """Returns images in a grid, each under its title."""
    columns = min(columns, max(1, len(pictures.titles)))
    rows = -(-len(pictures.titles) // columns)
    lines = 1 + max((title.count("\n") for title in pictures.titles), default=0)
    figure = Figure(figsize=(1.15 * columns + 0.1, (1.05 + 0.17 * lines) * max(rows, 1)))
    for index, (image, title) in enumerate(zip(*pictures, strict=True), start=1):
        axes = figure.add_subplot(rows, columns, index)
        step = -(-max(image.shape[:2]) // _MOST_PIXELS)
        shown = image if image.shape[-1] in (1, 3, 4) else image[..., :1]
        axes.imshow(shown[::step, ::step], "gray", interpolation="none")
        axes.set_title(title, fontsize=8)
        axes.axis("off")
    return figure


def filter_grid(filters: np.ndarray) -> Figure:
    """Returns the filters of a first layer as pictures, each stretched to its own range.

    Args:
      filters: floats `[height, width, channels, filters]`; of other than 1 or 3 channels the mean
        is shown.
    """
    filters = filters[..., :64]
    if filters.shape[2] not in (1, 3):
        filters = filters.mean(2, keepdims=True)
    low, high = filters.min((0, 1, 2)), filters.max((0, 1, 2))
    images = np.moveaxis((filters - low) / np.maximum(high - low, 1e-12), -1, 0)
    return picture_grid(Pictures(images, [""] * len(images)), columns=8)


def _axes(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.2, 3.4))
    axes = figure.add_subplot()
    axes.set(xlabel=x, ylabel=y)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure, axes


def _line(
    axes: Axes, records: Sequence[dict[str, Any]], name: str, label: str, **look: Any
) -> None:
    records = records[:: max(1, len(records) // _MOST_POINTS)]
    if len(records) == 1:
        look.setdefault("marker", "o")  # a line needs two
    if records:
        epochs = [record["epoch"] for record in records]
        axes.plot(epochs, [record.get(name, np.nan) for record in records], label=label, **look)


def _of_whole_epochs(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the records that are means over a whole epoch; all if there is none."""
    return [record for record in records if record["epoch"] % 1 == 0] or records


def _names(runs: Sequence[Run]) -> list[str]:
    """Returns the names of runs, without what they begin with in common, and shortened."""
    names = [run.name for run in runs]
    letters = enumerate(zip(*names, strict=False))
    common = next((place for place, found in letters if len({*found}) > 1), 0)
    cut = [name if common < 8 else f"…{name[common - 4 :]}" for name in names]
    half = _LONGEST // 2
    cut = [n if len(n) <= _LONGEST else f"{n[:half]}…{n[half + 1 - _LONGEST :]}" for n in cut]
    return [name.lstrip("_") or "run" for name in cut]  # matplotlib hides those with a _ before


def _legend(axes: Axes) -> None:
    """Puts the legend below the axes, for which the figure grows."""
    handles, labels = axes.get_legend_handles_labels()
    longest = max(map(len, labels), default=0)
    columns = min(len(labels), 1 if longest > 34 else 2 if longest > 16 else 3)
    if handles and isinstance(axes.figure, Figure):
        axes.figure.set_figheight(3.4 + 0.17 * max(0, -(-len(labels) // columns) - 2))
        axes.figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=8)
