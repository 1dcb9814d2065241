"""Predictions as text: what --mode=predict prints while it reads images."""

import contextlib
import csv
import io
import json
import os
import pathlib
import sys
from collections.abc import Callable, Sequence

import numpy as np

from resnet_jax.errors import UserError, one_line, unknown
from resnet_jax.inference.explain import overlay_writer
from resnet_jax.inference.predict import Classifier, Prediction
from resnet_jax.inference.scores import confusion_matrix, format_confusion

Line = Callable[[Prediction], str]
Signals = contextlib.AbstractContextManager[Sequence[int]]


def print_predictions(
    workdir: str,
    weights: str,
    names: Sequence[str],
    form: str,
    top: int,
    cam: bool,
    signals: Signals,
) -> int:
    """Prints the classes of images as they are read, and of those that can't be read an error.

    Where folders are named like the classes, accuracy and confusion matrix follow, on standard
    error unless the form is "table". A signal ends it after the batch in hand, with what is done.

    Args:
      workdir: the folder of a run; empty: the current folder, for overlays only.
      weights: see `Classifier.of_weights`; empty: the best checkpoint of the run.
      names: see `Classifier.predictions`.
      form: "table", "json" or "csv".
      top: number of classes shown, the most probable ones.
      cam: whether to write overlays into that folder; see `resnet_jax.inference.explain`.
      signals: entered while images are read; gives a sequence of the signals received since.

    Returns:
      The exit status: 0; 1 if an image can't be read; 128 + n after signal n.

    Raises:
      UserError: if there is no such form, no run, or no checkpoint or weights that can be used.
    """
    if form not in _FORMS:
        raise unknown("--format", form, _FORMS)
    with contextlib.redirect_stdout(sys.stderr):  # what is said of a damaged checkpoint
        classifier = Classifier.of_weights(weights) if weights else Classifier.of_run(workdir)
        folder = pathlib.Path(workdir) / "cam"
        watch = overlay_writer(classifier, folder, names) if cam else None
    top = min(top, len(classifier.class_names))
    head, line = _FORMS[form](classifier.class_names, top)
    bad: list[UserError] = []
    labels: list[tuple[int, int]] = []

    def on_bad_image(error: UserError) -> None:
        bad.append(error)
        print(f"error: {one_line(error)}", file=sys.stderr)

    print(head, end="")
    with signals as received:
        for found in classifier.predictions(names, on_bad_image, watch):
            print(line(found), flush=True)
            if (label := _label(found.path, classifier.class_names)) is not None:
                labels.append((label, classifier.class_names.index(found.class_names[0])))
            if received:
                break
    if labels:
        true, predicted = np.array(labels).T
        confusion = confusion_matrix(true, predicted, len(classifier.class_names))
        text = format_confusion(confusion, [*map(_printable, classifier.class_names)])
        print(f"\n{text}", file=sys.stdout if form == "table" else sys.stderr)
    if watch:
        print(f"overlays are in {folder}", file=sys.stderr)
    return 128 + received[0] if received else int(bool(bad))


def _label(path: str, class_names: Sequence[str]) -> int | None:
    """Returns the class that the innermost folder of a path with such a name stands for."""
    folders = os.path.dirname(path).split(os.sep)
    return next((class_names.index(f) for f in reversed(folders) if f in class_names), None)


def _printable(name: str) -> str:
    """Returns a name such that it can't move a terminal's cursor, say."""
    return name if name.isprintable() else repr(name)


def _table(class_names: Sequence[str], top: int) -> tuple[str, Line]:
    width = max(len("class"), *(len(_printable(name)) for name in class_names))

    def line(found: Prediction) -> str:
        ranking = list(zip(found.class_names, found.probabilities, strict=True))[:top]
        cells = [f"{_printable(name):{width}} {100 * share:6.2f} %" for name, share in ranking]
        return "  ".join([*cells, _printable(found.path)])

    titles = [f"{'class' if n == 1 else n:<{width}} {'':6}  " for n in range(1, top + 1)]
    return "  ".join([*titles, "image\n"]), line


def _json(class_names: Sequence[str], top: int) -> tuple[str, Line]:
    def line(found: Prediction) -> str:
        shares = found.probabilities[:top]
        ranking = {"classes": found.class_names[:top], "probabilities": shares}
        return json.dumps({"path": found.path, **ranking})

    return "", line


def _csv(class_names: Sequence[str], top: int) -> tuple[str, Line]:
    def row(cells: Sequence[object]) -> str:
        text = io.StringIO()
        csv.writer(text, lineterminator="").writerow(cells)
        return text.getvalue()

    def line(found: Prediction) -> str:
        ranking = zip(found.class_names[:top], found.probabilities, strict=False)
        return row([found.path, *(cell for pair in ranking for cell in pair)])

    titles = [f"{title}_{n}" for n in range(1, top + 1) for title in ("class", "probability")]
    return row(["path", *titles]) + "\n", line


_FORMS: dict[str, Callable[[Sequence[str], int], tuple[str, Line]]] = {
    "table": _table,
    "json": _json,
    "csv": _csv,
}
