"""Several processes that train one model: on real ones, over loopback."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
import tiny_run
from launch_local import launch

from resnet_jax import hosts, main
from resnet_jax.errors import UserError

TRAIN = [sys.executable, "-m", "resnet_jax.main"]
CONFIG = [
    f"--config={tiny_run.CONFIG_FILE}",
    *("--config.num_epochs=8", "--config.evaluate.every_epochs=4"),
]
STREAMED = "--config.data.resident_bytes=0"
LOST = "error: another process of this training has ended or is out of reach"


def one_device_each():
    """Returns the environment of processes that have one device, whatever this one simulates."""
    simulated = r"--xla_force_host_platform_device_count=\d+"
    return os.environ | {"XLA_FLAGS": re.sub(simulated, "", os.environ.get("XLA_FLAGS", ""))}


def start_both(workdir, *flags, seeds=(0, 0)):
    """Starts two processes of a training."""
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        address = f"--coordinator=localhost:{taken.getsockname()[1]}"
    place = [address, "--num_processes=2", f"--workdir={workdir}"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = one_device_each()
    return [
        subprocess.Popen(
            [*TRAIN, *CONFIG, *place, f"--process_id={index}", f"--config.seed={seed}", *flags],
            start_new_session=True,
            env=environment,
            **pipes,
        )
        for index, seed in enumerate(seeds)
    ]


def ends(processes, timeout=120):
    """Returns status, standard output and standard error of each."""
    try:
        found = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()  # of one that has ended: nothing
    return [(process.returncode, *texts) for process, texts in zip(processes, found, strict=True)]


def wait_for_checkpoint(workdir, processes):
    while not any(p.name.isdigit() for p in (workdir / "checkpoints").glob("*")):
        assert all(process.poll() is None for process in processes), "one ended before it saved"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The folder of a training by two processes, and what both printed."""
    workdir = tmp_path_factory.mktemp("hosts") / "run"
    return workdir, ends(start_both(workdir, STREAMED))


def test_the_first_process_alone_prints_and_records(undisturbed):
    workdir, ((status, out, _), (other_status, other_out, other_err)) = undisturbed
    assert (status, other_status) == (0, 0)
    assert "device  2 x cpu in 2 processes" in out
    assert "final   test accuracy" in out
    assert (other_out, other_err) == ("", "")
    (start,) = map(json.loads, (workdir / "starts.jsonl").read_text().splitlines())
    assert (start["processes"], start["devices"]) == (2, ["cpu", "cpu"])


def test_two_processes_train_as_one_does(undisturbed, plain_run):
    together, alone = (
        [record["loss"] for record in tiny_run.records(workdir) if record["kind"] == "train"]
        for workdir in (undisturbed[0], plain_run[0])
    )
    assert together[:3] == pytest.approx(alone, rel=1e-4)


def test_one_process_goes_on_from_a_checkpoint_of_two(undisturbed, tmp_path, capsys):
    workdir = shutil.copytree(undisturbed[0], tmp_path / "run")
    longer = [*CONFIG, STREAMED, "--config.num_epochs=9", f"--workdir={workdir}"]
    assert main.main(["resnet-jax", *longer]) == 0
    out = capsys.readouterr().out
    assert "cpu, jax" in out and "resuming after step 32" in out


def test_a_signal_to_one_stops_both_and_they_resume(undisturbed, tmp_path):
    workdir = tmp_path / "run"
    processes = start_both(workdir, STREAMED)
    wait_for_checkpoint(workdir, processes)
    processes[1].send_signal(signal.SIGTERM)
    for status, _, err in ends(processes):
        assert status == 128 + signal.SIGTERM
        assert "which is saved; the same command again resumes" in err
    resumes_to_the_end(workdir, STREAMED)
    assert tiny_run.arrays(workdir) == tiny_run.arrays(undisturbed[0])
    assert tiny_run.records(workdir) == tiny_run.records(undisturbed[0])


@pytest.mark.slow
def test_the_death_of_one_ends_both_and_they_resume(undisturbed, tmp_path):
    workdir = tmp_path / "run"
    processes = start_both(workdir)  # the images are resident
    wait_for_checkpoint(workdir, processes)
    processes[1].kill()
    (status, _, err), _ = ends(processes, timeout=30)
    assert status == 1
    assert [line[: len(LOST)] for line in err.splitlines()] == [LOST]
    resumes_to_the_end(workdir)
    found, expected = (tiny_run.records(folder)[-1] for folder in (workdir, undisturbed[0]))
    assert found["test_loss"] == pytest.approx(expected["test_loss"], rel=1e-2)  # rounded otherwise


def resumes_to_the_end(workdir, *flags):
    (status, out, err), _ = ends(start_both(workdir, *flags))
    assert status == 0, err
    assert "resuming after step" in out


@pytest.mark.slow  # the first process waits for twenty seconds
def test_an_error_of_one_ends_the_other(tmp_path):
    (status, *_), (other, _, err) = ends(start_both(tmp_path / "run", seeds=(0, 5)))
    assert (status, other) == (1, 2)
    assert err.startswith("error: the first process has another config: seed is 0, here 5")


def test_launching_fails_unless_all_join(capfd):
    assert launch([sys.executable, "-c", "print('alone')"], 2) == 1
    assert "process 0, 1 never joined" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("flags", "environment", "found"),
    [
        ((), {}, None),
        (("host:1", 4, 0), {}, ("host:1", 4, 0)),
        ((), {"JAX_COORDINATOR_ADDRESS": "host:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"},
         ("host:1", 2, 1)),
        (("host:1", 2), {"JAX_PROCESS_ID": "0"}, ("host:1", 2, 0)),
        ((), {"SLURM_STEP_NUM_TASKS": "8"}, (None, None, None)),
        ((), {"SLURM_STEP_NUM_TASKS": "1"}, None),
        ((), {"OMPI_COMM_WORLD_SIZE": "2"}, (None, None, None)),
    ],
)  # fmt: skip
def test_the_place_of_a_process_is_found(flags, environment, found):
    assert hosts.find_place(*flags, environment=environment) == found


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("host:1", 2), "--process_id is missing, as is .* JAX_PROCESS_ID"),
        (("host", 2, 0), "--coordinator .* take HOST:PORT and two numbers, not host 2 0"),
        (("1234", 2, 1), "take HOST:PORT and two numbers, not 1234 2 1"),
        (("", 2, 1), "--coordinator is missing|take HOST:PORT and two numbers"),
        (("host:1", 2, 2), "--process_id counts from 0: it must be less than 2"),
    ],
)
def test_a_place_that_makes_no_sense_is_refused(flags, message):
    with pytest.raises(UserError, match=message):
        hosts.find_place(*flags, environment={})
