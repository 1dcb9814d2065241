"""Searches: spaces, points, trials that are trained once, and tables of what became of them."""

import contextlib
import csv
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import psycopg
import pytest
import search_storage
import tiny_run
from ml_collections import ConfigDict

from resnet_jax import main
from resnet_jax.config import load as config_lib
from resnet_jax.config.flags import override_search
from resnet_jax.data.registry import open_dataset
from resnet_jax.errors import UserError, without_secrets
from resnet_jax.runs.records import History
from resnet_jax.search import sampling, settings, worker
from resnet_jax.search.settings import Search
from resnet_jax.search.space import Axis, configured, draw, draws, grid, parse
from resnet_jax.search.storage import SEARCH, open_storage
from resnet_jax.search.study import Study
from resnet_jax.search.trials import DONE, FAILED, PRUNED, RUNNING, Trial, standings

CONFIG = f"--config={search_storage.CONFIG_FILE}"
ROOT = pathlib.Path(__file__).parent.parent
GRID = [(rate, decay) for rate in (0.01, 0.1) for decay in (1e-4, 1e-3)]


@pytest.fixture(scope="module")
def server():
    if search_storage.postgres_programs() is None or search_storage.server_user() is None:
        pytest.skip("there is no PostgreSQL server here (or only root, as whom it does not run)")
    with search_storage.postgres_server() as address:
        yield address


@pytest.fixture
def database(server):
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS resnet_jax_search")
    return server


@pytest.fixture(params=["files", "database"])
def address(request):
    return "" if request.param == "files" else request.getfixturevalue("database")


def run(workdir, *flags, config=CONFIG):
    arguments = ["resnet-jax", "--mode=search", config, f"--workdir={workdir}", *flags]
    return main.main(arguments)


def config_of(variant="grid"):
    config = search_storage.get_config(variant)
    with config.ignore_type():
        config.base = tiny_run.get_config()
    return config


def write_records(folder, kind, epoch=2.0):
    numbers = ("test_loss", "test_accuracy", "best_test_accuracy", "train_accuracy")
    numbers += ("loss", "accuracy", "learning_rate", "best_epoch", "best_score")
    record = {"kind": kind, "step": 4, "epoch": epoch, "seconds": 1.5, **dict.fromkeys(numbers, 1)}
    with contextlib.closing(History(folder / "metrics.jsonl")) as history:
        history.add(record)


def fake_training(monkeypatch, score=lambda config: 50.0, drawn=False):
    """Makes trials end at once with a score; returns the configs that were trained."""
    if not drawn:
        monkeypatch.setattr(worker, "write_plots", lambda *_: [])
        monkeypatch.setattr(Study, "write_view", lambda self: None)
    trained = []

    def train(config, base, folder, output, received, images):
        yield from ()
        trained.append(config)
        (folder / "checkpoints").mkdir()
        write_records(folder, "final")
        return DONE, ""

    def complete(trial, config, folder, metric):
        trial.seconds = 1800
        trial.score, trial.curve = score(config), [[2, score(config)]]

    monkeypatch.setattr(worker, "_train", train)
    monkeypatch.setattr(worker, "_complete", complete)
    monkeypatch.setattr(worker, "evaluate_run", lambda folder, which: {"accuracy": 40.0})
    return trained


# Spaces and points


def test_a_grid_has_every_combination_once_and_conditions_hold():
    momentum = {"values": (0.8, 0.9), "when": {"optimizer": {"name": ("sgd",)}}}
    space = {"optimizer": {"options": {"momentum": momentum}, "name": ("adam", "sgd")}}
    points = grid(parse(space | {"batch_size": (10, 20)}))
    assert len(points) == 2 * (1 + 2)
    assert len({json.dumps(point) for point in points}) == 6
    for point in points:
        assert ("optimizer.options.momentum" in point) == (point["optimizer.name"] == "sgd")


def test_the_grids_of_the_reports():
    r5 = main._parse(["x", "--mode=search", "--config=search/r5_grid", "--workdir=x"]).config
    found = Search.of(r5)
    assert len(found.grid) == 18 == len(found.reported.rows)
    columns = found.reported.columns[:3]
    reported = {tuple(row[:3]) for row in found.reported.rows}
    assert {tuple(point[path] for path in columns) for point in found.grid} == reported
    r1 = Search.of(
        main._parse(["x", "--mode=search", "--config=search/r1_grid", "--workdir=x"]).config
    )
    assert len(r1.grid) == 2 * 560
    assert sum("schedule.options.factor" in point for point in r1.grid) == 560


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs/search").glob("*.py")), ids=lambda p: p.stem
)
def test_every_search_config_has_points_that_train(path):
    search = Search.of(override_search(config_lib.load(str(path)), [""]))
    assert search.axes and (search.grid or search.settings.trials)


def test_another_schedule_has_no_options_of_the_bases():
    base = tiny_run.get_config()
    base.schedule.name, base.schedule.options = "step", {"every_epochs": 2, "factor": 0.5}
    same = worker.configured(base, {"schedule.name": "step"})
    other = worker.configured(base, {"schedule.name": "cosine"})
    assert same.schedule.options.factor == 0.5 and not other.schedule.options


def test_random_points_lie_in_their_ranges_and_are_functions_of_seed_and_number():
    axes = parse(
        {
            "batch_size": {"low": 10, "high": 12},
            "optimizer": {"learning_rate": {"low": 1e-4, "high": 1.0, "log": True}},
            "loss": {"label_smoothing": {"low": 0.0, "high": 0.5}},
        }
    )
    points = [draw(axes, 0, number) for number in range(300)]
    assert {point["batch_size"] for point in points} == {10, 11, 12}
    rates = np.array([point["optimizer.learning_rate"] for point in points])
    assert rates.min() >= 1e-4 and rates.max() <= 1
    assert 0.4 < np.mean(rates < 1e-2) < 0.6  # the half of the decades
    assert draw(axes, 0, 7) == points[7] != draw(axes, 1, 7)


def test_random_points_differ_and_come_to_an_end():
    axes = parse({"batch_size": (1, 2, 3), "data": {"shuffle": (True, False)}})
    points = [*draws(axes, 0)]
    assert sorted(map(json.dumps, points)) == sorted(map(json.dumps, grid(axes)))
    assert points[0] == draw(axes, 0, 0)


def test_tpe_keeps_clear_of_points_that_fail():
    pytest.importorskip("optuna")
    (axis,) = axes = parse(
        {"optimizer": {"learning_rate": {"low": 1e-4, "high": 1.0, "log": True}}}
    )
    settings = config_of("tpe").search
    found = []
    for index in range(30):
        point = sampling.suggest(axes, settings, standings(found, 1), index)
        has_failed = point[axis.path] > 0.03
        score = None if has_failed else 100 * axis.share(point[axis.path])
        fields = {"state": FAILED if has_failed else DONE, "score": score}
        found.append(Trial(index, point, 0, 1.0, "here", **fields))
    assert sum(trial.state == FAILED for trial in found[-10:]) < 10


BAD = [
    (["--config.space.optimizer.lerning_rate=(1.0,)"], "did you mean optimizer.learning_rate?"),
    (["--config.space.batch_size=()"], "space.batch_size takes values that differ"),
    (["--config.space.batch_size=(1,1)"], "space.batch_size takes values that differ"),
    (["--config.space.batch_size=('x',)"], "space.batch_size takes a whole number, not 'x'"),
    (["--config.space.batch_size=(0,)"], "space.batch_size must be at least 1"),
    (["--config.space.batch_size=3"], "space.batch_size takes a list"),
    (["--config.space.seed=(0,1)"], "list seeds in the field seeds"),
    (["--config.space.evaluate.augment=(True,)"], "can't be compared"),
    (
        ["--config.base.evaluate.augment=True", "--config.space.augment.crop_padding=(0,4)"],
        "such scores can't be compared",
    ),
    (["--config.seeds=()"], "config field seeds takes seeds that differ"),
    (["--config.search.metod=x"], "did you mean search.method"),
    (["--config.search.method=rnd"], "search.method"),
    (["--config.search.method=random"], "which has no end; set search.trials"),
    (["--config.search.trials=-1"], "search.trials must be at least 0"),
    (["--config.num_epochs=3"], "unknown config field 'num_epochs'"),
    (["--config.base.num_epoch=3"], "did you mean num_epochs?"),
    (["--config.base.optimizer.learning_rate=3"], "changes nothing; set --config.space.optimizer"),
    (["--config.base.seed=3"], "--config.base.seed changes nothing; set --config.seeds"),
    (["--config.base=nowhere.py"], "--config nowhere.py does not exist"),
    (["--config.base.evaluate.split=test"], "search.select_on_test=True"),
    (["--config.search.select_on_test=True"], "base has evaluate.split='val'"),
    (["--config.search.storage=mysql://a:b@c/d"], "search.storage takes an address postgresql://"),
    (["--config.search.storage=postgresql://me:sesame@127.0.0.1:1/x"], "127.0.0.1/x: "),
    (["--config.search.storage=postgresql://me:sesame@[::1/x"], "is malformed"),
    (["--config.search.method=cma-es", "--config.search.trials=3"], "needs two ranges"),
    (["--config.search.pruner=median", "--config.seeds=(0,1)"], "compares single trials"),
    (["--config.seeds=(0,-1)"], "config field seed must be at least 0"),
    (["--config.space.model.name=('resnet_small','resnet_smal')"], "unknown model 'resnet_smal'"),
    (["--config.space.optimizer.name=('sgd','sdg')"], "unknown optimizer 'sdg'"),
    (["--config.space.data.val_fraction=(0.1,0.0)"], "data.val_fraction is 0"),
    (["--config.search.parallel_trials=0"], "search.parallel_trials must be at least 1"),
    (["--config.search.parallel_trials=x"], "search.parallel_trials"),
    (["--config.space.data.name=('sample','smaple')"], "did you mean sample?"),
    (["--config.space.model.options.dropout=(0.1,)"], "unknown option of model"),
    (["--config.space.schedule.options.factor=(0.5,)"], "'constant' has no options"),
    (["--config.space.optimizer.options.momentum=(0.5,1.5)"], "momentum of optimizer"),
    (["--config.base", "nowhere.py"], "--config nowhere.py does not exist"),
    (["--config.base.batch_size", "x"], "batch_size"),
]


@pytest.mark.parametrize(("flags", "message"), BAD)
def test_bad_input_gets_one_line(tmp_path, capsys, flags, message):
    assert run(tmp_path / "search", *flags) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1
    assert message in err
    assert "sesame" not in err


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({}, "space is empty"),
        ({"batch_size": {"low": 5}}, "takes a list of values, or low and high"),
        ({"batch_size": {"low": 5, "high": 5}}, "low must be below high"),
        ({"optimizer": {"weight_decay": {"low": 0, "high": 1, "log": True}}}, "above 0"),
        ({"batch_size": {"values": (1, 2), "log": True}}, "which log does not go with"),
        ({"batch_size": {"values": (1,), "when": {"num_epochs": (1,)}}}, "the space lacks"),
        ({"batch_size": {"values": (1,), "when": 3}}, "when takes names with values"),
        ({"model": {"options": {"x": (print,)}}}, "values that JSON has"),
    ],
)
def test_bad_spaces(space, message):
    with pytest.raises(UserError, match=message):
        parse(space)


def test_ends_of_ranges_are_checked_before_a_trial():
    config = config_of("random")
    config.space.optimizer.options = {"momentum": {"low": 0.5, "high": 1.5}}
    with pytest.raises(UserError, match=r"momentum of optimizer .* must be at least 0 and below 1"):
        Search.of(config)


@pytest.mark.parametrize(
    ("columns", "rows", "message"),
    [
        (("train", "batch_size"), (), "unknown config field 'train'"),
        (("batch_size", "test"), ((100,),), "does not fit the columns"),
        (("batch_size", "test"), ((100, "x"),), "does not fit the columns"),
    ],
)
def test_a_table_that_can_not_be_written_is_refused_first(columns, rows, message):
    config = config_of()
    config.reported.columns, config.reported.rows = columns, rows
    with pytest.raises(UserError, match=message):
        Search.of(config)


@pytest.mark.parametrize("name", ["base", "space", "seeds", "search", "reported"])
def test_groups_that_are_none_are_refused_by_name(name):
    config = config_of()
    with config.ignore_type():
        config[name] = 3
    with pytest.raises(UserError, match=f"config (group|field) {name} takes"):
        Search.of(config)


def test_flags_take_their_value_after_a_blank_too():
    flags = ["--config.base.batch_size", "60", "--config.base.data.shuffle"]
    flags += ["--config.seeds", "(1,)"]
    flags += ["--config.base.optimizer.gradient_clip=0.2", "--config.space.num_epochs", "(1,)"]
    config = main._parse(["x", "--mode=search", CONFIG, "--workdir=x", *flags]).config
    assert (config.base.batch_size, config.base.data.shuffle, config.seeds) == (60, True, (1,))
    assert config.base.optimizer.gradient_clip == 0.2 and config.space.num_epochs == (1,)


def test_a_field_of_the_base_is_refused_only_where_the_space_has_it_for_all_points():
    def override(*flags):
        return override_search(config_lib.load(f"{search_storage.CONFIG_FILE}"), ["x", *flags])

    base = "--config.base.optimizer"
    assert not override(f"{base}.options={{}}").base.optimizer.options
    assert override(f"{base}.no_decay=-config.seed").base.optimizer.no_decay == "-config.seed"
    with pytest.raises(UserError, match=r"base\.optimizer\.learning_rate changes nothing"):
        override(f"{base}.learning_rate=0.3")


def test_a_list_of_lists_takes_the_place_of_another():
    config = config_lib.load(f"{search_storage.CONFIG_FILE}")
    with config.ignore_type():
        config.space = {"model": {"options": {"num_filters": ([8, 16], [16, 32])}}}
    flags = "--config.space.model.options.num_filters=((8,),)"
    found = override_search(config, ["x", flags])
    assert found.space.model.options.num_filters == ((8,),)


def test_a_list_takes_the_place_of_a_range_and_a_range_that_of_a_list():
    config = config_lib.load("search/optuna_resnet_small")
    path = "optimizer.learning_rate"
    assert config.space.optimizer.learning_rate.low
    found = override_search(config, ["x", f"--config.space.{path}=(0.01, 0.1)"])
    assert {a.path: a.values for a in parse(found.space.to_dict())}[path] == (0.01, 0.1)
    config = config_lib.load("search/r5_grid")
    bounds = [f"--config.space.{path}.{end}" for end in ("low=0.1", "high=0.2")]
    found = override_search(config, ["x", *bounds])
    assert {a.path: a.high for a in parse(found.space.to_dict())}[path] == 0.2


def test_configs_of_runs_and_of_searches_are_told_apart(tmp_path, capsys):
    assert main.main(["x", CONFIG]) == 2
    assert "add --mode=search" in capsys.readouterr().err
    assert run(tmp_path, config="--config=quickstart") == 2
    assert "is that of a run" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["tpe", "cma-es"])
def test_a_missing_extra_is_named_with_the_line_that_installs_it(monkeypatch, method):
    monkeypatch.setattr(sampling, "is_installed", lambda name: False)
    with pytest.raises(UserError, match=r"pip install 'resnet-flax-cifar\[search\]'"):
        Search.of(config_of(method))


# Trials


def test_trials_that_differ_in_numbers_have_one_program():
    config = config_of("random")
    config.space.loss = {"label_smoothing": {"low": 0.01, "high": 0.2}}
    config.space.optimizer.options = {"momentum": {"low": 0.5, "high": 0.9}}
    search = Search.of(config)
    points = [draw(search.axes, 0, number) for number in range(2)]
    points += [points[0] | {"optimizer.weight_decay": 0.0}]  # which switches a part off
    found = [tiny_run.Tiny(configured(search.base, point)).trainer.key for point in points]
    assert found[0] == found[1] != found[2]


def test_a_search_ranks_on_validation_and_scores_the_winner_alone(tmp_path, capsys):
    assert run(tmp_path) == 0
    out = capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "ranking.csv").open()))
    assert {
        (float(row["config.optimizer.learning_rate"]), float(row["config.optimizer.weight_decay"]))
        for row in rows
    } == set(GRID)
    scores = [float(row["score"]) for row in rows]
    assert scores == sorted(scores, reverse=True) and [row["rank"] for row in rows] == list("1234")
    assert [bool(row["test"]) for row in rows] == [True, False, False, False]
    assert "config.num_epochs" not in rows[0]  # it does not vary
    assert f"{rows[0]['score']}" in (tmp_path / "ranking.md").read_text()
    assert "the test set is scored for the winner alone" in out
    for number in range(4):
        records = tiny_run.records(tmp_path / "trials" / f"{number:04}")
        assert records[-1]["kind"] == "final" and records[-1]["test_accuracy"] is None
        assert {r["split"] for r in records if r["kind"] == "score"} == {"val"}
    assert main.main(["x", "--mode=eval", f"--workdir={tmp_path / 'trials' / '0003'}"]) == 0
    assert f"{float(rows[0]['test']):.2f}" in out


def test_a_search_that_is_stopped_goes_on_in_mid_trial(tmp_path, monkeypatch, capfd):
    flag = "--config.space.optimizer.weight_decay=(1e-4,)"  # two trials remain
    with monkeypatch.context() as patch:
        tiny_run.interrupt(patch, 5, signal.SIGTERM)
        assert run(tmp_path, flag) == 128 + signal.SIGTERM
    assert "stopped after step 5, which is saved; the same command" in capfd.readouterr().err
    states = [json.loads(p.read_text())["state"] for p in tmp_path.glob("trials/*/trial.json")]
    assert states == [RUNNING]
    assert run(tmp_path, flag) == 0
    starts = [
        len((tmp_path / "trials" / f"{number:04}" / "starts.jsonl").read_text().splitlines())
        for number in range(2)
    ]
    assert starts == [2, 1]
    assert "resuming after step 5" in (tmp_path / "trials" / "0000" / "output.txt").read_text()
    before = (tmp_path / "ranking.csv").read_bytes()
    assert run(tmp_path, flag) == 0  # nothing is left to train, nor to score
    assert (tmp_path / "ranking.csv").read_bytes() == before


def test_seeds_give_mean_and_deviation(tmp_path, monkeypatch):
    config = config_of()
    config.seeds = (3, 4)
    trained = fake_training(
        monkeypatch, lambda c: 50 + 10 * c.optimizer.learning_rate + 2.0 * (c.seed == 4)
    )
    worker.run_search(config, str(tmp_path))
    assert [c.seed for c in trained] == [3, 4] * 4
    row = next(csv.DictReader((tmp_path / "ranking.csv").open()))
    assert (row["score"], row["std"], row["seeds"]) == ("52.00", "1.41", "2")
    assert row["config.optimizer.learning_rate"] == "0.1" and row["test"] == "40.00"


def test_a_budget_that_ends_between_seeds_is_said(tmp_path, monkeypatch):
    fake_training(monkeypatch)
    config = config_of()
    config.seeds, config.search.epochs = (3, 4), 3
    with pytest.raises(UserError, match="too small for one point with all seeds"):
        worker.run_search(config, str(tmp_path))


def test_patterns_are_values_that_tables_and_plots_show_as_they_are(tmp_path, monkeypatch):
    fake_training(monkeypatch, drawn=True)
    config = config_of()
    patterns = (r"bias$|\d$", r"bias$|\w+$")  # as a formula Matplotlib refuses them
    config.space = {"optimizer": {"no_decay": patterns}}
    worker.run_search(config, str(tmp_path))
    assert (tmp_path / "parallel.png").exists()
    lines = (tmp_path / "ranking.md").read_text().splitlines()
    rows = [line.replace(r"\|", "") for line in lines if line.startswith("|")]
    assert len({row.count("|") for row in rows}) == 1


def test_only_the_weights_of_the_best_are_kept(tmp_path, monkeypatch):
    trained = fake_training(monkeypatch, lambda config: 50 + 10 * config.optimizer.learning_rate)
    config = config_of()
    config.search.keep = "best"
    worker.run_search(config, str(tmp_path))
    best = next(csv.DictReader((tmp_path / "ranking.csv").open()))["trials"]
    assert [path.parent.name for path in tmp_path.glob("trials/*/checkpoints")] == [best]
    assert len(trained) == len(list(tmp_path.glob("trials/*/output.txt"))) == 4  # the rest stays


def test_a_report_is_reproduced_as_it_was_and_stands_beside(tmp_path, monkeypatch, capsys):
    fake_training(monkeypatch, lambda config: 70 + config.batch_size / 100)
    config = main._parse(["x", "--mode=search", "--config=search/r5_grid", "--workdir=x"]).config
    worker.run_search(config, str(tmp_path))
    out = capsys.readouterr().out
    assert "Ranked by the last score on the test set itself." in out
    assert "| batch_size | optimizer.learning_rate | data.shuffle | train reported | train measured"
    rows = [line.split() for line in out.splitlines() if line.split()[-2:-1] == ["89.12"]]
    assert rows[0][:5] == ["500", "0.01", "False", "95.81", "-"]
    assert len(list(csv.reader((tmp_path / "ranking.csv").open()))) == 19


def test_budgets_end_a_search(tmp_path, monkeypatch):
    trained = fake_training(monkeypatch)
    for field, value, count in (("trials", 3, 3), ("epochs", 5, 2), ("hours", 1, 2)):
        trained.clear()
        config = config_of()
        config.search[field] = value
        worker.run_search(config, str(tmp_path / field))
        assert len(trained) == count  # of two epochs each


def test_a_trial_that_diverges_fails_and_the_others_go_on(tmp_path):
    config = config_of()
    config.space.optimizer = {"learning_rate": (1e6, 0.01), "weight_decay": (1.0,)}
    config.space.batch_size = (120, 10**6)  # the data has fewer images, which data alone tells
    config.space.data = {"drop_last": (True,)}
    worker.run_search(config, str(tmp_path))
    rows = list(csv.DictReader((tmp_path / "ranking.csv").open()))
    states = [(row["state"], row["trials"]) for row in rows]
    assert states == [(DONE, "0001"), (FAILED, "0000"), (FAILED, "0002"), (FAILED, "0003")]
    trials = [json.loads(path.read_text()) for path in tmp_path.glob("trials/*/trial.json")]
    assert all(trial["seconds"] > 0 for trial in trials)  # a budget of hours ends


@pytest.mark.parametrize(
    "space",
    [
        {"optimizer": {"options": {"momentum": (0.0, 0.9), "nesterov": (True, False)}}},
        {"data": {"classes": ((0, 1), (0, 12))}},
    ],
)
def test_what_is_refused_ends_no_search_side_by_side(tmp_path, monkeypatch, space):
    trained, config = fake_training(monkeypatch), config_of()
    config.search.parallel_trials = 2
    config.seeds = (0, 1)
    config.space = space
    worker.run_search(config, str(tmp_path))
    assert len(trained) == (8 if "optimizer" in space else 4)


def test_points_are_ranked_where_test_images_can_not_be_read(tmp_path, monkeypatch):
    def fail(*_):
        raise UserError("they are gone")

    fake_training(monkeypatch)
    monkeypatch.setattr(worker, "evaluate_run", fail)
    with pytest.raises(UserError, match="they are gone"):
        worker.run_search(config_of(), str(tmp_path))
    assert len(list(csv.DictReader((tmp_path / "ranking.csv").open()))) == 4


def test_a_search_goes_on_with_the_same_images_alone(tmp_path, monkeypatch):
    fake_training(monkeypatch)
    worker.run_search(config_of(), str(tmp_path))
    opened = open_dataset(config_of().base.data)
    other = opened._replace(info=dataclasses.replace(opened.info, digest="other"))
    monkeypatch.setattr(settings, "open_dataset", lambda config: other)
    with pytest.raises(UserError, match=r"is of another search: images was .*, is 'other'"):
        worker.run_search(config_of(), str(tmp_path))


def test_a_search_whose_trials_all_diverge_says_so(tmp_path, capsys):
    rates = "--config.space.optimizer.learning_rate=(1000000.0,)"
    flags = [rates, "--config.space.optimizer.weight_decay=(1000.0,)"]
    assert run(tmp_path, *flags) == 2
    err = capsys.readouterr().err
    assert "no trial was completed; the first one: " in err and "is not finite" in err
    assert err.count("\n") == 1


def test_a_trial_that_fails_before_its_first_score_costs_what_it_trained(tmp_path):
    trial = Trial(0, {}, 0, 10, "")
    worker._complete(trial, tiny_run.get_config(), tmp_path, "best")
    assert (trial.epochs, trial.seconds) == (0, 0)
    write_records(tmp_path, "train", 0.5)
    worker._complete(trial, tiny_run.get_config(), tmp_path, "best")
    assert (trial.epochs, trial.seconds, trial.score) == (0.5, 1.5, None)


def test_a_budget_ends_where_every_trial_fails_at_once(tmp_path, monkeypatch):
    trained = fake_training(monkeypatch)

    def complete(trial, config, folder, metric):
        trial.state, trial.epochs = FAILED, 0.0

    monkeypatch.setattr(worker, "_complete", complete)
    config = config_of("random")
    config.search.trials, config.search.epochs = 0, 6
    with pytest.raises(UserError, match="no trial was completed"):
        worker.run_search(config, str(tmp_path))
    assert len(trained) == 5  # of two epochs each


def test_what_a_dead_worker_left_of_the_winner_is_not_scored(tmp_path, monkeypatch, capsys):
    fake_training(monkeypatch)
    monkeypatch.setattr(History, "add", lambda *_: None)  # another machine has the closing record
    worker.run_search(config_of(), str(tmp_path))
    assert "scored there" in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "ranking.csv").open()))
    assert not any(row["test"] for row in rows)


def test_another_search_is_refused(address, tmp_path, monkeypatch, capsys):
    fake_training(monkeypatch)
    flags = [f"--config.search.storage={address}"]
    assert run(tmp_path, *flags) == 0
    assert run(tmp_path, *flags, "--config.space.optimizer.weight_decay=(0.5,)") == 2
    assert "is of another search: space.optimizer.weight_decay was" in capsys.readouterr().err
    assert run(tmp_path, *flags, "--config.base.batch_size=60") == 2
    assert "base.batch_size was 120, is 60" in capsys.readouterr().err
    assert run(tmp_path, *flags, "--config.base.data.name=mnist") == 2
    assert "base.data.name was" in capsys.readouterr().err
    assert run(tmp_path, *flags, "--config.search.keep=best") == 0


def test_a_folder_that_is_not_a_search_is_refused(tmp_path, plain_run, capsys):
    assert run(plain_run[0]) == 2
    assert "holds a run" in capsys.readouterr().err
    (tmp_path / "trials" / "0000").mkdir(parents=True)
    for text in ("junk", '{"number": 0, "state": "done"}', '{"number": "x"}'):
        (tmp_path / "trials" / "0000" / "trial.json").write_text(text)
        assert run(tmp_path) == 2
        err = capsys.readouterr().err
        assert "is damaged; move it away" in err and err.count("\n") == 1


# Storages

HOLD = """
import sys, time
from resnet_jax.search.storage import open_storage
import pathlib
storage = open_storage(pathlib.Path(sys.argv[1]), sys.argv[2])
print(storage.lock(5), flush=True)
time.sleep(60)
"""


def test_a_lock_dies_with_its_process(address, tmp_path):
    command = [sys.executable, "-c", HOLD, tmp_path, address]
    storage = open_storage(tmp_path, address)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "True\n"
        assert not storage.lock(5) and storage.lock(6)
        other.kill()
    assert storage.lock(5, wait=True)
    storage.close()


def test_documents_are_replaced_whole(address, tmp_path):
    storage = open_storage(tmp_path, address)
    storage.write(3, {"number": 3, "point": {"a": [1, None, "\u00e9"]}})
    storage.write(3, {"number": 3, "point": {}})
    storage.write(SEARCH, {"number": SEARCH})
    assert storage.read() == {SEARCH: {"number": SEARCH}, 3: {"number": 3, "point": {}}}
    storage.close()


def test_a_dead_workers_trial_is_taken_over_first(address, tmp_path):
    config = config_of()
    config.search.storage = address
    study = Study(Search.of(config), tmp_path)
    assert [trial.number for trial in study.next()] == [0]
    study.close()  # as when its process ends
    other = Study(Search.of(config), tmp_path)
    (trial,) = other.next()
    assert trial.number == 0
    other.end(dataclasses.replace(trial, state=DONE, score=1.0))
    (following,) = other.next()
    other.close()
    assert following.number == 1


def test_a_living_workers_trial_is_left_to_it(tmp_path, monkeypatch):
    study = Study(Search.of(config_of()), tmp_path)
    assert [trial.number for trial in study.next()] == [0]
    lock = study._storage.lock
    others = lambda number, wait=False: number != 0 and lock(number, wait)  # noqa: E731
    monkeypatch.setattr(study._storage, "lock", others)  # as another worker sees it
    assert [trial.number for trial in study.next()] == [1]
    study.close()


def test_secrets_are_shown_nowhere(database, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["resnet-jax", f"--config.search.storage={database}"])
    with monkeypatch.context() as patch:
        tiny_run.interrupt(patch, 5, signal.SIGTERM)
        assert run(tmp_path, f"--config.search.storage={database}") == 128 + signal.SIGTERM
    assert run(tmp_path, f"--config.search.storage={database}x") == 2
    captured = capfd.readouterr()
    assert "postgresql://***@127.0.0.1" in captured.err and "postgresx" in captured.err
    everything = captured.out + captured.err
    for path in tmp_path.rglob("*"):
        everything += path.read_bytes().decode(errors="replace") if path.is_file() else ""
    assert search_storage.PASSWORD not in everything
    with psycopg.connect(database) as connection:
        rows = connection.execute("SELECT document::text FROM resnet_jax_search").fetchall()
    assert search_storage.PASSWORD not in str(rows)


@pytest.mark.parametrize(
    "address", ["postgresql://me:a/b@c@host/db", "postgresql://host/db?user=me&password=a%20b"]
)
def test_addresses_without_secrets(address):
    shown = without_secrets(f"resnet-jax --config.search.storage={address} --config.x=1")
    assert "a/b" not in shown and "a%20b" not in shown and "--config.x=1" in shown


# Optuna


def history(axes, settings, value, count):
    found = []
    for index in range(count):
        point = sampling.suggest(axes, settings, found, index)
        trial = Trial(index, point, 0, 1, "", DONE, score=value(point))
        found += standings([trial], 1)
    return found


@pytest.mark.parametrize("method", ["tpe", "cma-es"])
def test_samplers_learn_from_the_documents_alone(method):
    pytest.importorskip("optuna")
    pytest.importorskip("cmaes")
    axes = (
        Axis("optimizer.learning_rate", (), 1e-4, 1.0, log=True),
        Axis("loss.label_smoothing", (), 0.0, 0.5),
    )
    settings = ConfigDict({"method": method, "seed": 0, "pruner": "none"})

    def value(point):
        distance = np.log10(point["optimizer.learning_rate"]) + 2
        return 90 - distance**2 - 20 * (point["loss.label_smoothing"] - 0.1) ** 2

    found = history(axes, settings, value, 60)
    scores = [standing.mean() for standing in found]
    assert np.mean(scores[40:]) > np.mean(scores[:10]) + 0.5
    assert sampling.suggest(axes, settings, found[:20], 20) == found[20].point


def test_conditions_hold_for_what_cma_es_draws():
    pytest.importorskip("cmaes")
    axes = (
        Axis("num_epochs", (), 1, 3),
        Axis("batch_size", (), 10, 90),
        Axis("loss.label_smoothing", (0.1,), when={"num_epochs": (2,)}),
    )
    settings = ConfigDict({"method": "cma-es", "seed": 0, "pruner": "none"})
    points = [sampling.suggest(axes, settings, [], index) for index in range(30)]
    assert all(("loss.label_smoothing" in p) == (p["num_epochs"] == 2) for p in points)
    assert {2, 3} <= {p["num_epochs"] for p in points}


def test_a_workdir_that_can_not_be_made_is_refused_before_the_database_is_asked():
    with pytest.raises(UserError, match="--workdir /proc/x can't be written"):
        open_storage(pathlib.Path("/proc/x"), "postgresql://nowhere/x")


def test_the_median_pruner_gives_up_what_is_worse_than_the_others():
    pytest.importorskip("optuna")
    settings = ConfigDict({"method": "tpe", "seed": 0, "pruner": "median"})
    axes = (Axis("optimizer.learning_rate", (), 1e-4, 1.0),)
    trials = [
        Trial(n, {"optimizer.learning_rate": 0.1}, 0, 3, "", DONE, [[1, 50 + n], [2, 60]], 60.0)
        for n in range(5)
    ]
    for score, expected in ((40.0, True), (58.0, False)):
        running = Trial(5, {"optimizer.learning_rate": 0.2}, 0, 3, "", RUNNING, [[1, score]])
        found = standings([*trials, running], 1)
        assert sampling.is_pruned(axes, settings, found, 5) is expected


def test_hyperband_gives_up_what_the_others_of_a_bracket_have_passed():
    pytest.importorskip("optuna")
    settings = ConfigDict({"method": "tpe", "seed": 0, "pruner": "hyperband"})
    axes = (Axis("optimizer.learning_rate", (), 1e-4, 1.0),)
    point = {"optimizer.learning_rate": 0.1}
    trials = [
        Trial(n, point, 0, 9, "", DONE, [[epoch, 50 + n] for epoch in range(1, 10)], 50 + n)
        for n in range(12)
    ]

    def is_pruned(score):
        curves = ([[epoch, score] for epoch in range(1, last + 1)] for last in range(1, 9))
        return any(
            sampling.is_pruned(
                axes,
                settings,
                standings([*trials, Trial(12, point, 0, 9, "", RUNNING, curve)], 1),
                12,
            )
            for curve in curves
        )

    assert is_pruned(40.0) and not is_pruned(90.0)


def test_a_pruned_trial_ends_early_and_is_not_ranked(tmp_path, monkeypatch):
    pytest.importorskip("optuna")
    config = config_of()
    config.search.pruner = "median"
    config.space.optimizer.weight_decay = (1e-4,)
    monkeypatch.setattr(Study, "is_beaten", lambda self, trial: trial.number == 1)
    worker.run_search(config, str(tmp_path))
    rows = list(csv.DictReader((tmp_path / "ranking.csv").open()))
    assert [row["state"] for row in rows] == [DONE, PRUNED]
    assert rows[-1]["trials"] == "0001" and float(rows[-1]["epochs"]) == 1
    assert [row["rank"] for row in rows] == ["1", ""]


def test_the_journal_is_a_study_of_optuna(tmp_path, monkeypatch):
    optuna = pytest.importorskip("optuna")
    score = lambda config: 100 * config.optimizer.learning_rate  # noqa: E731
    fake_training(monkeypatch, score, drawn=True)
    config = config_of("tpe")
    worker.run_search(config, str(tmp_path))
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "optuna.journal"))
    study = optuna.load_study(study_name="search", storage=optuna.storages.JournalStorage(backend))
    assert len(study.trials) == 6
    for name in ("curves", "parallel", "importances"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert study.best_value == 100 * study.best_params["optimizer.learning_rate"]


def test_pruners_see_whole_epochs(tmp_path, monkeypatch):
    config, seen = config_of(), []
    config.space.optimizer = {"learning_rate": (0.01,), "weight_decay": (1e-4,)}
    config.base.evaluate.every_steps = 1
    look = lambda self, trial: seen.append([epoch for epoch, _ in trial.curve])  # noqa: E731
    monkeypatch.setattr(Study, "is_beaten", look)
    worker.run_search(config, str(tmp_path))
    assert seen == [[1]]  # of two epochs of four steps


@pytest.mark.slow
def test_two_workers_and_fifty_kills_lose_nothing(address, tmp_path):
    """Each point is there once at the end, with the scores of a search that nothing disturbed."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    seeds = tuple(range(10))

    def start(name, storage):
        flags = [f"--workdir={tmp_path / name}", f"--config.search.storage={storage}"]
        flags += [f"--config.seeds={seeds}", "--config.base.checkpoint.every_steps=1"]
        command = [sys.executable, "-m", "resnet_jax.main", "--mode=search", CONFIG, *flags]
        return subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL)

    def ends(name, storage):
        config = config_of()
        config.seeds, config.base.checkpoint.every_steps = seeds, 1
        config.search.storage = storage
        with contextlib.closing(Study(Search.of(config), tmp_path / name)) as study:
            return [(t.number, t.point, t.seed, t.state, t.score) for t in study.trials()]

    assert start("calm", "").wait() == 0
    calm, draw, kills = ends("calm", ""), np.random.default_rng(0), 0
    while kills < 50:
        name = f"killed after {kills}"
        if address:
            with psycopg.connect(address, autocommit=True) as connection:
                connection.execute("DROP TABLE IF EXISTS resnet_jax_search")
        workers = [start(name, address), start(name, address)]
        while len(workers) > 1:  # one has ended by itself: nothing is left to be done
            victim = workers[draw.integers(2)]
            with contextlib.suppress(subprocess.TimeoutExpired):
                assert victim.wait(timeout=draw.uniform(1, 9)) == 0
                workers.remove(victim)
                continue
            victim.kill()
            victim.wait()
            kills += 1
            workers[workers.index(victim)] = start(name, address)
        assert workers[0].wait() == 0
        assert ends(name, address) == calm
