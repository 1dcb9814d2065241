"""scripts/quickstart.sh with a false Python: what it fetches, and which run it trains."""

import pathlib
import shutil
import subprocess

SCRIPTS = pathlib.Path(__file__).parent.parent / "scripts"
PYTHON = '#!/bin/sh\necho "$@" >>calls\ncase $1 in scripts/*) exit ${FETCHED:-0} ;; esac\n'
TRAIN = "-m resnet_jax.main --config=configs/quickstart.py --workdir=runs/"


def test_a_finished_run_is_kept_and_without_data_it_trains_on_the_sample(
    tmp_path, plain_run, monkeypatch
):
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(PYTHON)
    python.chmod(0o755)
    (tmp_path / "scripts").mkdir()
    for name in ("quickstart.sh", "environment.sh"):
        shutil.copy(SCRIPTS / name, tmp_path / "scripts")
    stamp = ": >pyproject.toml; : >constraints.txt; printf '' | cksum >.venv/installedcpureport"
    subprocess.run(stamp, shell=True, cwd=tmp_path, check=True)

    def calls(fetched, *flags):
        monkeypatch.setenv("FETCHED", str(fetched))
        (tmp_path / "calls").unlink(missing_ok=True)
        command = ["bash", "scripts/quickstart.sh", *flags]
        status = subprocess.run(command, cwd=tmp_path, capture_output=True).returncode
        return status, (tmp_path / "calls").read_text().splitlines()

    fetch = "scripts/fetch_cifar10.py"
    assert calls(0, "--config.seed=1") == (0, [fetch, f"{TRAIN}quickstart --config.seed=1"])
    assert calls(130) == (130, [fetch])
    shutil.copytree(plain_run[0], tmp_path / "runs" / "quickstart")
    where = "--config.data.dir=D"
    trained = f"{TRAIN}quickstart-2 --config.data.name=sample {where}"
    assert calls(2, where) == (0, [f"{fetch} --dir D", trained])
