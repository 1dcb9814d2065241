"""Steps that are not finite: noticed one dispatch late, so that no device waits for the host."""

from collections.abc import Callable

import numpy as np
from ml_collections import ConfigDict

from resnet_jax import hosts
from resnet_jax.errors import TrainingFailed, UserError
from resnet_jax.runs.checkpoints import Checkpoints
from resnet_jax.training.state import TrainState, not_finite
from resnet_jax.training.step import StepMetrics


class Watch:
    """Ends a run at its first step that is not finite, or tells of those that are skipped."""

    def __init__(
        self,
        config: ConfigDict,
        skipped: int,
        notify: Callable[[str], None],
        stopped: Callable[[str], UserError],
    ) -> None:
        """Binds what it needs.

        Args:
          config: the whole config.
          skipped: number of steps skipped so far.
          notify: is told of every step that is skipped.
          stopped: makes the error that ends the run from a phrase that says why.
        """
        self._limit = config.on_nan_limit if config.on_nan == "skip" else 0
        self._skipped, self._notify, self._stopped = skipped, notify, stopped
        self._pending: tuple[int, int, StepMetrics] | None = None

    def add(self, first: int, count: int, told: StepMetrics) -> None:
        """Looks at the dispatch before, and takes note of a new one.

        Args:
          first: number of steps taken before it.
          count: number of its steps.
          told: what they told, arrays of at least `count` rows.

        Raises:
          UserError: if a step ends the run.
        """
        self.settle()
        self._pending = first, count, told

    def settle(self) -> None:
        """Looks at the last dispatch; until then nothing of it may be recorded or saved.

        Raises:
          UserError: if a step ends the run.
        """
        if self._pending is None:
            return
        (first, count, told), self._pending = self._pending, None
        loss, norm = (np.asarray(row)[:count] for row in (told.loss, told.gradient_norm))
        for row in np.flatnonzero(~(np.isfinite(loss) & np.isfinite(norm))):
            name = "the norm of the gradient" if np.isfinite(loss[row]) else "the loss"
            self._tell(f"{name} is not finite at step {first + int(row) + 1:,}")

    def _tell(self, what: str) -> None:
        self._skipped += 1
        if self._limit == 0:
            raise self._stopped(what)
        if self._skipped > self._limit:
            raise self._stopped(f"{what}, and on_nan_limit allows {self._limit:,} skipped steps")
        self._notify(f"{what}; the step is skipped ({self._skipped:,} of {self._limit:,} allowed)")


def stopped(
    checkpoints: Checkpoints, problem: str, state: TrainState, on_nan: str
) -> TrainingFailed:
    """Returns the error that stops a run before a state that is not finite is saved.

    Args:
      checkpoints: those of the run, which are written first.
      problem: a phrase that says why.
      state: the state.
      on_nan: what the config says.
    """
    checkpoints.wait()
    steps, leaf = checkpoints.steps(), not_finite(state)
    found = f" (in the state, first {leaf})" if leaf else ""
    last = f"step {steps[0]:,}" if steps else "none"
    saved = f"; last good checkpoint: {last}" if hosts.is_first() else ""  # others have none
    skip = ", on_nan='skip'" if on_nan == "stop" else ""
    return TrainingFailed(
        f"{problem}{found}{saved}; lower optimizer.learning_rate, or set "
        f"schedule.warmup_epochs{skip} or optimizer.gradient_clip"
    )
