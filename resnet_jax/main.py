"""The command line.

  python -m resnet_jax.main --config=FILE[:VARIANT] [--workdir=DIR] [--config.FIELD=VALUE ...]
  python -m resnet_jax.main --mode=eval --workdir=DIR
  python -m resnet_jax.main --mode=predict --workdir=DIR IMAGE [IMAGE ...]
  python -m resnet_jax.main --mode=summary --config=FILE
  python -m resnet_jax.main --mode=export --workdir=DIR --output=FILE
  python -m resnet_jax.main --mode=search --config=FILE --workdir=DIR [--config.base.FIELD=VALUE]
  python -m resnet_jax.main --list=models|configs|datasets|fields|optimizers|schedules

modes
  train     train the config's model, or resume: the same command again goes on where it stopped
  eval      score a run's newest and best checkpoints on all test images
  predict   classify images from files with the best checkpoint
  summary   print the model's layers, shapes, parameters and multiply-accumulates, and a
            plot of the learning rate
  export    write a run's best checkpoint for PyTorch, as .safetensors
  search    train and rank what a search config lists; more processes share or resume the work

flags
  --config          a file, or the name of one of configs/ (resnet_v2); after a colon, a variant
  --config.FIELD    replaces a field, as in --config.optimizer.learning_rate=0.05
  --workdir         the folder of the run; default: runs/<config>-<overrides>-seed<seed>
  --mode            one of the above; default: train
"""

import contextlib
import hashlib
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict

from resnet_jax.config import load as config_lib
from resnet_jax.config.flags import override, override_search
from resnet_jax.errors import Interrupted, UserError, unknown, without_secrets

# Those that take a run as it is, and what they take beside it.
_RUN_MODES = {"eval": "nothing else", "predict": "image files", "export": "--output=FILE"}

_COMPUTING_MODES = ("train", "eval", "predict", "search")


def main(arguments: Sequence[str]) -> int:
    """Runs the command line.

    Args:
      arguments: the program's name and its arguments.

    Returns:
      The exit status: 0; 2 for what the user can mend; 128 + n after signal n.
    """
    if len(arguments) < 2 or any(a in ("-h", "--help", "-help", "--helpfull") for a in arguments):
        print(__doc__)
        return 0
    # XLA's own log would complain of every program that comes from the cache of compiled programs
    # (openxla issue 44565); its errors are raised as exceptions too. It is read on import of jax.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        _run_mode(_parse(arguments))
    except UserError as error:
        line = " ".join(str(error).split())  # libraries and config files may break their messages
        print(f"error: {without_secrets(line)}", file=sys.stderr)
        return 2
    except Interrupted as error:
        return _interrupted(str(error), error.signal_number, arguments)
    except BrokenPipeError:  # who reads the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        return _interrupted("stopped before the first step", signal.SIGINT, arguments)
    return 0


def _interrupted(what: str, signal_number: int, arguments: Sequence[str]) -> int:
    program = os.path.basename(arguments[0])
    command = "python -m resnet_jax.main" if program == "main.py" else program
    again = without_secrets(f"{command} {shlex.join(arguments[1:])}")
    # Unlike print, this can be called while another print is under way.
    os.write(2, f"{what}; the same command again resumes:\n  {again}\n".encode())
    return 128 + signal_number


def run() -> None:
    """Runs the command line of this process; the console script `resnet-jax`."""
    # An exception could be swallowed by a library that is calling back. Before the first step and
    # after the last one there is nothing to save: training handles signals itself in between.
    arguments = [*sys.argv]  # while a config file runs, the first of them is its name

    def end(signal_number: int, frame: Any) -> None:
        os._exit(_interrupted("stopped", signal_number, arguments))

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    sys.exit(main(arguments))


def _run_mode(settings: "_Settings") -> None:
    # jax takes a second to import: only here, when the command line is known to be good.
    import jax

    from resnet_jax import cpu, platform

    config = settings.config
    if config.get("base", config).get("deterministic"):
        platform.request_determinism()
    platform.keep_freed_memory()
    platform.enable_cache()
    platform.quieten_libraries()
    if settings.mode in _COMPUTING_MODES and jax.default_backend() == "cpu":
        cpu.enable()
    with platform.memory_errors():
        (_list if settings.listed else _ACTIONS[settings.mode])(settings)


def _list(settings: "_Settings") -> None:
    from resnet_jax.report.listing import format_list

    print(format_list(settings.listed))


def _train(settings: "_Settings") -> None:
    from resnet_jax.training.loop import train_and_evaluate

    train_and_evaluate(settings.config, settings.workdir, signals=stop_signals())


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Yields a list that SIGINT or SIGTERM fills; a second signal ends the process at once."""
    received: list[int] = []

    def handle(number: int, frame: Any) -> None:
        if received:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        received.append(number)
        os.write(2, b"\nstopping after this step; a second signal stops at once\n")

    old = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _summarise(settings: "_Settings") -> None:
    from resnet_jax.data.registry import open_dataset
    from resnet_jax.platform import compute_dtype
    from resnet_jax.report.summary import format_model, format_schedule
    from resnet_jax.training.task import create_task

    config = settings.config
    config.model.dtype = compute_dtype(config.model.dtype)
    task = create_task(config, open_dataset(config.data).info)
    print(format_model(task.network.module, task.input_shape, config.optimizer.frozen))
    print(f"\nlearning rate, {config.schedule.name}")
    print(format_schedule(task.learning_rates, config.num_epochs))


def _search(settings: "_Settings") -> None:
    from resnet_jax.search.worker import run_search

    run_search(settings.config, settings.workdir, signals=stop_signals())


def _export(settings: "_Settings") -> None:
    from resnet_jax.inference.export import export_torch

    export_torch(settings.workdir, settings.output)
    print(f"wrote {settings.output}")


def _evaluate(settings: "_Settings") -> None:
    from resnet_jax.inference.evaluate import evaluate_run
    from resnet_jax.runs.terminal import Terminal

    for which in ("newest", "best"):
        with contextlib.closing(Terminal()) as terminal:
            score = evaluate_run(settings.workdir, which, progress=terminal.bar)
        print(
            f"{which:8}checkpoint, step {score['step']:,}: test accuracy "
            f"{score['accuracy']:.2f} %, loss {score['loss']:.4f}, on {score['count']:,} images"
        )


def _predict(settings: "_Settings") -> None:
    from resnet_jax.inference.predict import predict

    for found in predict(settings.workdir, settings.images):
        path = found.path if found.path.isprintable() else repr(found.path)
        ranking = zip(found.class_names[:3], found.probabilities, strict=False)
        print(f"{path}: {', '.join(f'{name} {100 * share:.2f} %' for name, share in ranking)}")


class _Settings(NamedTuple):
    """What the command line asks for."""

    mode: str
    workdir: str
    config: ConfigDict
    output: str = ""
    images: Sequence[str] = ()
    listed: str = ""


_ACTIONS: dict[str, Callable[[_Settings], None]] = {
    "train": _train,
    "eval": _evaluate,
    "predict": _predict,
    "summary": _summarise,
    "export": _export,
    "search": _search,
}


def _parse(arguments: Sequence[str]) -> _Settings:
    """Returns what the command line asks for, or raises UserError."""
    values = flags.FlagValues()
    values.set_gnu_getopt(True)
    for name in ("config", "workdir", "mode", "output", "list"):
        flags.DEFINE_string(name, "train" if name == "mode" else "", "", flag_values=values)
    try:
        rest = values(arguments, known_only=True)
    except flags.Error as error:
        raise UserError(f"{error}; see --help") from None
    for name in values:
        if values[name].present > 1:
            raise UserError(f"--{name} is given {values[name].present} times")
    if values.list:
        if rest[1:] or [name for name in values if values[name].present] != ["list"]:
            raise UserError("--list takes nothing else; see --help")
        return _Settings("list", "", ConfigDict(), listed=values.list)
    if values.mode not in _ACTIONS:
        raise unknown("--mode", values.mode, _ACTIONS)
    if values.mode in _RUN_MODES:
        return _parse_run_mode(values, rest[1:])
    if values.output:
        raise UserError("--output is for --mode=export only")
    if not values.config:
        raise UserError("--config is missing, such as --config=resnet_v2; see --help")
    config = config_lib.load(values.config)
    if values.mode == "search":
        return _parse_search(values, config, rest)
    if "base" in config:
        raise UserError(f"--config {values.config} is that of a search: add --mode=search")
    named = config.copy_and_resolve_references()
    config = config_lib.validate(override(config, rest))
    workdir = values.workdir or _default_workdir(values.config, named, config)
    return _Settings(values.mode, workdir, config)


def _default_workdir(path: str, named: ConfigDict, config: ConfigDict) -> str:
    """Returns the folder of a run, named by its config and by what flags changed of it."""
    changed = [
        f"{field}={','.join(map(str, value)) if isinstance(value, list) else value}"
        for field, (_, value) in config_lib.changes(named, config).items()
        if field != "seed"
    ]
    wanted = "-".join([path.rsplit("/", 1)[-1].replace(".py", "").replace(":", "-"), *changed])
    name = re.sub(r"[^\w.,=+-]+", "_", wanted, flags=re.ASCII)[:150]
    if name != wanted:  # two that differ in what is lost must not share a folder
        name += f"-{hashlib.sha256(wanted.encode()).hexdigest()[:8]}"
    return f"runs/{name}-seed{config.seed}"


def _parse_run_mode(values: flags.FlagValues, files: list[str]) -> _Settings:
    """Returns what the command line asks of a run that there is."""
    mode, names = values.mode, [path for path in files if not path.startswith("-")]
    is_fine = {
        "eval": not files and not values.output,
        "predict": bool(files) and files == names and not values.output,
        "export": not files and bool(values.output),
    }
    if not values.workdir or values.config or not is_fine[mode]:
        takes = f"--mode={mode} takes --workdir, the folder of a run, and {_RUN_MODES[mode]}"
        raise UserError(f"{takes}; see --help")
    return _Settings(mode, values.workdir, ConfigDict(), values.output, names)


def _parse_search(values: flags.FlagValues, config: ConfigDict, rest: list[str]) -> _Settings:
    """Returns what the command line asks of a search: its config, with that of its base in it."""
    if "base" not in config:
        raise UserError(f"--config {values.config} is that of a run: --mode=search takes a search")
    if not values.workdir:
        raise UserError("--mode=search needs --workdir, the folder of the search")
    return _Settings("search", values.workdir, override_search(config, rest))


if __name__ == "__main__":
    run()
