"""The table of `scripts/torture.py`: what became of the faults of each kind."""

import dataclasses
from collections.abc import Sequence

import rich.box
from rich.console import Console
from rich.table import Table


@dataclasses.dataclass
class Fault:
    """One fault, and what became of it."""

    kind: str
    what: str = ""
    cut_a_save_short: int = 0
    resumed: int = 0
    equal_at_the_end: int = 0
    fell_back_and_said_so: int = 0
    refused_clearly: int = 0
    silently_wrong: int = 0
    stuck: int = 0
    tracebacks: int = 0
    temporary_files_left: int = 0
    lost_epochs: int = 0


COLUMNS = tuple(field.name for field in dataclasses.fields(Fault))[2:]
BAD = COLUMNS[COLUMNS.index("silently_wrong") :]


def totals(done: Sequence[Fault]) -> dict[str, dict[str, int]]:
    """Returns the number of faults and the sum of each column, by kind and in all."""
    groups = {kind: [f for f in done if f.kind == kind] for kind in sorted({f.kind for f in done})}
    return {
        kind: {"faults": len(group)} | {c: sum(getattr(f, c) for f in group) for c in COLUMNS}
        for kind, group in (groups | {"all": list(done)}).items()
    }


def show(sums: dict[str, dict[str, int]]) -> None:
    """Prints the table: drawn in a terminal, else as plain lines."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=200)
    table = Table(box=rich.box.ROUNDED if console.is_terminal else None)
    table.add_column("fault", no_wrap=True)
    for column in ("faults", *COLUMNS):
        table.add_column(column.replace("_", " "), justify="right")
    for kind, row in sums.items():
        table.add_row(kind, *map(str, row.values()))
    console.print(table)
