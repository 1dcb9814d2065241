"""What the user sees while a run goes on: a live table in a terminal, plain lines elsewhere."""

import dataclasses
import sys
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
      epoch: epochs begun, of `num_epochs`.
      num_epochs: length of the run, epochs.
      step: steps taken, of `num_steps`.
      num_steps: length of the run, steps.
      loss: mean training loss of the epoch so far.
      accuracy: training accuracy of the epoch so far, percent.
      images_per_second: training images per second, evaluation left out.
      seconds_left: estimate of the time to the end of the run; None: not known yet.
      score: accuracy on the split that is scored, percent; None: not scored here.
      is_best: whether that score is the best so far.
    """

    epoch: int
    num_epochs: int
    step: int
    num_steps: int
    loss: float
    accuracy: float
    images_per_second: float
    seconds_left: float | None
    score: float | None = None
    is_best: bool = False


class Terminal:
    """Prints notes and table rows; in a terminal the row in progress is redrawn in place."""

    def __init__(self, split: str, stream: TextIO | None = None) -> None:
        """Binds the terminal.

        Args:
          split: name of the split that is scored, a column of the table.
          stream: where to print; None: standard output.
        """
        self._split = split
        self._console = Console(file=stream or sys.stdout, highlight=False, soft_wrap=True)
        self._live: Live | None = None
        self._header_shown = False

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
        self._live.update(Text(self._format(row), style="dim"))

    def row(self, row: Row) -> None:
        """Prints a row that stays."""
        self._show_header()
        self._console.print(Text(self._format(row), style="bold" if row.is_best else ""))

    def close(self) -> None:
        """Removes the row in progress and gives the terminal back."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _show_header(self) -> None:
        if self._header_shown:
            return
        self._header_shown = True
        header = (
            f"{'epoch':>9} {'step':>15} {'loss':>8} {'train %':>8} {self._split + ' %':>8} "
            f"{'images/s':>9} {'time left':>9}"
        )
        self._console.print(Text(header, style="bold"))

    def _format(self, row: Row) -> str:
        score = "" if row.score is None else f"{row.score:.2f}{'*' if row.is_best else ' '}"
        left = "" if row.seconds_left is None else duration(row.seconds_left)
        return (
            f"{f'{row.epoch}/{row.num_epochs}':>9} {f'{row.step:,}/{row.num_steps:,}':>15} "
            f"{row.loss:>8.4f} {row.accuracy:>8.2f} {score:>8} "
            f"{row.images_per_second:>9,.0f} {left:>9}"
        )


def duration(seconds: float) -> str:
    """Returns a time span as minutes and seconds, or hours, minutes and seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
