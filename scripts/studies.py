"""The rows of the results: what five studies of CIFAR-10 report, and the config of each figure."""

from typing import NamedTuple

from resnet_jax.config.load import load


class Row(NamedTuple):
    """A published figure, or one of our own.

    Attributes:
      name: the study's number and that of the row, as `--rows` takes it.
      config: FILE:VARIANT of configs/ that follows the report, in search/ a search; after a blank
        each, `--config` flags.
      reported: train and test accuracy as the report has them, percent; "": none.
      better: the same of our own recipe for it; "": none.
    """

    name: str
    config: str
    reported: str = ""
    better: str = ""


class Study(NamedTuple):
    """Rows that belong together.

    Attributes:
      title: what it is.
      compare: with which of our figures its own ones compare.
      rows: its rows.
    """

    title: str
    compare: str
    rows: tuple[Row, ...]


_SMALL = "resnet_small.py:better"
_TUNING = "resnet_small_tuning.py"
_RESNET20 = f"{_SMALL} --config.model.name=resnet20 --config.num_epochs=60"
_TEXTBOOK, _CUSTOM = "resnet_textbook.py", "resnet_custom.py"


def _tuned(batch: int, rate: float, shuffle: bool, train: float, test: float) -> Row:
    """Returns the row of a point of R5's grid."""
    point = f"{batch}_{rate:g}_{'on' if shuffle else 'off'}"
    reported = f"{train:.2f} / {test:.2f}"
    return Row(f"R5.{point}", f"{_TUNING}:{point}", reported, _SMALL)


def _transferred(model: str, reported: str, flag: str = "") -> Row:
    """Returns the row of a model of R1.f; our recipe is vgg16_bn's but for the flag."""
    config = f"vgg16_transfer.py:{model}_adam_0.001_10"
    return Row(f"R1.f.{model}", config, reported, f"vgg16_transfer.py:finetune{flag}")


_R5 = tuple(_tuned(*row) for row in load("search/r5_grid").reported.rows)
_BFLOAT16 = "--config.model.dtype=bfloat16"
_FLOAT32 = "--config.model.dtype=float32"
_SHORT = "resnet_small.py --config.num_epochs=3"

STUDIES = (
    Study(
        'R1, "Residual Network Model Exploration and Implementation" (slides)',
        "It does not say which epoch its figures are of. Its slides show R1.b and R1.c without "
        "augmentation, which `plain` means; its network and decay are those of a tutorial that "
        "crops and flips.",
        (
            Row("R1.a", "cnn.py", "62", "cnn.py:better"),
            Row("R1.b", "resnet_small.py:sgd", "80.95", _SMALL),
            Row("R1.b.augmented", "resnet_small.py:sgd_augmented", "80.95"),
            Row("R1.c", "resnet_small.py", "86.18", _SMALL),
            Row("R1.c.cosine", f"resnet_small.py:adam_cosine {_BFLOAT16}", "86.18"),
            Row("R1.c.plain", "resnet_small.py:adam_plain", "86.18"),
            Row("R1.d", f"resnet_small.py:dropout {_BFLOAT16}", "86 (average)", _SMALL),
            Row("R1.d.plain", f"resnet_small.py:dropout_plain {_BFLOAT16}", "86 (average)"),
            Row("R1.e", "search/r1_grid.py", "its best is R1.c"),
            _transferred("vgg16", "89.93", " --config.model.name=vgg16"),
            _transferred("vgg16_bn", "91.03"),
            Row("R1.g.vit", "vit.py"),
            Row("R1.g.optuna", "search/optuna_resnet_small.py --config.base.model.dtype=bfloat16"),
            Row("R1.g.optuna.best", f"resnet_small.py:optuna {_BFLOAT16}"),
        ),
    ),
    Study(
        "R2, residual networks under five million parameters",
        "Its test figures are the best over all epochs: compare with `best`.",
        (
            Row("R2.18", "resnet.py:18", "89.81 / 86.14", "resnet.py:18_better"),
            Row("R2.34", "resnet.py:34", "93.50 / 89.83", "resnet.py:34_better"),
            Row("R2.50", "resnet.py:50", "", "resnet.py:50_better"),
            Row("R2.101", "resnet.py:101", "94.72 / 90.66", "resnet.py:101_better"),
            Row("R2.152", "resnet.py:152", "94.96 / 90.85", "resnet.py:152_better"),
            Row("R2.V1.SGD", "resnet_v1.py", "89.55 / 86.45", "resnet_v1.py:better"),
            Row("R2.V1.Adam", "resnet_v1.py:adam", "94.82 / 88.42", "resnet_v1.py:better"),
            Row("R2.V2.SGD", f"resnet_v2.py {_BFLOAT16}", "99.81 / 94.21", "resnet_v2.py:better"),
            Row("R2.V2.Adam", "resnet_v2.py:adam", "98.13 / 90.98", "resnet_v2.py:better"),
        ),
    ),
    Study(
        "R3, residual networks against AlexNet",
        "Its log shows the test accuracy every 250 steps: compare with `best`.",
        (
            Row("R3.a", f"{_TEXTBOOK}:alexnet", "about 70", f"{_TEXTBOOK}:alexnet_better"),
            Row("R3.b", f"{_TEXTBOOK}:5", "about 73", f"{_TEXTBOOK}:5_better"),
            Row("R3.c", f"{_TEXTBOOK}:10", "about 76 (76.88)", f"{_TEXTBOOK}:10_better"),
            Row("R3.d.5", f"{_TEXTBOOK}:5_3", 'no figure ("no better")'),
            Row("R3.d.10", f"{_TEXTBOOK}:10_3", 'no figure ("no better")'),
        ),
    ),
    Study(
        "R4, a custom network [1, 1, 1, 4]",
        "Its figure is of validation images, cropped and flipped; ours are of the test set.",
        (
            Row("R4", _CUSTOM, "99.5 / 89.75 to 90.24 (validation)", f"{_CUSTOM}:better"),
            Row("R4.clean", f"{_CUSTOM}:clean"),
            Row("R4.skip", f"{_CUSTOM}:skip"),
        ),
    ),
    Study(
        "R5, hyper-parameters of a small residual network",
        "It scored the test set once, after epoch 50: compare with `final`.",
        (
            *_R5,
            Row(
                "R5.10_epochs",
                "search/r5_grid.py --config.base.num_epochs=10 --config.base.model.dtype=bfloat16",
            ),
        ),
    ),
    Study(
        "Beyond the studies",
        "He et al. 2015 report 93.57 of depth 110 as the best of five runs, whose mean is 93.39; "
        "Zagoruyko and Komodakis the median of five. 95.1 is what a widely used implementation of "
        "preact_resnet18 tells; He et al. 2016 have none of that depth. transfer.transfer starts "
        "from an export of transfer.pretrain; `resnet_small_transfer.py` has the commands.",
        (
            Row("He.20", "resnet_he2015.py:20", "91.25", _RESNET20),
            Row("He.32", "resnet_he2015.py:32", "92.49"),
            Row("He.44", "resnet_he2015.py:44", "92.83"),
            Row("He.56", "resnet_he2015.py:56", "93.03"),
            Row("He.110", "resnet_he2015.py:110", "93.57"),
            Row("preact_resnet18", "wide_resnet.py:preact_resnet18", "95.1"),
            Row("wide_resnet28_10", "wide_resnet.py:wide_resnet28_10", "96.0"),
            Row("mnist", f"quickstart.py:mnist {_FLOAT32}"),
            Row("transfer.pretrain", "resnet_small_transfer.py:pretrain"),
            Row("transfer.transfer", "resnet_small_transfer.py:transfer"),
            Row("transfer.scratch", "resnet_small_transfer.py:scratch"),
        ),
    ),
    Study(
        "bfloat16 beside float32",
        "Equal within the noise of seeds: so `model.dtype=auto` takes bfloat16 where it is fast.",
        (
            Row("quickstart.float32", f"quickstart.py {_FLOAT32}"),
            Row("quickstart.bfloat16", f"quickstart.py {_BFLOAT16}"),
            Row("resnet_small.float32", _SHORT),
            Row("resnet_small.bfloat16", f"{_SHORT} {_BFLOAT16}"),
        ),
    ),
)

ROWS = tuple(row for study in STUDIES for row in study.rows)
"""All rows, in the order of the studies."""
BETTER = tuple(dict.fromkeys(row.better for row in ROWS if row.better))
"""The configs of our own recipes."""
