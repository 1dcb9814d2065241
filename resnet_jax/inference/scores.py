"""What labels and predictions say of a classifier: confusion, precision, recall, calibration."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_MOST_COLUMNS = 30


class Bin(NamedTuple):
    """The images of a range of confidence.

    Attributes:
      low: lower end of the range; the upper one is the next bin's.
      size: number of images.
      confidence: mean probability of the predicted class; 0 without images.
      accuracy: share of them that is predicted rightly; 0 without images.
    """

    low: float
    size: int
    confidence: float
    accuracy: float


def all_class_names(class_names: Sequence[str], num_classes: int) -> tuple[str, ...]:
    """Returns a name for each class of a model, which may have more than its dataset names.

    Args:
      class_names: the names that the dataset has.
      num_classes: number of classes of the model.
    """
    more = range(len(class_names), num_classes)
    return (*class_names, *(f"class {label}" for label in more))


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns how often each class was taken for each, int64 `[true class, predicted class]`.

    Args:
      labels: the true classes, integers `[images]`.
      predicted: the predicted classes, integers `[images]`.
      num_classes: number of classes.
    """
    places = np.asarray(labels, np.int64) * num_classes + predicted
    return np.bincount(places, minlength=num_classes**2).reshape(num_classes, num_classes)


def precision_and_recall(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns both for each class, float64 `[classes]` in [0, 1]; 0 where nothing is divided.

    Precision is the share of what was taken for the class that is of it, recall the share of the
    class that was recognised, its accuracy.

    Args:
      confusion: see `confusion_matrix`.
    """
    right = np.diag(confusion)
    return right / np.maximum(confusion.sum(0), 1), right / np.maximum(confusion.sum(1), 1)


def calibration(
    confidences: np.ndarray, is_right: np.ndarray, num_bins: int = 15
) -> tuple[list[Bin], float]:
    """Returns bins of equal width, and the expected calibration error (Guo et al. 2017), in [0, 1].

    Args:
      confidences: probability of the predicted class, floats `[images]`.
      is_right: whether it is the true one, bool `[images]`.
      num_bins: number of bins.
    """
    places = np.minimum((confidences * num_bins).astype(int), num_bins - 1)
    bins = []
    for place in range(num_bins):
        inside = places == place
        count = int(inside.sum())
        means = [
            float(values[inside].mean()) if count else 0.0 for values in (confidences, is_right)
        ]
        bins.append(Bin(place / num_bins, count, *means))
    error = sum(b.size * abs(b.accuracy - b.confidence) for b in bins) / max(len(confidences), 1)
    return bins, error


def format_confusion(confusion: np.ndarray, class_names: Sequence[str]) -> str:
    """Returns accuracy and confusion matrix as text, of the classes that occur.

    Args:
      confusion: see `confusion_matrix`.
      class_names: the names of the classes.
    """
    total, right = int(confusion.sum()), int(np.trace(confusion))
    head = f"accuracy {100 * right / total:.2f} % of {total:,} images in folders named by class"
    used = np.flatnonzero(confusion.sum(0) + confusion.sum(1)).tolist()
    if len(used) > _MOST_COLUMNS:
        return head
    width = max(6, *(len(class_names[c]) + 1 for c in used))
    names = [f"{class_names[c]:>{width}}" for c in used]
    rows = [
        name + "".join(f"{confusion[label, c]:>{width}}" for c in used)
        for name, label in zip(names, used, strict=True)
    ]
    return "\n".join(
        [head, "rows: true class, columns: predicted", " " * width + "".join(names), *rows]
    )
