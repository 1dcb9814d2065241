"""Trainings that go on side by side: the steps that they take next are one call of one program."""

import contextlib
import functools
from collections.abc import Callable, Generator, Hashable, Sequence
from typing import NamedTuple, TypeVar

from resnet_jax.errors import Interrupted
from resnet_jax.training.driver import Call, Taken, Trainer

Result = TypeVar("Result")


class Dispatch(NamedTuple):
    """Steps that a training takes next: alone, or in one call with those of others.

    Attributes:
      first: number of steps taken before.
      trainer: the compiled step.
      call: the arguments of `Trainer.train`.
    """

    first: int
    trainer: Trainer
    call: Call

    @property
    def key(self) -> Hashable:
        """What those have in common that can be one call: step, program, images, their number."""
        _, examples, indices, *_ = self.call
        return self.first, self.trainer.key, id(examples), indices.shape


Training = Generator[Dispatch, Taken, Result]  # yields what is to be taken, gets what came of it


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

    def advance(place: int, resume: Callable[[], Dispatch]) -> None:
        try:
            waiting[place] = resume()
        except StopIteration as end:
            results[place] = end.value
        except Interrupted as error:
            interrupted.append(error)

    with contextlib.ExitStack() as stack:
        for training in trainings:
            stack.callback(training.close)
        for place, training in enumerate(trainings):
            advance(place, training.__next__)
        while waiting:
            between()
            last = min(waiting.values(), key=lambda dispatch: dispatch.first)
            places = [place for place in waiting if waiting[place].key == last.key]
            calls = [waiting.pop(place).call for place in places]
            try:
                found = last.trainer.train_together(calls)
            except Exception as error:  # each may have something to say of it
                for place in places:
                    advance(place, functools.partial(trainings[place].throw, error))
            else:
                for place, taken in zip(places, found, strict=True):
                    advance(place, functools.partial(trainings[place].send, taken))
    if interrupted:
        raise interrupted[0]
    return [results[place] for place in range(len(trainings))]
