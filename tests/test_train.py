import jax
import numpy as np
import pytest
import tiny_run

import resnet_jax
from resnet_jax import load_checkpoint, train_and_evaluate
from resnet_jax.errors import UserError
from resnet_jax.inference.evaluate import evaluate_run
from resnet_jax.training.task import Task


def checkpoints(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def scores(workdir):
    return {r["step"]: r["accuracy"] for r in tiny_run.records(workdir) if r["kind"] == "score"}


def test_public_names():
    assert {"create_model", "list_models", "train_and_evaluate", "load_checkpoint"} <= set(
        resnet_jax.__all__
    )
    for name in resnet_jax.__all__:
        assert callable(getattr(resnet_jax, name))
    with pytest.raises(AttributeError):
        _ = resnet_jax.nothing


@pytest.mark.parametrize(
    ("which", "field"), [("newest", "test_accuracy"), ("best", "best_test_accuracy")]
)
def test_loaded_variables_have_the_recorded_accuracy(plain_run, which, field):
    folder, final, _ = plain_run
    model, variables = load_checkpoint(folder, which)
    data, sample = tiny_run.get_config().data, tiny_run.sample()
    images = (sample.test.images / np.float32(255) - np.float32(data.mean)) / np.float32(data.std)
    logits = model.apply(variables, images, train=False)
    accuracy = 100 * np.mean(np.asarray(logits).argmax(-1) == sample.test.labels)
    assert accuracy == pytest.approx(final[field])
    score = evaluate_run(folder, which, batch_size=100)
    assert score["accuracy"] == pytest.approx(final[field])
    assert score["count"] == 320


def test_returns_the_closing_record_and_the_last_state(plain_run):
    folder, final, state = plain_run
    assert final["kind"] == "final"
    assert final["step"] == int(state.step) == 12
    assert final["best_score"] == max(scores(folder).values())
    assert set(state.variables()) == {"params", "batch_stats"}


def test_moving_average_is_what_is_evaluated(rich_run):
    _, variables = load_checkpoint(rich_run[0], "newest")
    assert tiny_run.leaves(variables) == tiny_run.leaves(rich_run[2].average)


def test_the_best_is_saved_even_where_no_checkpoint_is_due(tmp_path):
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
    monkeypatch.setattr("resnet_jax.training.step.Steps.train", None)  # would fail if called
    assert train_and_evaluate(config, tmp_path / "run")[0] == final


def test_scores_only_at_the_end(tmp_path, capsys):
    config = tiny_run.get_config()
    config.num_epochs = 2
    config.evaluate.every_epochs = 0
    train_and_evaluate(config, tmp_path / "run")
    assert list(scores(tmp_path / "run")) == [8]
    out = capsys.readouterr().out
    assert "1/2" in out
    assert "2/2" in out


def test_the_test_set_chooses_nothing_unless_told(tmp_path, capsys):
    config = tiny_run.get_config()
    config.evaluate.split = "test"
    config.num_epochs = 2
    final, _ = train_and_evaluate(config, tmp_path / "run")
    assert final["best_test_accuracy"] == max(scores(tmp_path / "run").values())
    assert "chosen by the test set itself" in capsys.readouterr().out
    assert evaluate_run(tmp_path / "run", "best")["step"] == 8


def diverging():
    """Returns a config whose second epoch blows the parameters up."""
    config = tiny_run.get_config()
    config.optimizer.weight_decay = 0.5
    config.schedule.name = "milestones"
    config.schedule.options.epochs = (1,)
    config.schedule.options.factor = 1e12
    return config


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    workdir = tmp_path / "run"
    message = r"not finite at step [5-8]; last good checkpoint: step 4; lower optimizer.learning_"
    for _ in range(2):  # the same command again: the same end, nothing lost
        with pytest.raises(UserError, match=message):
            train_and_evaluate(diverging(), workdir)
        assert checkpoints(workdir) == [4]
    _, variables = load_checkpoint(workdir)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(variables))
    assert all(record["step"] <= 4 for record in tiny_run.records(workdir))


def test_a_score_that_is_not_finite_stops_the_run(tmp_path, monkeypatch):
    workdir, score = tmp_path / "run", Task.score

    def bad_score(self, state, split):
        sums = score(self, state, split)
        return sums.replace(loss=sums.loss * np.nan) if int(state.step) == 8 else sums

    monkeypatch.setattr(Task, "score", bad_score)
    message = r"the val loss is not finite after step 8; last good checkpoint: step 4; lower"
    with pytest.raises(UserError, match=message):
        train_and_evaluate(tiny_run.get_config(), workdir)
    assert checkpoints(workdir) == [4]


def test_too_little_device_memory(tmp_path, monkeypatch):
    def fail(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nAllocating ...")

    monkeypatch.setattr("resnet_jax.training.step.Steps.train", fail)
    with pytest.raises(UserError, match="too little memory; lower batch_size"):
        train_and_evaluate(tiny_run.get_config(), tmp_path / "run")


@pytest.mark.parametrize(
    ("group", "field", "value", "message"),
    [
        ("model", "num_classes", 9, "model.num_classes is 9 but the data has 10 classes"),
        ("data", "val_fraction", 0.001, "too small a share"),
        ("optimizer", "frozen", "nothing_like_it", "matches no parameter"),
    ],
)
def test_what_the_data_or_model_refuse(tmp_path, group, field, value, message):
    workdir, config = tmp_path / "run", tiny_run.get_config()
    config[group][field] = value
    with pytest.raises(UserError, match=message):
        train_and_evaluate(config, workdir)
    config = tiny_run.get_config()  # once mended, the same folder will do
    config.num_epochs = 1
    train_and_evaluate(config, workdir)
