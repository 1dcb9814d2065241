"""Compiles our calls of oneDNN for this processor, once, and loads them.

python -m resnet_jax.cpu.build     compiles ahead of time
"""

import ctypes
import hashlib
import os
import pathlib
import platform
import shlex
import site
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Sequence

import jax
import jaxlib

from resnet_jax.data import cache
from resnet_jax.errors import UserError, pip_line
from resnet_jax.platform import cpu_features, num_threads

_SOURCES = ("convolution.cc", "normalization.cc")
_HEADERS = ("team.h",)
_FLAGS = "-O3 -march=native -fno-math-errno -fno-trapping-math -std=c++17 -fPIC -shared -fopenmp -w"
_HOW = f"for faster training on Linux: {pip_line('cpu')}, and install g++"


class Unavailable(Exception):
    """Why there is no oneDNN here and how to get it, in one line."""


def load(notify: Callable[[str], None]) -> ctypes.CDLL:
    """Returns our library, bound to as many threads as this process may keep busy.

    Args:
      notify: called with a line for the user before it is compiled.

    Raises:
      Unavailable: if there is no oneDNN, no compiler, or no folder to keep the library in.
    """
    path = _built(notify)
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise Unavailable(f"can't load {path}: {error}; delete that file") from None
    library.resnet_jax_has_convolution.restype = ctypes.c_bool
    library.resnet_jax_set_threads(num_threads())
    return library


def _built(notify: Callable[[str], None]) -> pathlib.Path:
    """Returns the library's path in the user's cache; compiles it unless it is there."""
    command = _command()
    try:
        path = cache.default_cache_dir() / "cpu" / f"{_key(command)}.so"
        with cache.using(path.parent):
            if path.exists():
                return path
            with cache.lock(path.parent, notify):
                if not path.exists():  # another process may have compiled it meanwhile
                    notify("compiling oneDNN's convolutions for this processor, once (about 10 s)")
                    _compile(command, path)
    except UserError as error:
        raise Unavailable(str(error)) from None
    return path


def _command() -> list[str]:
    """Returns the compiler's command, without what it writes."""
    library = _find_onednn()
    here, prefix = pathlib.Path(__file__).parent, library.parent.parent
    while not (prefix / "include").is_dir():  # the library may lie in lib/x86_64-linux-gnu
        prefix = prefix.parent
    try:
        compiler = shlex.split(os.environ.get("CXX", "")) or ["g++"]
    except ValueError as error:
        raise Unavailable(f"environment variable CXX: {error}") from None
    return [
        *compiler,
        *_FLAGS.split(),
        *(f"-I{folder}" for folder in (prefix / "include", jax.ffi.include_dir())),
        *(str(here / name) for name in _SOURCES),
        str(library),
        f"-Wl,-rpath,{library.parent}",
    ]


def _find_onednn() -> pathlib.Path:
    """Returns the path of oneDNN's library, which has its headers beside it."""
    for prefix in (sys.prefix, site.getuserbase(), "/usr/local", "/usr"):
        if os.path.isfile(f"{prefix}/include/oneapi/dnnl/dnnl.hpp"):
            for folder in ("lib", "lib64", f"lib/{sysconfig.get_config_var('MULTIARCH')}"):
                if os.path.isfile(path := f"{prefix}/{folder}/libdnnl.so.3"):
                    return pathlib.Path(path)
    raise Unavailable(f"there is no oneDNN; {_HOW}")


def _key(command: Sequence[str]) -> str:
    """Returns what tells libraries apart: command, sources, jaxlib and processor."""
    here = pathlib.Path(__file__).parent
    sources = [(here / name).read_text() for name in (*_SOURCES, *_HEADERS)]
    parts = [repr(command), jaxlib.__version__, *sorted(cpu_features()), *sources]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _compile(command: Sequence[str], path: pathlib.Path) -> None:
    """Compiles into a file that is there whole or not at all; the caller holds the lock."""
    # Not every file system has locks that other hosts see.
    unfinished = path.with_suffix(f".{platform.node()}-{os.getpid()}.tmp")
    try:
        subprocess.run([*command, "-o", str(unfinished)], check=True, capture_output=True)
        os.replace(unfinished, path)
    except FileNotFoundError:
        raise Unavailable(f"there is no compiler {command[0]}; {_HOW}") from None
    except PermissionError as error:
        raise Unavailable(f"can't run {command[0]}: {error.strerror}; {_HOW}") from None
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().splitlines()
        what = next((line for line in said if "error" in line), *said[:1] or [""])
        raise Unavailable(f"{command[0]} failed{': ' * bool(what)}{what}; {_HOW}") from None
    finally:
        unfinished.unlink(missing_ok=True)


def main() -> int:
    """Compiles the library unless it is there; returns the exit status."""
    try:
        print(_built(print))
    except Unavailable as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
