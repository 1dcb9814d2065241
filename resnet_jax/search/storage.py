"""Where a search keeps what it knows: documents of JSON by number, and locks that die with workers.

Whoever holds the lock of a trial is alive: the system frees the locks of a process that ends, and
PostgreSQL those of a connection that breaks. There is nothing to expire, and nothing to guess.
"""

import contextlib
import fcntl
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from resnet_jax.errors import UserError, pip_line, without_secrets
from resnet_jax.files import write_atomically, writing
from resnet_jax.runs import folder as folders

Document = dict[str, Any]

SEARCH = -1  # the number of the search itself, beside those of its trials


def trial_folder(workdir: pathlib.Path, number: int) -> pathlib.Path:
    """Returns the folder of a trial's run."""
    return workdir / "trials" / f"{number:04}"


def open_storage(workdir: pathlib.Path, address: str) -> "Files | Database":
    """Returns the storage of an address; an empty one stands for files in the workdir.

    The workdir is made.

    Raises:
      UserError: if it can't be had.
    """
    if address and not address.startswith(("postgresql://", "postgres://")):
        raise UserError("config field search.storage takes an address postgresql://..., or nothing")
    with writing(f"--workdir {workdir}"):
        workdir.mkdir(parents=True, exist_ok=True)
        if not address:
            return Files(workdir)
    return Database(address)


class Files:
    """Files in the workdir, for workers on one machine, or on several that share the folder."""

    def __init__(self, workdir: pathlib.Path) -> None:
        """Opens the folder.

        Raises:
          OSError: if it can't be written.
        """
        self._workdir = workdir
        self._locks = (workdir / "locks").open("a+b")  # a byte for each number

    def read(self) -> dict[int, Document]:
        """Returns all documents by their numbers, in order."""
        found = {}
        with contextlib.suppress(OSError):  # NFS lists a folder anew that this machine has changed
            (self._workdir / "trials" / ".listed").mkdir()
            (self._workdir / "trials" / ".listed").rmdir()
        paths = [self._path(SEARCH), *sorted(self._workdir.glob("trials/*/trial.json"))]
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                document = _parsed(path.read_bytes(), str(path))
                found[document["number"]] = document
        return dict(sorted(found.items()))

    def write(self, number: int, document: Document) -> None:
        """Replaces a document; it is there whole or as it was."""
        path = self._path(number)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(document, allow_nan=False).encode())

    def lock(self, number: int, wait: bool = False) -> bool:
        """Takes the lock of a number; returns whether it could be had."""
        try:
            fcntl.lockf(self._locks, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, number + 1)
        except (BlockingIOError, PermissionError):
            return False
        except OSError as error:
            where = f"--workdir {self._workdir} can't be locked ({error.strerror})"
            raise UserError(f"{where}; name a folder elsewhere") from None
        return True

    def unlock(self, number: int) -> None:
        """Gives the lock of a number back."""
        fcntl.lockf(self._locks, fcntl.LOCK_UN, 1, number + 1)

    def close(self) -> None:
        """Gives all locks back."""
        self._locks.close()

    def _path(self, number: int) -> pathlib.Path:
        if number == SEARCH:
            return self._workdir / folders.SEARCH
        return trial_folder(self._workdir, number) / "trial.json"


class Database:
    """A database of PostgreSQL that is this search's own, for workers on any machine."""

    def __init__(self, address: str) -> None:
        """Connects, and makes the table if there is none."""
        try:
            import psycopg
            from psycopg import conninfo
        except ImportError:
            raise missing_extra("search.storage") from None
        self._errors: type[Exception] = psycopg.Error
        self._where, self._password = "the address", ""
        with self._reached():
            parts = conninfo.conninfo_to_dict(address)
            self._password = str(parts.get("password") or "")
            self._where = f"{parts.get('host', 'localhost')}/{parts.get('dbname', '')}"
        # The server must notice within half a minute that a machine has lost its power.
        alive = "-c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3"
        options = f"{parts.get('options') or ''} {alive}"
        with self._reached():
            self._connection = psycopg.connect(
                address, autocommit=True, connect_timeout=10, options=options
            )
        self.lock(SEARCH, wait=True)  # two workers that make the table at once get an error
        self._run(
            "CREATE TABLE IF NOT EXISTS resnet_jax_search "
            "(number integer PRIMARY KEY, document jsonb NOT NULL)"
        )
        self.unlock(SEARCH)

    def read(self) -> dict[int, Document]:
        """See `Files`."""
        rows = self._run("SELECT document::text FROM resnet_jax_search ORDER BY number").fetchall()
        documents = [_parsed(text.encode(), f"a row of {self._where}") for (text,) in rows]
        return {document["number"]: document for document in documents}

    def write(self, number: int, document: Document) -> None:
        """See `Files`."""
        self._run(
            "INSERT INTO resnet_jax_search VALUES (%s, %s) "
            "ON CONFLICT (number) DO UPDATE SET document = excluded.document",
            (number, json.dumps(document, allow_nan=False)),
        )

    def lock(self, number: int, wait: bool = False) -> bool:
        """See `Files`."""
        if wait:
            self._run("SELECT pg_advisory_lock(%s)", (number + 1,))
            return True
        found = self._run("SELECT pg_try_advisory_lock(%s)", (number + 1,)).fetchone()
        return bool(found and found[0])

    def unlock(self, number: int) -> None:
        """See `Files`."""
        self._run("SELECT pg_advisory_unlock(%s)", (number + 1,))

    def close(self) -> None:
        """See `Files`."""
        self._connection.close()

    def _run(self, command: str, values: tuple[Any, ...] = ()) -> Any:
        with self._reached():
            return self._connection.execute(command.encode(), values)

    @contextlib.contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except self._errors as error:
            # Of an address that can't be read, the message might show the password.
            text = " ".join(str(error).split()) if self._where != "the address" else "is malformed"
            if self._password:
                text = text.replace(self._password, "***")
            raise UserError(
                f"search.storage, {self._where}: {without_secrets(text)}; once it can be reached, "
                "the same command goes on"
            ) from None


def missing_extra(field: str) -> UserError:
    """Returns the error for a field that needs packages which are not installed."""
    return UserError(f"config field {field} needs the extra search: {pip_line('search')}")


def _parsed(text: bytes, where: str) -> Document:
    """Returns a document whose number can be trusted to be one."""
    try:
        document = json.loads(text)
        if type(document["number"]) is int and document["number"] >= SEARCH:
            return document
    except (ValueError, TypeError, LookupError, RecursionError):
        pass
    raise UserError(f"{where} is damaged; move it away, with its folder, and start again")
