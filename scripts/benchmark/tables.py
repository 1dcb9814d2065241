"""Makes Markdown of what was measured, and writes it into the README and the guide to speed.

  python scripts/benchmark tables

Between the comments `<!-- results/NAME.json -->` and `<!-- end -->` both have what is made of that
file, once it is there; `<!-- results/NAME.json in brief -->` leaves out the single peers.
"""

import argparse
import itertools
import json
import pathlib
import re
import statistics
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmark.contestants import OURS

ROOT = pathlib.Path(__file__).parents[2]
PAGES = ROOT / "README.md", ROOT / "docs" / "guides" / "speed.md"
_SECTION = re.compile(
    r"(<!-- (results/[\w-]+\.json)( in brief)? -->\n).*?(<!-- end -->)", re.DOTALL
)
NAMES = {
    OURS: "ours",
    "torch": "PyTorch",
    "torch_channels_last": "PyTorch, channels last",
    "torch_compile": "PyTorch, compiled",
    "torchvision": "torchvision",
}
Row = Mapping[str, Any]


def main(arguments: Sequence[str]) -> None:
    """Writes the tables of both pages."""
    parser = argparse.ArgumentParser(
        prog="python scripts/benchmark tables", description=str(__doc__).split("\n")[0]
    )
    parser.parse_args(arguments)
    for page in PAGES:
        page.write_text(with_tables(page.read_text()))


def with_tables(text: str) -> str:
    """Returns a text with each of its sections made anew."""

    def section(match: re.Match[str]) -> str:
        path, content = ROOT / match[2], "Yet to be measured."
        if path.exists():
            content = (brief if match[3] else markdown)(json.loads(path.read_text()))
        return f"{match[1]}\n{content}\n\n{match[4]}"

    return _SECTION.sub(section, text)


def markdown(record: Mapping[str, Any]) -> str:
    """Returns what was measured on what, the table, and the least and largest ratio.

    Args:
      record: what --json holds.
    """
    if "decode" in record:
        parts = [_about(record), _decode(record["decode"])]
    elif "trials" in record:
        parts = [_about(record), _trials(record["trials"])]
    else:
        parts = [
            _about(record),
            _training(record["training"], _has_roofs(record)),
            *_ranges(record["training"]),
        ]
    return "\n\n".join(parts)


def brief(record: Mapping[str, Any]) -> str:
    """Returns our training and inference beside the fastest peer of each, and on what machine.

    Args:
      record: what --json holds of training.
    """
    about = record["about"]
    head = (
        *("model", "batch", "dtype", "training, images/s", "beside the fastest PyTorch"),
        *("inference, images/s", "beside the fastest PyTorch"),
    )
    lines = [
        [
            *(model, str(batch), dtype, f"{batch / ours[0]:,.0f}", f"**{train:.2f}**"),
            *(f"{batch / ours[1]:,.0f}", f"{score:.2f}"),
        ]
        for (model, batch, dtype), (ours, train, score) in _beside_fastest(record["training"])
    ]
    where = f"{about['processor']}, {about['cores']} threads; commit {commit(about)}."
    return f"{table(head, lines)}\n\n{where}"


def _has_roofs(record: Mapping[str, Any]) -> bool:
    """Returns whether XLA's matrix product is a roof; on a CPU oneDNN's convolutions pass it."""
    return record["about"]["devices"][0] != "cpu"


def _about(record: Mapping[str, Any]) -> str:
    about = record["about"]
    features = [name for name in about["features"] if name in ("avx2", "avx512f", "avx512_bf16")]
    devices = f"{len(about['devices'])} x {about['devices'][0]}"
    versions = [f"{name} {version}" for name, version in about["versions"].items()]
    parts = [
        f"{about['processor']} ({', '.join(features)})",
        f"{about['cores']} threads, {devices}",
        f"Python {about['python']}, {', '.join(versions)}",
        *(f"{name}={value}" for name, value in about["flags"].items()),
        f"commit {commit(about)}",
        f"load before {about['load']:.1f}",
        f"`{about['command']}`",
        *(f"without {name}: {reason}" for name, reason in record["absent"].items()),
    ]
    return textwrap.fill("; ".join(parts) + ".", 110, break_on_hyphens=False)


def commit(about: Mapping[str, Any]) -> str:
    """Returns the commit of a record in brief, and whether there were changes beside it."""
    commit = about["commit"] or "unknown"
    return commit[:8] + "-dirty" * commit.endswith("-dirty")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _training(rows: Sequence[Row], has_roofs: bool) -> str:
    head = (
        *("model", "batch", "dtype", "", "training, images/s", "step, ms", "ours / it"),
        *("inference, images/s", "ours / it", "compile, s", "peak, GB"),
        *(("TFLOP/s", "of matmul", "of copy") if has_roofs else ()),
    )
    lines, ours = [], rows[0]
    for row in rows:
        ours = row if row["contestant"] == OURS else ours
        step, inference = _medians(row)
        cells = [
            *(row["model"], str(row["batch"]), row["dtype"], NAMES[row["contestant"]]),
            *(f"{row['batch'] / step:,.0f}", f"{1000 * step:,.1f}"),
            "" if row is ours else f"**{step / _medians(ours)[0]:.2f}**",
            f"{row['batch'] / inference:,.0f}",
            "" if row is ours else f"{inference / _medians(ours)[1]:.2f}",
            f"{row['compile_seconds']:.1f}",
            f"{row['peak_bytes'] / 1e9:.2f}",
        ]
        if has_roofs:
            shares = (row["compute_share"], row["bandwidth_share"])
            cells += [f"{row['flops'] / 1e12:.3g}", *(f"{share:.0%}" for share in shares)]
        lines.append(cells)
    return table(head, lines)


def _medians(row: Row) -> tuple[float, float]:
    """Returns the seconds of a training step and of scoring a batch."""
    return statistics.median(row["step_seconds"]), statistics.median(row["inference_seconds"])


Task = tuple[str, int, str]
Times = tuple[float, float]


def _beside_fastest(rows: Sequence[Row]) -> Iterator[tuple[Task, tuple[Times, float, float]]]:
    """Yields model, batch and dtype; our seconds, and the fastest peer's times them, of each."""
    for task, group in itertools.groupby(
        rows, lambda row: (row["model"], row["batch"], row["dtype"])
    ):
        ours, *peers = map(_medians, group)
        if peers:
            train, score = (min(times) for times in zip(*peers, strict=True))
            yield task, (ours, train / ours[0], score / ours[1])


def _ranges(rows: Sequence[Row]) -> list[str]:
    """Returns a sentence per dtype: how fast we are beside the fastest peer of each model."""
    ratios: dict[str, list[Times]] = {}
    for (_, _, dtype), (_, *found) in _beside_fastest(rows):
        ratios.setdefault(dtype, []).append((found[0], found[1]))
    sentences = []
    for dtype, models in ratios.items():
        train, score = (
            f"{min(column):.2f} to {max(column):.2f}" if len(models) > 1 else f"{column[0]:.2f}"
            for column in zip(*models, strict=True)
        )
        sentences.append(
            f"Beside the fastest peer, in {dtype} training is {train} times as fast and "
            f"inference {score} times."
        )
    return ["\n".join(sentences)] if sentences else []


def _decode(rows: Sequence[Row]) -> str:
    head = ("", "images/s", "images/s per core", "ours / it")
    rates = {row["contestant"]: statistics.median(row["images_per_second"]) for row in rows}
    cells = [
        [
            NAMES[row["contestant"]],
            f"{(rate := rates[row['contestant']]):,.0f}",
            f"{rate / row['cores']:,.0f}",
            "" if row["contestant"] == OURS else f"**{rates[OURS] / rate:.2f}**",
        ]
        for row in rows
    ]
    return table(head, cells)


def _trials(rows: Sequence[Row]) -> str:
    head = (
        *("model", "batch", "dtype", "side by side", "images/s in all", "step, ms"),
        *("times one by one", "compile, s", "peak, GB"),
    )
    lines, rates = [], {}
    for row in rows:
        step = statistics.median(row["step_seconds"])
        task = row["model"], str(row["batch"]), row["dtype"]
        rates[*task, row["parallel"]] = rate = row["parallel"] * row["batch"] / step
        alone = rates.get((*task, 1))
        lines.append(
            [
                *(*task, str(row["parallel"]), f"{rate:,.0f}", f"{1000 * step:,.1f}"),
                f"**{rate / alone:.2f}**" if alone and row["parallel"] > 1 else "",
                f"{row['compile_seconds']:.1f}",
                f"{row['peak_bytes'] / 1e9:.2f}",
            ]
        )
    return table(head, lines)
