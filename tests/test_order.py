import numpy as np
import pytest

from resnet_jax.data.order import TrainingOrder, padded_batches
from resnet_jax.errors import UserError


def order(seed=0, examples=50, batch_size=8, shuffle=True, drop_last=False):
    return TrainingOrder(seed, examples, batch_size, shuffle, drop_last)


def steps(order, start=0, stop=None, size=1):
    """Returns the image indices of each step."""
    stop = order.steps_per_epoch if stop is None else stop
    batches = {}
    for first, indices in order.dispatches(start, stop, size):
        for number, batch in enumerate(indices):
            assert first + number not in batches
            batches[first + number] = batch.tolist()
    assert sorted(batches) == list(range(start, stop))
    return batches


def test_an_epoch_is_a_permutation_of_its_own():
    epochs = [order().epoch(0), order().epoch(1), order(seed=1).epoch(0)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(50))
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert order().epoch(0).tolist() == epochs[0].tolist()


def test_the_order_is_the_same_on_every_platform():
    assert order(seed=3, examples=10).epoch(2).tolist() == [6, 8, 5, 1, 2, 0, 9, 3, 7, 4]
    assert order(seed=3, examples=10).epoch(2).dtype == np.int32
    with pytest.raises(ValueError, match="read-only"):
        order().epoch(0)[0] = 1


def test_without_shuffle_the_order_is_that_of_the_data():
    assert order(shuffle=False).epoch(3).tolist() == list(range(50))


def test_the_incomplete_last_batch_is_kept_or_left_out():
    kept = steps(order())
    assert [len(batch) for batch in kept.values()] == [8] * 6 + [2]
    assert sorted(index for batch in kept.values() for index in batch) == list(range(50))
    assert [len(batch) for batch in steps(order(drop_last=True)).values()] == [8] * 6
    assert [len(batch) for batch in steps(order(batch_size=10)).values()] == [10] * 5
    assert [len(batch) for batch in steps(order(batch_size=64)).values()] == [50]
    assert order(batch_size=64).images_per_step == 50
    assert (order().images_per_step, order(drop_last=True).images_per_step) == (50 / 7, 8)


@pytest.mark.parametrize("size", [1, 2, 4, 100])
@pytest.mark.parametrize("drop_last", [False, True])
def test_a_step_has_the_same_images_however_steps_are_dispatched(size, drop_last):
    one = order(drop_last=drop_last)
    whole = steps(one, 0, 3 * one.steps_per_epoch)
    for start in (0, 1, 6, 9):
        part = steps(one, start, 17, size)
        assert part == {step: whole[step] for step in range(start, 17)}


def test_a_batch_that_no_epoch_can_fill():
    with pytest.raises(UserError, match="batch_size is 64 but there are only 50 training images"):
        order(batch_size=64, drop_last=True)


@pytest.mark.parametrize(("examples", "batch_size"), [(10, 1), (10, 3), (10, 10), (10, 16)])
def test_padded_batches_hold_every_image_once(examples, batch_size):
    seen = []
    for indices, mask in padded_batches(examples, batch_size):
        assert indices.shape == mask.shape == (batch_size,)
        seen += indices[mask == 1].tolist()
        assert set(mask.tolist()) <= {0.0, 1.0}
    assert seen == list(range(examples))
