"""What convolutions, products and norms become on a CPU: calls of oneDNN, unknown to models."""

import functools
import sys
from collections.abc import Callable


def enable(notify: Callable[[str], None] | None = None) -> bool:
    """Makes programs that are compiled for a CPU from now on use oneDNN.

    Where there is none, convolutions stay XLA's, but gradients of kernels become matrix products.

    Args:
      notify: called with a line when our calls of oneDNN are compiled, which happens once on a
        machine, or if they can't be; None: the line goes to standard error.

    Returns:
      Whether oneDNN is used.
    """
    from resnet_jax import platform
    from resnet_jax.cpu import build, convolutions, norms, products

    notify = notify or functools.partial(print, file=sys.stderr)
    try:
        library = build.load(notify)
    except build.Unavailable as problem:
        notify(f"convolutions are XLA's own: {problem}")
        convolutions.use_matrix_products()
        return False
    convolutions.use_onednn(library)
    norms.use(library)
    products.use()
    platform.onednn = True
    return True
