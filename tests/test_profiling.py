"""A profile is written beside a run, which stays as it is."""

import tiny_run

from resnet_jax import main


def test_mode_profile(plain_run, tmp_path, capsys):
    before = tiny_run.records(plain_run[0])
    assert main.main(["resnet-jax", "--mode=profile", f"--workdir={plain_run[0]}"]) == 0
    out = capsys.readouterr().out
    (trace,) = (plain_run[0] / "profile").rglob("*.trace.json.gz")
    assert f"xprof --logdir={plain_run[0]}/profile" in out
    assert str(trace) in out
    assert tiny_run.records(plain_run[0]) == before
    assert main.main(["resnet-jax", "--mode=profile", f"--workdir={tmp_path}"]) == 2
    assert "holds no checkpoint of a run" in capsys.readouterr().err
