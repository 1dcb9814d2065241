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


def test_options_of_other_modes_are_refused(tmp_path, capsys):
    flags = f"--config={tiny_run.CONFIG_FILE}", f"--workdir={tmp_path / 'run'}"
    for flag, mode in (("--cam", "predict"), ("--top=3", "predict"), ("--output=x", "export")):
        assert main.main(["resnet-jax", *flags, flag]) == 2
        assert f"is for --mode={mode} only" in capsys.readouterr().err
