"""The records of finished runs, and the tables that are made of them."""

import hashlib
import json
import re
import shutil

import pytest
import reproduce
import results_table
from studies import ROWS

from resnet_jax.errors import UserError
from resnet_jax.search import sampling

SEARCHES = [row for row in ROWS if row.config.startswith("search/")]
PLAIN = [row for row in ROWS if row not in SEARCHES and (row.reported or " " not in row.config)]


@pytest.fixture
def row(plain_run, monkeypatch, tmp_path):
    """The config of the run, as if it were that of a row; records go to a folder of their own."""
    config = reproduce.workdir.read_run(plain_run[0])[0]
    monkeypatch.setattr(results_table, "loaded", lambda name: (config, 1))
    monkeypatch.setattr(reproduce, "BETTER", ("tiny_run.py --config.num_epochs=3",))
    monkeypatch.setattr(reproduce, "RESULTS", tmp_path)
    return config


def test_a_record_has_the_closing_record_and_the_scores_of_its_run(plain_run, row, monkeypatch):
    folder, final, _ = plain_run
    path = reproduce.keep(folder, "tiny_run.py --config.num_epochs=3")
    assert path.name == "tiny_run-num_epochs=3-seed0.json"
    record = json.loads(path.read_text())
    assert record["final"] == final and len(record["scores"]) == 3
    assert record["config"] == "tiny_run.py" and record["seed"] == 0
    assert record["overrides"] == ["--config.num_epochs=3"]
    assert "/" not in json.dumps(record["settings"])
    monkeypatch.setattr(reproduce, "_tables", dict)
    assert reproduce.check() == []
    row.optimizer.learning_rate *= 2
    assert "is of another optimizer.learning_rate than tiny_run.py" in reproduce.check()[0]


def test_a_record_is_of_a_run_of_its_row(plain_run, row):
    with pytest.raises(UserError, match="unknown config of a row"):
        reproduce.keep(plain_run[0], "tiny_run.py")
    row.seed, row.log.tensorboard = 7, not row.log.tensorboard
    reproduce.keep(plain_run[0], "tiny_run.py --config.num_epochs=3")
    row.optimizer.options = {}
    with pytest.raises(UserError, match=r"none of .*: optimizer.options.momentum differs"):
        reproduce.keep(plain_run[0], "tiny_run.py --config.num_epochs=3")


@pytest.fixture(autouse=True)
def networks(request, monkeypatch):
    """The layers of all studies' models are counted once, also between sessions."""
    package = reproduce.ROOT / "resnet_jax"
    sources = [*sorted((package / "models").glob("*.py")), package / "report" / "summary.py"]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    known, count = request.config.cache.get(f"networks/{digest}", {}), results_table._network

    def network(*task):
        if repr(task) not in known:
            known[repr(task)] = count(*task)
        return known[repr(task)]

    monkeypatch.setattr(results_table, "_network", network)
    yield
    request.config.cache.set(f"networks/{digest}", known)


def test_the_tables_are_those_of_the_records(monkeypatch):
    # Nothing that a search needs to run is needed to tell of it.
    monkeypatch.setattr(sampling, "is_installed", lambda name: False)
    results_table.loaded.cache_clear()
    assert reproduce.main(["--check"]) == 0


def test_a_missing_record_is_noticed(tmp_path, monkeypatch, capsys):
    shutil.copytree(reproduce.RESULTS, tmp_path, dirs_exist_ok=True)
    (tmp_path / "quickstart-model.dtype=float32-seed0.json").unlink()
    monkeypatch.setattr(reproduce, "RESULTS", tmp_path)
    assert reproduce.main(["--check"]) == 1
    assert "results/README.md is not what the records say" in capsys.readouterr().out


def test_every_record_of_a_run_is_in_a_row():
    configs = {row.config for row in ROWS} | {row.better for row in ROWS}
    for path in reproduce.RESULTS.glob("*-seed*.json"):
        record = json.loads(path.read_text())
        if "config" in record:
            config = " ".join([record["config"], *record["overrides"]])
            assert config in configs, path.name
            assert results_table.record_name(config, record["seed"]) == path.name


@pytest.mark.parametrize("row", PLAIN, ids=lambda row: row.name)
def test_a_row_reports_what_its_config_does(row):
    config = results_table.loaded(row.config)[0]
    figures = [float(figure) for figure in re.findall(r"\d+\.?\d*", row.reported)]
    assert config.reported_accuracy in (figures or [0.0])
    if row.better:
        assert results_table.loaded(row.better)[0].model.name == config.model.name


@pytest.fixture
def started(monkeypatch, tmp_path):
    """Returns the command lines of the runs that are started; they succeed at once."""
    commands = []

    class Process:
        returncode = 0

        def __init__(self, command, cwd, process_group):
            commands.append(command)

        def wait(self, seconds=None):
            pass

    monkeypatch.setattr(reproduce.subprocess, "Popen", Process)
    monkeypatch.setattr(reproduce, "RESULTS", tmp_path)
    monkeypatch.setattr(reproduce, "write_tables", lambda: None)

    def keep(folder, config):
        path = tmp_path / f"{folder.name}.{'csv' if 'search' in config else 'json'}"
        path.touch()
        return path

    monkeypatch.setattr(reproduce, "keep", keep)
    monkeypatch.setattr(reproduce, "ROOT", tmp_path)
    return commands


def test_flags_that_make_another_run_are_refused(started, capsys):
    assert reproduce.main(["--rows", "R1.c", "--config.num_epochs=1"]) == 2
    assert "other runs than those of the rows" in capsys.readouterr().err
    assert not started


def test_rows_run_once_all_with_one_seed_before_the_next(started):
    rows = "R5.10_epochs,R1.c,R1.b"  # the first is a search, which comes last
    arguments = ["--rows", rows, "--better", "--seeds", "2", "--config.data.dir=D"]
    assert reproduce.main(arguments) == 0
    assert "--mode=search" in started[-1]
    runs = [[part for part in command if part.startswith("--")] for command in started[:-1]]
    names = [run[0].rpartition("/")[2] for run in runs]
    assert names == ["resnet_small.py", "resnet_small.py:sgd", "resnet_small.py:better"] * 2
    assert [run[1] for run in runs] == ["--config.seed=0"] * 3 + ["--config.seed=1"] * 3
    assert all("--config.data.dir=D" in run for run in runs)
    reproduce.main(arguments)
    assert len(started) == 7


def test_a_search_runs_once(started):
    arguments = ["--rows", "R5.10_epochs", "--seeds", "2", "--config.data.dir=D"]
    assert reproduce.main(arguments) == 0
    (command,) = started
    assert "--mode=search" in command and "--config.base.num_epochs=10" in command
    assert "--config.base.data.dir=D" in command


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "R1.x"], "did you mean R1"),
        (["--all", "--budget", "soon"], "--budget takes a time such as 2h"),
        (["--all", "--seed", "3"], "unexpected argument"),
        (["--record", "nowhere", "cnn.py"], "nowhere"),
        (["--record", "nowhere", "search/r1_grid.py"], "nowhere is not finished"),
    ],
)
def test_bad_arguments_are_one_line(arguments, message, capsys):
    assert reproduce.main(arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0]
