"""Trainings that go on side by side: the steps that they take next are one call of one program."""

import contextlib
import dataclasses
from collections.abc import Callable, Generator, Hashable, Sequence
from typing import TypeVar

from resnet_jax.errors import Interrupted
from resnet_jax.training.driver import Call, Taken, Trainer

Result = TypeVar("Result")


@dataclasses.dataclass(eq=False)
class Dispatch:
    """Steps that a training takes next: alone, or in one call with those of others.

    Attributes:
      first: number of steps taken before.
      trainer: the compiled step.
      call: the arguments of `Trainer.train`.
      together: all whose steps are the same call; empty: it is alone.
      taken: what came of the steps; None: they are not taken yet.
    """

    first: int
    trainer: Trainer
    call: Call
    together: "Sequence[Dispatch]" = ()
    taken: Taken | None = None

    @property
    def key(self) -> Hashable:
        """What those have in common that can be one call: step, program, images, their number."""
        _, examples, indices, *_ = self.call
        return self.first, self.trainer.key, id(examples), indices.shape

    def take(self) -> Taken:
        """Takes the steps, unless another one of the same call has; see `Trainer.train`."""
        if self.taken is None:
            together = self.together or [self]
            found = self.trainer.train_together([dispatch.call for dispatch in together])
            for dispatch, taken in zip(together, found, strict=True):
                dispatch.taken = taken
        assert self.taken is not None
        return self.taken


Training = Generator[Dispatch, None, Result]  # yields what it is about to take


def train_side_by_side(
    trainings: Sequence[Training[Result]], between: Callable[[], None] = lambda: None
) -> list[Result]:
    """Trains all to their ends; those that are furthest behind take their next steps together.

    Whoever ends leaves, and the others go on in a program for fewer.

    Args:
      trainings: the trainings.
      between: called whenever all of them wait.

    Returns:
      The result of each.

    Raises:
      Interrupted: if one was, after the others have ended too.
      Exception: what one of them raises; it ends the others where they are.
    """
    waiting: dict[int, Dispatch] = {}
    results: dict[int, Result] = {}
    interrupted: list[Interrupted] = []

    def advance(place: int) -> None:
        try:
            waiting[place] = next(trainings[place])
        except StopIteration as end:
            results[place] = end.value
        except Interrupted as error:
            interrupted.append(error)

    with contextlib.ExitStack() as stack:
        for training in trainings:
            stack.callback(training.close)
        for place in range(len(trainings)):
            advance(place)
        while waiting:
            between()
            key = min(waiting.values(), key=lambda dispatch: dispatch.first).key
            places = [place for place in waiting if waiting[place].key == key]
            together = [waiting.pop(place) for place in places]
            for dispatch in together:
                dispatch.together = together
            for place in places:
                advance(place)
    if interrupted:
        raise interrupted[0]
    return [results[place] for place in range(len(trainings))]
