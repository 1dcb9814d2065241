"""What the user sees: a table, with bars below it in a terminal and plain lines elsewhere."""

import contextlib
import errno
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TextIO

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from resnet_jax.errors import FULL

Row = Mapping[str, Any]

_EPOCH = "epoch"  # name of its bar


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


class _Stream:
    """A stream that may be closed or full: then it is a pipe that nobody reads."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> None:
        with _closed_is_broken():
            self._stream.write(text)

    def flush(self) -> None:
        with _closed_is_broken():
            self._stream.flush()


@contextlib.contextmanager
def _closed_is_broken() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EIO, *FULL):
            raise
        raise BrokenPipeError from error


class _Console(Console):
    """A console that a training outlives: who reads the output may have seen enough."""

    def __init__(self, stream: TextIO | None) -> None:
        file: Any = stream or _Stream(sys.stdout)  # what a run's own file can't take is an error
        super().__init__(file=file, highlight=False, soft_wrap=True, emoji=False)

    def on_broken_pipe(self) -> None:
        """Goes on in silence."""
        with contextlib.suppress(SystemExit):
            super().on_broken_pipe()


class Terminal:
    """Prints notes and table rows; in a terminal, bars below them show what is going on.

    A row is a record of what `COLUMNS` show: "epoch" of "num_epochs", "step" of "num_steps", mean
    "loss" and "accuracy" in percent over the epoch so far, "images_per_second", "seconds_left"
    (None: not known yet) and, where the model was scored, "score" in percent and "is_best".
    """

    def __init__(self, split: str = "val", stream: TextIO | None = None) -> None:
        """Binds the terminal.

        Args:
          split: name of the split that is scored, a column of the table.
          stream: where to print; None: standard output.
        """
        self._header: str | None = _format(COLUMNS, lambda c: c.header.format(split=split))
        self._console = _Console(stream)
        epoch, step = (column.width for column in COLUMNS[:2])  # where an epoch's bar lies
        title = TextColumn(f"{{task.description:>{epoch}}}", markup=False)
        columns = title, BarColumn(step), _State()
        self._progress = Progress(*columns, console=self._console, transient=True)
        self._bars: dict[str, TaskID] = {}

    @property
    def is_live(self) -> bool:
        """Whether there are bars."""
        return self._console.is_interactive

    @property
    def bar(self) -> Callable[[str, int, int], None] | None:
        """Draws a bar (what, how much is done, how much there is); None: there are no bars."""
        return self._bar if self.is_live else None

    def note(self, text: str) -> None:
        """Prints a line above the bars."""
        self._console.print(text, markup=False)

    def epoch(self, row: Row) -> None:
        """Draws the bar of the epoch in hand, its numbers in their columns, if there are bars."""
        if not self.is_live:
            return
        self._show_header()
        length = row["num_steps"] // row["num_epochs"]
        done = row["step"] - (row["epoch"] - 1) * length
        numbers = _format(COLUMNS[2:], lambda column: column.text(row))
        self._draw(_EPOCH, COLUMNS[0].text(row), done, length, numbers=numbers)

    def row(self, row: Row) -> None:
        """Prints a row that stays."""
        self._show_header()
        self._remove(_EPOCH)
        text = _format(COLUMNS, lambda column: column.text(row))
        self._console.print(Text(text, style="bold" if row.get("is_best") else ""))

    def close(self) -> None:
        """Removes the bars and gives the terminal back."""
        if self._progress.live.is_started:
            self._progress.stop()

    def _bar(self, what: str, done: int, total: int) -> None:
        if done < total:
            self._draw(what, what, done, total)
        else:
            self._remove(what)

    def _draw(self, name: str, title: str, done: int, total: int, **fields: Any) -> None:
        self._progress.start()
        if name not in self._bars:
            self._bars[name] = self._progress.add_task(title, total=total, **fields)
        bar = self._bars[name]
        self._progress.update(bar, description=title, completed=done, total=total, **fields)

    def _remove(self, name: str) -> None:
        if name in self._bars:
            self._progress.remove_task(self._bars.pop(name))
            self._progress.refresh()

    def _show_header(self) -> None:
        if self._header is not None:
            self._console.print(Text(self._header, style="bold"))
            self._header = None


class Board:
    """Prints lines that stay; in a terminal, others below them show how far all is."""

    def __init__(self, stream: TextIO | None = None) -> None:
        """Binds the terminal; None: standard output."""
        self._console = _Console(stream)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)

    def note(self, text: str) -> None:
        """Prints a text above the lines."""
        self._console.print(text, markup=False)

    def show(self, lines: Callable[[], Sequence[str]]) -> None:
        """Replaces the lines below, which are asked for only if they are shown."""
        if self._console.is_interactive:
            self._live.start()
            self._live.update(Text("\n".join(lines())), refresh=True)

    def close(self) -> None:
        """Removes the lines below."""
        self._live.stop()


class _State(ProgressColumn):
    """What stands after a bar: an epoch's numbers, or the share that is done and the time left."""

    def render(self, task: Task) -> Text:
        if "numbers" in task.fields:
            return Text(task.fields["numbers"])
        left = "" if task.time_remaining is None else f", {duration(task.time_remaining)} left"
        return Text(f"{task.percentage:.0f} %{left}")


def _format(columns: Sequence[Column], text: Callable[[Column], str]) -> str:
    return " ".join(f"{text(column):>{column.width}}" for column in columns)
