"""The page of a run, or of several: one HTML file without network, and its figures as PNG."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from resnet_jax.config.load import changes, default_config, selects
from resnet_jax.data.datasets import Dataset
from resnet_jax.errors import needing
from resnet_jax.files import write_atomically, writing
from resnet_jax.report import comparison, findings
from resnet_jax.report.findings import Run, TestFindings
from resnet_jax.runs.terminal import duration

with needing("report", "a report"):
    import jinja2
    from markupsafe import Markup
    from matplotlib.figure import Figure

    from resnet_jax.report import plots

FOLDER = "report"
PAGE = "index.html"
_OF_IMAGES = ("confusion", "reliability", "mistakes", "examples")  # figures


def write_report(
    workdirs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    dataset: Dataset | None = None,
) -> pathlib.Path:
    """Writes the page of a run into its folder, `report/index.html`, and its figures as PNG files.

    With several runs their curves are laid over each other and their figures compared; all else is
    of the first run, whose folder the page is in.

    Args:
      workdirs: the folder of the run, or those of several.
      dataset: the images of the first run; None: those that its config names. Without, the page
        says why it has no pictures and no confusion matrix.

    Returns:
      The path of the page.

    Raises:
      UserError: if the extra `report` is missing, there is no run or no checkpoint that can be
        used, the dataset does not suit the run, or the page can't be written.
    """
    workdirs = [workdirs] if isinstance(workdirs, str | os.PathLike) else workdirs
    runs = [findings.read(workdir) for workdir in workdirs]
    if len({run.name for run in runs}) < len(runs):
        runs = [
            dataclasses.replace(run, name=os.fspath(workdir))
            for run, workdir in zip(runs, workdirs, strict=True)
        ]
    first = runs[0]
    tested, filters, problem = findings.find(first, workdirs[0], dataset)
    folder = pathlib.Path(workdirs[0]) / FOLDER
    with plots.style():
        figures = _figures(runs, tested)
        figures["filters"] = plots.filter_grid(filters)
        drawn = {name: Markup(plots.svg(figure)) for name, figure in figures.items()}
        files = {f"{name}.png": plots.png(figure) for name, figure in figures.items()}
    files[PAGE] = _render(runs, tested, problem, drawn).encode(errors="backslashreplace")
    with writing(folder):
        folder.mkdir(exist_ok=True)
        for name, content in files.items():
            write_atomically(folder / name, content)
        for name in () if tested else _OF_IMAGES:  # of an earlier report
            (folder / f"{name}.png").unlink(missing_ok=True)
    return folder / PAGE


def _figures(runs: list[Run], tested: TestFindings | None) -> dict[str, Figure]:
    figures = {
        "accuracy": plots.metric_curves(runs, "accuracy"),
        "loss": plots.metric_curves(runs, "loss"),
        "learning_rate": plots.record_curves(runs, "learning_rate", "learning rate"),
        "speed": plots.record_curves(runs, "images_per_second", "training images a second"),
    }
    if tested:
        of_images = (
            plots.confusion_plot(tested.confusion, runs[0].class_names),
            plots.reliability_diagram(tested.bins, tested.calibration_error),
            plots.picture_grid(tested.mistakes),
            plots.picture_grid(tested.examples),
        )
        figures |= zip(_OF_IMAGES, of_images, strict=True)
    return figures


def _render(
    runs: list[Run], tested: TestFindings | None, problem: str, drawn: dict[str, Markup]
) -> str:
    first = runs[0]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    changed = changes(default_config(), first.config)
    return environment.get_template("page.html").render(
        run=first,
        runs=runs,
        results=_results(first),
        which="best" if selects(first.config) else "last",
        tested=tested,
        problem=problem,
        drawn=drawn,
        columns=comparison.COLUMNS,
        rows=comparison.compare(runs),
        classes=_classes(first, tested) if tested else [],
        changed={field: json.dumps(after) for field, (_, after) in changed.items()},
        config=json.dumps(first.config.to_dict(), indent=2),
    )


def _results(run: Run) -> dict[str, str]:
    """Returns what the head of the page shows: the numbers of the closing record."""
    final, reported = run.final, run.config.reported_accuracy
    if final is None:
        return _so_far(run)
    shown = {
        "final test accuracy": _percent(final["test_accuracy"]),
        "best test accuracy": _percent(final["best_test_accuracy"]),
        "reported": _percent(reported) if reported else "",
        "train accuracy": _percent(final["train_accuracy"]),
        "best validation accuracy": _percent(final["best_score"]),
        "test loss": "" if final["test_loss"] is None else f"{final['test_loss']:.4f}",
        "epochs": f"{final['epoch']:g}, the best {final['best_epoch']:g}",
        "time": duration(final["seconds"]),
        **_sizes(run),
    }
    if run.config.evaluate.split != "val":
        del shown["best validation accuracy"]
    return {name: text for name, text in shown.items() if text}


def _so_far(run: Run) -> dict[str, str]:
    """Returns what the head shows of a run that is not finished."""
    shown = {"state": "not finished"}
    if trained := run.of("train"):
        shown["epochs"] = f"{round(trained[-1]['epoch'], 2):g} of {run.config.num_epochs}"
    if scores := run.of("score"):
        kind = "validation" if run.config.evaluate.split == "val" else "test"
        shown[f"last {kind} accuracy"] = _percent(scores[-1]["accuracy"])
    return shown | _sizes(run)


def _sizes(run: Run) -> dict[str, str]:
    return {"parameters": f"{run.parameters:,}", "MACs an image": f"{run.macs:,}"}


def _percent(accuracy: float | None) -> str:
    return "" if accuracy is None else f"{accuracy:.2f} %"


def _classes(run: Run, tested: TestFindings) -> list[dict[str, Any]]:
    """Returns the rows of the table of classes."""
    confusion = tested.confusion
    wrong = confusion.sum(0) + confusion.sum(1) - 2 * confusion.diagonal()
    accuracies = 100 * (1 - wrong / confusion.sum())

    def shown(share: float, of: np.ndarray) -> str:
        return f"{100 * share:.2f}" if of.any() else "-"

    return [
        {
            "name": name,
            "count": int(confusion[label].sum()),
            "precision": shown(tested.precision[label], confusion[:, label]),
            "recall": shown(tested.recall[label], confusion[label]),
            "accuracy": f"{accuracies[label]:.2f}",
        }
        for label, name in enumerate(run.class_names)
    ]
