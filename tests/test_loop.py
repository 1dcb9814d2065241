"""Whole trainings of seconds: what they keep, choose, refuse, and how they end."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny_run

from resnet_jax import evaluate_run, load_run, main, train_and_evaluate
from resnet_jax.config import load as config_lib
from resnet_jax.data.datasets import select_classes
from resnet_jax.errors import Interrupted, UserError
from resnet_jax.runs.checkpoints import Checkpoints
from resnet_jax.runs.tensorboard import Events
from resnet_jax.training import loop, start
from resnet_jax.training.driver import Trainer
from resnet_jax.training.evaluator import Evaluator
from resnet_jax.training.state import Metrics
from resnet_jax.training.step import StepMetrics
from resnet_jax.training.task import check_extension, create_task

# A process that kills itself right after it dispatched a step, with saves still in flight.
KILLED = """
import os, signal, sys
from resnet_jax import cpu, main
from resnet_jax.runs import recorder
progress = recorder.Recorder.progress
def killing(self, step, means):
    progress(self, step, means)
    if step == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
recorder.Recorder.progress = killing
cpu.enable = lambda: None  # as in all tests
main.main(["resnet-jax", *sys.argv[2:]])
"""


def command(workdir, variant="rich"):
    return [f"--config={tiny_run.CONFIG_FILE}:{variant}", f"--workdir={workdir}"]


def checkpoints(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def scores(workdir):
    return {r["step"]: r["accuracy"] for r in tiny_run.records(workdir) if r["kind"] == "score"}


def assert_same_end(workdir, reference):
    """Compares the last checkpoint and the records with those of an uninterrupted run."""
    folder, final, state = reference
    found = Checkpoints(workdir / "checkpoints")
    assert tiny_run.leaves(found.restore(state, final["step"])) == tiny_run.leaves(state)
    assert tiny_run.records(workdir) == tiny_run.records(folder)


@pytest.mark.parametrize(
    ("which", "field"), [("newest", "test_accuracy"), ("best", "best_test_accuracy")]
)
def test_loaded_variables_have_the_recorded_accuracy(plain_run, which, field):
    folder, final, _ = plain_run
    model, variables, info, config = load_run(folder, which)
    sample = tiny_run.Tiny(config).dataset
    assert info == sample.info
    mean, std = np.float32(config.data.mean), np.float32(config.data.std)
    images = (sample.test.images / np.float32(255) - mean) / std
    logits = model.apply(variables, images, train=False)
    accuracy = 100 * np.mean(np.asarray(logits).argmax(-1) == sample.test.labels)
    assert accuracy == pytest.approx(final[field])
    score = evaluate_run(folder, which, batch_size=100)
    assert score["accuracy"] == pytest.approx(final[field])
    assert score["count"] == 320


def test_the_closing_record_and_the_last_state(plain_run):
    folder, final, state = plain_run
    records = tiny_run.records(folder, drop=("crc32",))
    assert records[-1] == final and final["kind"] == "final"
    assert final["step"] == int(state.step) == 12
    assert final["best_score"] == max(scores(folder).values())
    assert final["train_accuracy"] == [r for r in records if r["kind"] == "train"][-1]["accuracy"]
    assert {"test_loss", "test_accuracy", "best_test_accuracy"} <= final.keys()


def test_validation_and_the_grid_of_images_are_augmented_as_training_is(tmp_path, monkeypatch):
    shown, found = [], {}
    monkeypatch.setattr(Events, "images", lambda self, name, images, step: shown.append(images))
    trainings = ("clean", False, 160), ("augmented", True, 160), ("again", True, 60)
    for name, augment, size in trainings:
        config = tiny_run.get_config()
        config.log.images = 16 * (name == "clean")
        config.num_epochs = 1
        config.augment.crop_padding, config.augment.flip = 4, "random"
        config.evaluate.augment, config.evaluate.batch_size = augment, size
        final, state = train_and_evaluate(config, tmp_path / name)
        records = tiny_run.records(tmp_path / name)
        losses = np.array([r["loss"] for r in records if r["kind"] == "score"])
        found[name] = losses, final["test_accuracy"], tiny_run.leaves(state.params)
    clean, augmented, again = found.values()
    assert clean[1:] == augmented[1:]  # the test images are as they are
    assert (clean[0] != augmented[0]).all()
    np.testing.assert_allclose(again[0], augmented[0], rtol=1e-5)  # for any size of the batches
    task = tiny_run.Tiny(config)
    images = np.asarray(task.data["train"].images)[task.batches(1)[0][:16]]
    assert shown[0].shape == images.shape and (shown[0] != images).any()
    padded = np.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)))
    for image, source in zip(shown[0], padded, strict=True):
        crops = (source[y : y + 32, x : x + 32] for y in range(9) for x in range(9))
        assert any((image == c).all() or (image == c[:, ::-1]).all() for c in crops)


def test_each_step_gets_its_epoch_its_rate_and_the_seed(tmp_path, monkeypatch):
    seen = []

    def train(self, state, examples, indices, epoch, rates, numbers, seed):
        seen.extend((epoch, float(rate), seed) for rate in rates)
        told = StepMetrics(*np.zeros((2, len(indices)), np.float32))
        return state.replace(step=state.step + len(indices)), Metrics.empty(), told

    monkeypatch.setattr(Trainer, "train", train)
    monkeypatch.setattr(loop, "plateau_factor", lambda scores, **_: 0.5 ** len(scores))
    config = tiny_run.get_config()
    config.seed, config.steps_per_dispatch, config.schedule.name = 3, 3, "plateau"
    train_and_evaluate(config, tmp_path)
    assert seen == [(s // 4, pytest.approx(0.1 * 0.5 ** (s // 4)), 3) for s in range(12)]


def test_the_seed_is_that_of_the_weights_and_of_the_order():
    tasks, config = [], tiny_run.get_config()
    for config.seed in (0, 1):
        tasks.append(create_task(config_lib.validate(config), tiny_run.sample().info))
    first, second = (task.order.epoch(0).tolist() for task in tasks)
    assert first != second
    first, second = (np.asarray(t.create_state().params["head"]["kernel"]) for t in tasks)
    assert (first != second).any()


def test_reference_exercises_what_resuming_must_carry_on(rich_run):
    folder, final, state = rich_run
    records = tiny_run.records(folder)
    rates = {record["learning_rate"] for record in records if record["kind"] == "train"}
    accuracies = list(scores(folder).values())
    assert len(rates) > 1, "the plateau schedule never lowered the learning rate"
    assert accuracies.index(max(accuracies)) not in (0, len(accuracies) - 1)
    assert state.opt_state.gradient_step == final["step"] // 2


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(s, marks=pytest.mark.slow) for s in range(1, 6))]
)
def test_killed_run_resumes_bit_for_bit(rich_run, tmp_path, seed):
    workdir = tmp_path / "run"
    step = random.Random(seed).randrange(2, rich_run[1]["step"])
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(step), *command(workdir)], capture_output=True, text=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert all(record["step"] <= step for record in tiny_run.records(workdir))
    assert main.main(["resnet-jax", *command(workdir)]) == 0
    assert_same_end(workdir, rich_run)


def test_signals_save_and_say_how_to_resume(rich_run, tmp_path, monkeypatch, capfd):
    workdir = tmp_path / "with space"
    for step, number, status in ((7, signal.SIGTERM, 143), (8, signal.SIGINT, 130)):
        with monkeypatch.context() as patch:
            tiny_run.interrupt(patch, step, number)
            assert main.main(["/somewhere/main.py", *command(workdir)]) == status
        assert (workdir / "checkpoints" / str(step)).is_dir()
        lines = capfd.readouterr().err.splitlines()
        assert lines[-2].startswith(f"stopped after step {step}, which is saved; ")
        again = f"python -m resnet_jax.main --config={tiny_run.CONFIG_FILE}:rich"
        assert lines[-1].strip() == f"{again} '--workdir={workdir}'"
    assert main.main(["resnet-jax", *command(workdir)]) == 0
    assert "resuming after step 8" in capfd.readouterr().out
    assert_same_end(workdir, rich_run)


def test_until_there_is_something_to_save_a_signal_ends_a_training_at_once(tmp_path, monkeypatch):
    entered = []

    @contextlib.contextmanager
    def signals():
        entered.append(True)
        yield []
        entered.append(False)

    begin, finish = loop._begin, loop._finish
    monkeypatch.setattr(loop, "_begin", lambda *rest: (entered.append(None), begin(*rest))[1])
    monkeypatch.setattr(loop, "_finish", lambda *rest: (entered.append(None), finish(*rest))[1])
    config = tiny_run.get_config()
    config.num_epochs = 1
    train_and_evaluate(config, tmp_path, signals=signals())
    assert entered == [None, True, False, None]


def test_parameters_of_half_precision_are_saved_and_restored_as_such(tmp_path):
    config = tiny_run.get_config()
    config.num_epochs, config.optimizer.ema_decay = 1, 0.5
    config.model.options.param_dtype = "bfloat16"
    train_and_evaluate(config, tmp_path / "run")
    assert {
        a.dtype.name for a in jax.tree.leaves(load_run(tmp_path / "run").variables["params"])
    } == {"bfloat16"}
    config.num_epochs, config.init.weights = 0, str(tmp_path / "run")
    config.model.options.param_dtype = "float32"
    train_and_evaluate(config, tmp_path / "next")
    found = load_run(tmp_path / "next", "newest").variables["params"]
    assert {a.dtype.name for a in jax.tree.leaves(found)} == {"float32"}


def test_a_run_goes_on_in_the_dtype_that_it_began_in(plain_run, tmp_path, monkeypatch):
    # As where it began on several devices, and goes on on one.
    monkeypatch.setattr(start, "compute_dtype", lambda dtype: dtype.replace("auto", "bfloat16"))
    config = tiny_run.get_config()
    config.model.dtype = "auto"
    workdir = shutil.copytree(plain_run[0], tmp_path / "run")
    assert train_and_evaluate(config, workdir)[0] == plain_run[1]


def test_finished_run_is_left_as_it_is(rich_run, tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    shutil.copytree(rich_run[0], workdir)
    before = {p: p.stat().st_mtime_ns for p in workdir.glob("checkpoints/**/*") if p.is_file()}
    monkeypatch.setattr(Trainer, "train", None)  # would fail if called
    monkeypatch.setattr(Evaluator, "score", None)
    final, state = train_and_evaluate(tiny_run.get_config("rich"), workdir)
    assert final == rich_run[1]
    assert tiny_run.leaves(state) == tiny_run.leaves(rich_run[2])
    assert tiny_run.records(workdir, drop=()) == tiny_run.records(rich_run[0], drop=())
    after = {p: p.stat().st_mtime_ns for p in workdir.glob("checkpoints/**/*") if p.is_file()}
    assert after == before


def test_lost_records_of_a_finished_run_are_scored_again(plain_run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(plain_run[0], workdir)
    os.remove(workdir / "metrics.jsonl")
    final, _ = train_and_evaluate(tiny_run.get_config(), workdir)
    for field in ("test_accuracy", "best_test_accuracy", "train_accuracy", "best_epoch"):
        assert final[field] == plain_run[1][field]


def test_resuming_may_change_what_does_not_alter_the_result(plain_run, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(plain_run[0], workdir)
    config = tiny_run.get_config()
    config.evaluate.batch_size = 7
    config.checkpoint.keep = 5
    config.log.tensorboard = False
    for _ in range(2):
        assert train_and_evaluate(config, workdir)[0] == plain_run[1]
    assert "written anew" not in capsys.readouterr().out


@pytest.mark.parametrize("variant", ["plain", "rich"])
def test_extended_run_ends_as_if_it_had_been_longer_from_the_start(variant, tmp_path, request):
    folder, _, whole = request.getfixturevalue(f"{variant}_run")
    config = tiny_run.get_config(variant)
    num_epochs = config.num_epochs
    for config.num_epochs in (1, num_epochs):
        final, extended = train_and_evaluate(config, tmp_path)
    assert tiny_run.leaves(extended) == tiny_run.leaves(whole)
    assert tiny_run.records(tmp_path) == tiny_run.records(folder)
    assert train_and_evaluate(config, tmp_path)[0] == final


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"schedule.name": "cosine"}, "was 2, is 3, on which .* schedule.name='cosine' depend"),
        ({"schedule.name": "one_cycle"}, "schedule.name='one_cycle' depend"),
        ({"evaluate.every_epochs": 3, "evaluate.patience": 1}, "evaluate.every_epochs=3"),
        ({"num_epochs": 4}, "num_epochs was 4, is 3; a run can only be extended"),
        ({"num_epochs": 0, "evaluate.patience": 1}, "the run was scored at its end"),
        ({"data.classes": (0, 1)}, "names 2 classes but the dataset has 10"),
        ({"schedule.name": "cosine", "schedule.options.num_epochs": 5}, None),
        ({"schedule.name": "step", "schedule.options.every_epochs": 1}, None),
    ],
)
def test_a_run_is_extended_where_nothing_before_would_differ(changed, message):
    config = tiny_run.get_config()
    config.num_epochs = 2
    config.update_from_flattened_dict(changed)
    before, config.num_epochs = config.num_epochs, 3
    with contextlib.nullcontext() if message is None else pytest.raises(UserError, match=message):
        task = create_task(config_lib.validate(config), tiny_run.sample().info)
        check_extension(task, before, {before * task.agenda.steps_per_epoch})


def test_a_run_that_never_reached_its_end_was_not_scored_there():
    config = tiny_run.get_config()
    config.num_epochs, config.evaluate.every_epochs, config.evaluate.patience = 5, 3, 1
    task = create_task(config_lib.validate(config), tiny_run.sample().info)
    check_extension(task, 2, set())
    with pytest.raises(UserError, match="scored at its end"):
        check_extension(task, 2, {2 * task.agenda.steps_per_epoch})


def test_other_images_are_refused_and_remembered(tmp_path):
    config, dataset = tiny_run.get_config(), tiny_run.constant_dataset()
    config.num_epochs = 1
    info = tiny_run.sample().info
    config.data.mean, config.data.std = info.mean, info.std  # constants of a shared program
    train_and_evaluate(config, tmp_path, dataset)
    with pytest.raises(UserError, match=dataset.info.digest[:8]):
        train_and_evaluate(config, tmp_path)
    assert load_run(tmp_path).info == dataset.info
    assert evaluate_run(tmp_path, dataset=dataset)["count"] == 320
    with pytest.raises(UserError, match="run is for 10 classes and 3 channels, the dataset has 2"):
        evaluate_run(tmp_path, dataset=select_classes(dataset, (0, 1)))
    with pytest.raises(UserError, match="class 0 of the run is 'airplane', of the dataset 'truck'"):
        evaluate_run(tmp_path, dataset=select_classes(dataset, range(9, -1, -1)))
    with pytest.raises(UserError, match="was trained on 'custom'"):
        evaluate_run(tmp_path)


def test_the_best_is_saved_even_where_no_checkpoint_is_due(tmp_path, monkeypatch):
    scored, score = [], Evaluator.score
    noting = lambda *args: scored.append(len(args[2])) or score(*args)  # noqa: E731
    monkeypatch.setattr(Evaluator, "score", noting)
    config = tiny_run.get_config()
    config.checkpoint.every_epochs = 100
    config.checkpoint.keep = 1
    config.evaluate.every_steps = 2
    config.schedule.name = "milestones"  # nothing is learnt after the first epoch
    config.schedule.options.epochs = (1,)
    config.schedule.options.factor = 1e-9
    final, _ = train_and_evaluate(config, tmp_path / "run")
    found = scores(tmp_path / "run")
    best = min(found, key=lambda step: (-found[step], step))
    assert best < 12
    assert checkpoints(tmp_path / "run") == [best, 12]
    assert scored == [160] * 6 + [320] * 2  # the test images at the end alone: last and best
    assert evaluate_run(tmp_path / "run", "best")["step"] == best
    assert final["best_epoch"] == best / 4


def test_a_run_that_stops_early_is_finished(tmp_path, monkeypatch):
    config = tiny_run.get_config()
    config.num_epochs = 50
    config.optimizer.learning_rate = 0.0
    config.evaluate.patience = 2
    config.checkpoint.every_epochs = 100
    final, _ = train_and_evaluate(config, tmp_path / "run")
    stopped = list(scores(tmp_path / "run"))[-1]
    assert final["step"] == stopped < 200
    assert stopped in checkpoints(tmp_path / "run")
    monkeypatch.setattr(Trainer, "train", None)  # would fail if called
    config.num_epochs += 1  # its patience is at an end all the same
    assert train_and_evaluate(config, tmp_path / "run")[0] == final


def test_scores_only_at_the_end_and_leaves_signals_alone(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(signal, "signal", None)  # would fail if called
    config = tiny_run.get_config()
    config.num_epochs = 2
    config.evaluate.every_epochs = 0
    train_and_evaluate(config, tmp_path / "run")
    assert list(scores(tmp_path / "run")) == [8]
    out = capsys.readouterr().out
    assert "1/2" in out
    assert "2/2" in out


def test_no_epochs_score_and_save_the_weights_that_there_are(tmp_path):
    config = tiny_run.get_config()
    config.num_epochs = 0
    for _ in range(2):
        final, _ = train_and_evaluate(config, tmp_path / "run")
        assert (final["step"], final["train_accuracy"]) == (0, None)
    assert checkpoints(tmp_path / "run") == [0]
    score = evaluate_run(tmp_path / "run", "best")
    assert (score["step"], score["accuracy"]) == (0, final["test_accuracy"])


def test_the_test_set_chooses_nothing_unless_told(tmp_path, capsys):
    config = tiny_run.get_config()
    config.evaluate.split = "test"
    config.num_epochs = 2
    final, _ = train_and_evaluate(config, tmp_path / "run")
    assert final["best_test_accuracy"] == max(scores(tmp_path / "run").values())
    assert "chosen by the test set itself" in capsys.readouterr().out
    assert evaluate_run(tmp_path / "run", "best")["step"] == 8


def test_a_score_that_is_not_finite_stops_the_run(tmp_path, monkeypatch):
    calls, score = [], Evaluator.score

    def bad_score(self, *arguments):
        metrics = score(self, *arguments)
        calls.append(0)
        loss = metrics.loss.replace(total=metrics.loss.total * np.nan)
        return metrics.replace(loss=loss) if len(calls) == 2 else metrics

    monkeypatch.setattr(Evaluator, "score", bad_score)
    message = r"the val loss is not finite after step 8; last good checkpoint: step 4; lower"
    with pytest.raises(UserError, match=message):
        train_and_evaluate(tiny_run.get_config(), tmp_path / "run")
    assert checkpoints(tmp_path / "run") == [4]


@pytest.mark.parametrize(
    ("group", "field", "value", "message"),
    [
        ("model", "num_classes", 9, "model.num_classes is 9 but the data has 10 classes"),
        ("data", "val_fraction", 0.001, "too small a share"),
        ("optimizer", "frozen", "nothing_like_it", "matches no parameter"),
        ("init", "weights", "none.pth", "init.weights.*none.pth"),
    ],
)
def test_what_data_model_or_disk_refuse_leaves_nothing(tmp_path, group, field, value, message):
    config = tiny_run.get_config()
    config[group][field] = value
    with pytest.raises(UserError, match=message):
        train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_start_that_failed_before_does_not_train_random_weights(tmp_path):
    (tmp_path / "checkpoints").mkdir()  # what such a start leaves
    config = tiny_run.get_config()
    config.init.weights = "none.pth"
    with pytest.raises(UserError, match=r"init\.weights.*none\.pth"):
        train_and_evaluate(config, tmp_path)


def test_a_dispatch_of_some_steps_resumes_within_an_epoch(tmp_path, monkeypatch):
    config = tiny_run.get_config()
    config.num_epochs, config.steps_per_dispatch = 2, 2
    config.model.options.num_filters = (2,)  # a loop has slow convolutions
    _, whole = train_and_evaluate(config, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        tiny_run.interrupt(patch, 6, signal.SIGTERM)
        tiny_run.train_until_signal(config, tmp_path / "parts")
    assert 6 in checkpoints(tmp_path / "parts")
    _, parts = train_and_evaluate(config, tmp_path / "parts")
    assert tiny_run.leaves(parts) == tiny_run.leaves(whole)
    assert jax.tree.structure(parts) == jax.tree.structure(whole)
