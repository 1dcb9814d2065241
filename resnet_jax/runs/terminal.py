"""What the user sees while a run goes on: a live table in a terminal, plain lines elsewhere."""

import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

Row = Mapping[str, Any]


def duration(seconds: float) -> str:
    """Returns a time span as minutes and seconds, or hours, minutes and seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class Column(NamedTuple):
    """A column of the table.

    Attributes:
      header: its title; "{split}" stands for the name of the split that is scored.
      width: number of characters.
      text: what it shows of a row.
    """

    header: str
    width: int
    text: Callable[[Row], str]


def _score(row: Row) -> str:
    return f"{row['score']:.2f}{'*' if row['is_best'] else ' '}" if "score" in row else ""


def _time_left(row: Row) -> str:
    return "" if row["seconds_left"] is None else duration(row["seconds_left"])


COLUMNS = (
    Column("epoch", 9, lambda row: f"{row['epoch']}/{row['num_epochs']}"),
    Column("step", 15, lambda row: f"{row['step']:,}/{row['num_steps']:,}"),
    Column("loss", 8, lambda row: f"{row['loss']:.4f}"),
    Column("train %", 8, lambda row: f"{row['accuracy']:.2f}"),
    Column("{split} %", 8, _score),
    Column("images/s", 9, lambda row: f"{row['images_per_second']:,.0f}"),
    Column("time left", 9, _time_left),
)


class Terminal:
    """Prints notes and table rows; in a terminal the row in progress is redrawn in place.

    A row is a record of what `COLUMNS` show: "epoch" of "num_epochs", "step" of "num_steps", mean
    "loss" and "accuracy" in percent over the epoch so far, "images_per_second", "seconds_left"
    (None: not known yet) and, where the model was scored, "score" in percent and "is_best".
    """

    def __init__(self, split: str, stream: TextIO | None = None) -> None:
        """Binds the terminal.

        Args:
          split: name of the split that is scored, a column of the table.
          stream: where to print; None: standard output.
        """
        self._header: str | None = " ".join(
            f"{column.header.format(split=split):>{column.width}}" for column in COLUMNS
        )
        self._console = Console(file=stream or sys.stdout, highlight=False, soft_wrap=True)
        self._live: Live | None = None

    @property
    def is_live(self) -> bool:
        """Whether rows in progress are shown."""
        return self._console.is_terminal

    def note(self, text: str) -> None:
        """Prints a line above the row in progress."""
        self._console.print(text, markup=False)

    def progress(self, row: Row) -> None:
        """Redraws the row in progress; does nothing without a terminal."""
        if not self.is_live:
            return
        self._show_header()
        if self._live is None:
            self._live = Live(console=self._console, transient=True, refresh_per_second=8)
            self._live.start()
        self._live.update(Text(_format(row), style="dim"))

    def row(self, row: Row) -> None:
        """Prints a row that stays."""
        self._show_header()
        self._console.print(Text(_format(row), style="bold" if row.get("is_best") else ""))

    def close(self) -> None:
        """Removes the row in progress and gives the terminal back."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _show_header(self) -> None:
        if self._header is not None:
            self._console.print(Text(self._header, style="bold"))
            self._header = None


def _format(row: Row) -> str:
    return " ".join(f"{column.text(row):>{column.width}}" for column in COLUMNS)
