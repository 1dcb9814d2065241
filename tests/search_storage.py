"""What tests of searches share: a search of seconds, and a PostgreSQL server of their own."""

import contextlib
import os
import pathlib
import pwd
import shutil
import socket
import subprocess
import tempfile

from resnet_jax.config import default_search

CONFIG_FILE = pathlib.Path(__file__)
PASSWORD = "open-sesame"


def get_config(variant="grid"):
    config = default_search()
    config.base = f"{CONFIG_FILE.with_name('tiny_run.py')}:plain"
    config.space = {
        "num_epochs": (2,),
        "log": {"tensorboard": (False,)},
        "optimizer": {"learning_rate": (0.01, 0.1), "weight_decay": (1e-4, 1e-3)},
    }
    if variant != "grid":
        config.search.method = variant
        config.search.trials = 6
        config.space.optimizer = {
            "learning_rate": {"low": 1e-3, "high": 0.5, "log": True},
            "weight_decay": {"low": 1e-5, "high": 1e-2, "log": True},
        }
    return config


def postgres_programs():
    """Returns the folder of the server's programs; None: there are none."""
    folders = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin"))
    found = shutil.which("initdb")
    return folders[-1] if folders else pathlib.Path(found).parent if found else None


def server_user():
    """Returns the user that may run the server, which root may not; None: there is none."""
    if os.geteuid():
        return pwd.getpwuid(os.geteuid()).pw_name
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else None


@contextlib.contextmanager
def postgres_server():
    """Runs a server; gives the address of one database on it, with a password."""
    programs, user = postgres_programs(), server_user()
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        data, password = os.path.join(folder, "data"), os.path.join(folder, "password")
        pathlib.Path(password).write_text(PASSWORD)
        for path in (folder, password):
            shutil.chown(path, user)
        flags = [
            f"--pgdata={data}",
            "--username=owner",
            f"--pwfile={password}",
            "--auth=scram-sha-256",
            "--no-sync",
            "--locale=C",
            "--encoding=UTF8",
        ]
        options = {"user": user} if not os.geteuid() else {}
        options |= {"cwd": folder, "check": True, "stdout": subprocess.DEVNULL}
        subprocess.run([programs / "initdb", *flags], **options)
        serve = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        control, log = [programs / "pg_ctl", "-D", data], os.path.join(folder, "log")
        subprocess.run([*control, "-w", "-l", log, "-o", serve, "start"], **options)
        try:
            yield f"postgresql://owner:{PASSWORD}@127.0.0.1:{port}/postgres"
        finally:
            subprocess.run([*control, "-m", "fast", "stop"], **options)
