"""The script that trains one config with many seeds."""

import functools
import json

import numpy as np
import pytest
import speedrun
import tiny_run

SPEC = f"--config={tiny_run.CONFIG_FILE}:speedrun"


@pytest.fixture
def run(run_script):
    return functools.partial(run_script, speedrun)


def test_runs_are_trainings_of_their_seeds(run, speedrun_run, tmp_path, monkeypatch):
    functions = []
    original = speedrun.Runner.run

    def watched(self, seed):
        result = original(self, seed)
        functions.append((self._start, self._task.steps._train, self._task.steps._score))
        return result

    monkeypatch.setattr(speedrun.Runner, "run", watched)
    file = tmp_path / "runs.json"
    status, out, err = run(SPEC, "--seeds=3", f"--json={file}", "--config.evaluate.split=test")
    assert (status, err) == (0, "")
    assert len(functions) == 3
    assert all(f._cache_size() == 1 for f in functions[-1])  # compiled once for all seeds

    result = json.loads(file.read_text())
    runs = result["runs"]
    assert [r["seed"] for r in runs] == [0, 1, 2]
    # The first one is what main trains by this config, apart from rounding of the first weights.
    assert abs(runs[0]["loss"] - speedrun_run[1]["test_loss"]) < 0.02
    assert len({r["loss"] for r in runs}) == 3
    accuracies = [r["accuracy"] for r in runs]
    summary = result["accuracy"]
    np.testing.assert_allclose(summary["mean"], np.mean(accuracies))
    np.testing.assert_allclose(summary["std"], np.std(accuracies, ddof=1))
    np.testing.assert_allclose(summary["interval"], 1.96 * np.std(accuracies, ddof=1) / 3**0.5)
    assert (summary["min"], summary["max"]) == (min(accuracies), max(accuracies))
    assert all(r["seconds"] > 0 for r in runs)
    assert result["settings"]["evaluate"]["split"] == "test"
    assert {"commit", "jax", "devices", "command"} <= result["provenance"].keys()

    lines = out.splitlines()
    assert [line.split()[:2] for line in lines[-6:-3]] == [["seed", str(s)] for s in range(3)]
    assert f"{accuracies[1]:.2f} %" in lines[-5]
    assert lines[-2].startswith(f"accuracy mean {np.mean(accuracies):.3f} +- ")
    assert lines[-1].startswith("time")


def test_one_seed_has_no_deviation():
    assert speedrun.summarize([5.0]) == {"mean": 5, "std": 0, "interval": 0, "min": 5, "max": 5}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((SPEC, "--seeds=0"), "--seeds must be at least 1, not 0"),
        (("--config=configs/speedrun49.py",), "does not exist"),
        ((SPEC, "--config.nmu_epochs=2"), "did you mean num_epochs"),
        ((SPEC, "--sedes=2"), "sedes"),
        ((SPEC, "--json=/nowhere/a.json"), "--json /nowhere/a.json can't be written"),
        ((f"--config={tiny_run.CONFIG_FILE}:rich",), "evaluate.patience is 5"),
        ((SPEC, "--config.optimizer.learning_rate=1e6"), "is not finite at step"),
    ],
)
def test_bad_input_is_one_clear_line(run, flags, message):
    status, _, err = run(*flags)
    assert status == 2
    assert err.startswith("error: ") and err.count("\n") == 1
    assert message in err
