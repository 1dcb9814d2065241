"""Memory of the host, for processes that compute on it."""

import ctypes
import sys

import jax

# Numbers of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Makes this process keep the memory that it frees; call it before jax is used.

    XLA's CPU backend allocates a program's temporary buffers anew at each call. glibc gives blocks
    of their size back to the system at once, which then has to map and to zero them page by page: a
    third of the training step of a small network. On other systems this does nothing.

    Only the main thread's heap can be kept whole, so programs run on the thread that calls them.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    jax.config.update("jax_cpu_enable_async_dispatch", False)
