"""Steps that are not finite: found on the device, named and dealt with on the host.

A fault is a number: -1 for none, otherwise the place in `names` of the first thing in a step that
is not finite.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from resnet_jax.errors import UserError
from resnet_jax.training.state import Sums, TrainState
from resnet_jax.trees import named_leaves

Tree = Any


def names(state: TrainState) -> list[str]:
    """Returns what a fault can be: the loss, a parameter's gradient, or a leaf of the new state."""
    gradients = [f"the gradient of {path}" for path, _ in named_leaves(state.params)]
    return ["the loss", *gradients, *(path for path, _ in _numbers(state))]


def settle(
    before: TrainState, after: TrainState, loss: jax.Array, grads: Tree, skip: bool
) -> tuple[TrainState, jax.Array]:
    """Returns the state that a step leaves, and its fault.

    To look for a fault takes one pass over the gradients; to skip a step, further ones over the
    state.

    Args:
      before: the state before the step, but for its step counter.
      after: the state after it.
      loss: mean loss of the batch.
      grads: gradients of the parameters; also refused are those whose square sum overflows.
      skip: whether the result of a faulty step is dropped, and counted.
    """
    finite = [jnp.isfinite(loss)]
    finite += [jnp.isfinite(jnp.square(leaf).sum()) for leaf in jax.tree.leaves(grads)]
    if skip:
        finite += [jnp.isfinite(leaf).all() for _, leaf in _numbers(after)]
    flags = jnp.stack(finite)
    is_fine = flags.all()
    if skip:
        after = jax.tree.map(lambda old, new: jnp.where(is_fine, new, old), before, after)
    stays = is_fine if skip else is_fine | (after.sums.bad_step > 0)
    sums = after.sums.replace(
        bad_step=jnp.where(stays, after.sums.bad_step, after.step),
        skipped=jax.tree.map(lambda count: count + ~is_fine, after.sums.skipped),
    )
    fault = jnp.where(is_fine, -1, flags.argmin()).astype(jnp.int32)
    return after.replace(sums=sums), fault


def not_finite(state: TrainState) -> str:
    """Returns the path of the first leaf of a state that is not finite; empty: there is none."""
    bad = (path for path, leaf in _numbers(state) if not np.isfinite(np.asarray(leaf)).all())
    return next(bad, "")


def _numbers(tree: Tree) -> list[tuple[str, Any]]:
    """Returns the leaves that can be not finite, with their paths."""
    leaves = named_leaves(tree)
    return [(path, leaf) for path, leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact)]


class Watch:
    """Ends a run at its first faulty step, or tells of the steps that are skipped.

    It looks at a dispatch when the next one is under way, so that no device waits for it.
    """

    def __init__(
        self,
        config: ConfigDict,
        state: TrainState,
        notify: Callable[[str], None],
        stopped: Callable[[str], UserError],
    ) -> None:
        """Binds what it needs.

        Args:
          config: the whole config.
          state: the state to go on from.
          notify: is told of every step that is skipped.
          stopped: makes the error that ends the run from a phrase that says why.
        """
        self._names = names(state)
        self._limit = {"stop": 0, "skip": config.on_nan_limit}[config.on_nan]
        self._skipped = int(state.sums.skipped) if config.on_nan == "skip" else 0
        self._notify, self._stopped = notify, stopped
        self._pending: tuple[int, Sums, jax.Array] | None = None

    def add(self, first: int, sums: Sums, faults: jax.Array) -> None:
        """Looks at the dispatch before, and takes note of a new one.

        Args:
          first: number of steps taken before it.
          sums: the sums after it.
          faults: int32 `[steps]`.

        Raises:
          UserError: if a fault ends the run.
        """
        self.settle()
        self._pending = first, sums, faults

    def settle(self) -> None:
        """Looks at the last dispatch; until then nothing of it may be recorded or saved.

        Raises:
          UserError: if a fault ends the run.
        """
        pending, self._pending = self._pending, None
        if pending is None or int(pending[1].bad_step) <= pending[0]:
            return
        first, _, faults = pending
        for step, fault in enumerate(np.asarray(faults), first + 1):
            if fault >= 0:
                self._tell(f"{self._names[fault]} is not finite at step {step:,}")

    def _tell(self, what: str) -> None:
        self._skipped += 1
        if self._limit == 0:
            raise self._stopped(what)
        if self._skipped > self._limit:
            raise self._stopped(f"{what}, and on_nan_limit allows {self._limit:,} skipped steps")
        self._notify(f"{what}; the step is skipped ({self._skipped:,} of {self._limit:,} allowed)")
