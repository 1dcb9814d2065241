"""Trainings side by side: equal to one by one, each an ordinary run, whatever ends one of them."""

import contextlib
import csv
import json
import logging
import shutil
import signal

import jax
import numpy as np
import pytest
import search_storage
import tiny_run

from resnet_jax import main
from resnet_jax.errors import Interrupted, UserError
from resnet_jax.runs.checkpoints import Checkpoints
from resnet_jax.runs.recorder import Recorder
from resnet_jax.search import worker
from resnet_jax.search.settings import Search
from resnet_jax.search.space import configured
from resnet_jax.search.study import Study
from resnet_jax.search.trials import DONE, FAILED, PRUNED, RUNNING
from resnet_jax.training.hyperparameters import shape
from resnet_jax.training.loop import train_and_evaluate
from resnet_jax.training.side_by_side import Dispatch, train_side_by_side


def small_config():
    config = tiny_run.get_config()
    # Several networks in one program are slow on a CPU.
    config.data.image_size, config.model.options.num_filters = 8, (2,)
    return config


def member(rate, seed, size):
    config = small_config()
    config.seed, config.steps_per_dispatch = seed, size
    config.optimizer.learning_rate, config.optimizer.weight_decay = rate, rate / 100
    config.optimizer.ema_decay = 1 - rate
    config.model.options.dropout_rate = 0.2
    config.augment.crop_padding, config.augment.flip, config.augment.mixup = 4, "random", 0.2
    return tiny_run.Tiny(config, tiny_run.sample())


def call(tiny, state, first, indices):
    rates = tiny.task.learning_rates[first : first + len(indices)]
    return state, tiny.data["train"], indices, 0, rates, tiny.task.hyperparameters, tiny.config.seed


@pytest.mark.parametrize("size", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_three_steps_side_by_side_are_those_one_by_one(size):
    members = [member(rate, seed, size) for rate in (0.01, 0.02) for seed in (0, 1)]
    alone, together = ([tiny.state() for tiny in members] for _ in range(2))
    steps = [[*tiny.task.order.dispatches(0, 3, size)] for tiny in members]
    for dispatches in zip(*steps, strict=True):
        arguments = list(zip(members, alone, dispatches, strict=True))
        alone = [tiny.trainer.train(*call(tiny, state, *d))[0] for tiny, state, d in arguments]
        calls = [call(t, s, *d) for t, s, d in zip(members, together, dispatches, strict=True)]
        together = [taken[0] for taken in members[0].trainer.train_together(calls)]
    for one, other in zip(alone, together, strict=True):
        assert int(one.step) == 3
        pairs = zip(*(jax.tree.leaves(s.params) for s in (one, other)), strict=True)
        assert all(np.allclose(a, b, rtol=0, atol=1e-5) for a, b in pairs)
    kernels = [np.asarray(jax.tree.leaves(state.params)[-1]) for state in together]
    assert len({kernel.tobytes() for kernel in kernels}) == 4  # each has a training of its own


def test_trainings_at_once_share_their_images():
    first, second = (member(0.1, seed, 1) for seed in (0, 1))
    assert first.data["train"] is second.data["train"]


def test_shapes_are_those_of_the_program_the_data_and_the_length():
    base = tiny_run.get_config()
    base.optimizer.weight_decay = 1e-4

    def shape_of(**fields):
        return shape(configured(base, {path.replace("__", "."): v for path, v in fields.items()}))

    alike = {"seed": 1, "optimizer__weight_decay": 1e-3, "schedule__name": "cosine"}
    assert all(shape_of(**{path: value}) == shape_of() for path, value in alike.items())
    others = {"num_epochs": 9, "optimizer__weight_decay": 0.0, "data__split_seed": 1}
    others |= {"batch_size": 60, "log__every_steps": 3}
    assert all(shape_of(**{path: value}) != shape_of() for path, value in others.items())


# The order in which trainings go on


class Recording:
    """Stands for a compiled step; records whose steps were one call."""

    key = "step"

    def __init__(self, error=None):
        self.calls, self.error = [], error

    def train_together(self, calls):
        self.calls.append("".join(name for name, *_ in calls))
        if self.error:
            raise self.error
        return [(name, None, None) for name, *_ in calls]


IMAGES, INDICES = object(), np.zeros((1, 2), np.int32)


def steps(trainer, name, start, stop, end=None, closed=None):
    try:
        for first in range(start, stop):
            taken = yield Dispatch(first, trainer, (name, IMAGES, INDICES))
            assert taken[0] == name
        if end:
            raise end
    finally:
        if closed is not None:
            closed.append(name)
    return name.upper()


def test_those_behind_catch_up_and_who_ends_leaves():
    trainer = Recording()
    trainings = [steps(trainer, "a", 0, 6), steps(trainer, "b", 2, 4), steps(trainer, "c", 0, 5)]
    assert train_side_by_side(trainings) == ["A", "B", "C"]
    calls = ["".join(sorted(names)) for names in trainer.calls]
    assert calls == ["ac", "ac", "abc", "abc", "ac", "a"]


def test_other_programs_and_other_images_are_other_calls():
    first, second = Recording(), Recording()
    second.key = "another step"
    train_side_by_side([steps(first, "a", 0, 1), steps(second, "b", 0, 1)])
    assert first.calls == ["a"] and second.calls == ["b"]


def test_an_error_ends_all_where_they_are():
    trainer, closed = Recording(), []
    error = UserError("full")
    trainings = [steps(trainer, "a", 0, 2, error), steps(trainer, "b", 0, 9, None, closed)]
    with pytest.raises(UserError, match="full"):
        train_side_by_side(trainings)
    assert trainer.calls == ["ab", "ab"] and closed == ["b"]


def test_who_catches_the_error_of_a_call_ends_and_leaves_the_others():
    def catching(training):
        try:
            return (yield from training)
        except UserError:
            return "full"

    short, enough, closed = Recording(UserError("full")), Recording(), []
    enough.key = "another step"
    caught = [catching(steps(short, name, 0, 2, None, closed)) for name in "ab"]
    found = train_side_by_side([*caught, steps(enough, "c", 0, 2, None, closed)])
    assert found == ["full", "full", "C"] and short.calls == ["ab"]
    assert closed == ["a", "b", "c"]
    with pytest.raises(UserError, match="full"):
        train_side_by_side([steps(short, name, 0, 2, None, closed) for name in "ab"])
    assert closed == [*"abc", *"ab"]


def test_an_interrupted_training_leaves_the_others_to_end():
    trainer, closed = Recording(), []
    end = Interrupted("stopped", signal.SIGTERM)
    trainings = [steps(trainer, "a", 0, 1, end), steps(trainer, "b", 0, 3, None, closed)]
    with pytest.raises(Interrupted, match="stopped"):
        train_side_by_side(trainings)
    assert trainer.calls == ["ab", "b", "b"] and closed == ["b"]


# Searches


def config_of(parallel_trials=4):
    config = search_storage.get_config()
    with config.ignore_type():
        config.base = small_config()
    config.space.optimizer = {"learning_rate": (0.01, 0.02), "weight_decay": (1.0,)}
    config.seeds = (3, 4)
    config.search.parallel_trials = parallel_trials
    return config


@pytest.fixture(scope="module")
def stopped_search(tmp_path_factory):
    """A group that trained until a signal arrived, while the first of it had its fifth step."""
    workdir, received, progress = tmp_path_factory.mktemp("stopped"), [], Recorder.progress

    def progress_and_signal(self, step, means):
        progress(self, step, means)
        if step == 5:
            received.append(signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recorder, "progress", progress_and_signal)
        with pytest.raises(Interrupted, match="stopped after step 6, which is saved"):
            worker.run_search(config_of(), workdir, signals=contextlib.nullcontext(received))
    return workdir


def states(workdir):
    found = [json.loads(p.read_text()) for p in sorted(workdir.glob("trials/*/trial.json"))]
    return [trial["state"] for trial in found]


def compiled(caplog):
    names = ("_take_together", "_take_steps")
    messages = [record.getMessage() for record in caplog.records]
    return [sum(f"Compiling jit({name})" in m for m in messages) for name in names]


def test_trials_side_by_side_are_ordinary_runs(tmp_path, caplog, capsys, own_programs):
    together, alone = tmp_path / "together", tmp_path / "alone"
    configs = config_of(), config_of(1)
    for config in configs:
        config.space.num_epochs = (1,)
    with caplog.at_level(logging.WARNING), jax.log_compiles():
        worker.run_search(configs[0], together)
    assert compiled(caplog) == [1, 0]
    worker.run_search(configs[1], alone)
    for number in range(4):
        found, expected = (
            tiny_run.records(folder / "trials" / f"{number:04}") for folder in (together, alone)
        )
        for record, other in zip(found, expected, strict=True):
            assert record.keys() == other.keys() and record["kind"] == other["kind"]
            assert record.get("loss") == pytest.approx(other.get("loss"), abs=1e-3)
    rows = [next(csv.DictReader((f / "ranking.csv").open())) for f in (together, alone)]
    assert rows[0]["trials"] == rows[1]["trials"] and rows[0]["seeds"] == "2"
    workdir = together / "trials" / "0002"
    capsys.readouterr()
    assert main.main(["x", "--mode=eval", f"--workdir={workdir}"]) == 0
    assert "newest" in capsys.readouterr().out


def test_a_group_that_is_stopped_goes_on(stopped_search, tmp_path, caplog):
    shutil.copytree(stopped_search, tmp_path, dirs_exist_ok=True)
    assert states(tmp_path) == [RUNNING] * 4
    folders = sorted(tmp_path.glob("trials/*"))
    saved = [Checkpoints(f / "checkpoints").steps()[0] for f in folders]
    assert saved == [6] * 4
    with caplog.at_level(logging.WARNING), jax.log_compiles():
        worker.run_search(config_of(), tmp_path)
    assert compiled(caplog) == [0, 0]  # the same program
    assert states(tmp_path) == [DONE] * 4
    starts = [len((f / "starts.jsonl").read_text().splitlines()) for f in folders]
    assert starts == [2] * 4


def test_one_of_a_group_goes_on_alone(stopped_search, tmp_path):
    shutil.copytree(stopped_search, tmp_path, dirs_exist_ok=True)
    study = Study(Search.of(config_of()), tmp_path)
    trial = study.trials()[1]
    study.close()
    config = configured(study.search.base, trial.point, seed=trial.seed)
    final, _ = train_and_evaluate(config, study.folder(trial))
    assert final["step"] == 8
    worker.run_search(config_of(), tmp_path)
    assert states(tmp_path) == [DONE] * 4


def test_who_is_pruned_or_diverges_leaves_the_others(tmp_path, monkeypatch):
    config = config_of()
    config.seeds = (3,)
    config.space.optimizer.learning_rate = (0.01, 0.02, 1e6)
    monkeypatch.setattr(Study, "is_beaten", lambda self, trial: trial.number == 1)
    worker.run_search(config, tmp_path)
    assert states(tmp_path) == [DONE, PRUNED, FAILED]


def test_groups_have_one_shape(tmp_path):
    config = config_of()
    config.space.optimizer.weight_decay = (0.0, 1e-3)
    config.seeds = (3,)
    study = Study(Search.of(config), tmp_path)
    groups = []
    while group := study.next():
        groups.append([trial.number for trial in group])
        for trial in group:
            trial.state, trial.score = DONE, 50.0
            study.end(trial)
    assert groups == [[0, 2], [1, 3]]


def test_images_of_their_own_are_refused(tmp_path):
    config = config_of()
    config.base.data.resident_bytes = 0
    with pytest.raises(UserError, match="parallel_trials needs images that trials share"):
        worker.run_search(config, tmp_path)
