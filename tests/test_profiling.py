"""A profile is written beside a run, which stays as it is."""

import shutil

import tiny_run

from resnet_jax import main


def test_mode_profile(plain_run, tmp_path, capsys):
    run = shutil.copytree(plain_run[0], tmp_path / "run")
    before = tiny_run.records(run)
    assert main.main(["resnet-jax", "--mode=profile", f"--workdir={run}"]) == 0
    out = capsys.readouterr().out
    (trace,) = (run / "profile").rglob("*.trace.json.gz")
    assert f"xprof --logdir={run}/profile" in out
    assert str(trace) in out
    assert tiny_run.records(run) == before
    assert main.main(["resnet-jax", "--mode=profile", f"--workdir={tmp_path}"]) == 2
    assert "holds no checkpoint of a run" in capsys.readouterr().err
