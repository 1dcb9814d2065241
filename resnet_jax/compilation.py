"""The cache of compiled programs, which makes every start but the first one quick."""

import os
import platform

import jax
import platformdirs


def enable_cache() -> None:
    """Keeps compiled programs in the user's cache folder, unless jax was given another one.

    Without a folder that can be written there is no cache.
    """
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        # One per machine: what was compiled for another CPU may not run on this one.
        folder = os.path.join(
            platformdirs.user_cache_dir("resnet_jax"), "compiled", platform.node()
        )
        try:
            os.makedirs(folder, exist_ok=True)
        except OSError:
            return
        jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
