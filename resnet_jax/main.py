"""The command line.

  python -m resnet_jax.main --config=FILE[:VARIANT] [--workdir=DIR] [--config.FIELD=VALUE ...]
  python -m resnet_jax.main --mode=predict --workdir=DIR|--weights=NAME IMAGE|FOLDER|PATTERN|-
  python -m resnet_jax.main --mode=eval|profile|report --workdir=DIR [DIR ... of a report]
  python -m resnet_jax.main --mode=summary|profile --config=FILE
  python -m resnet_jax.main --mode=export --workdir=DIR --output=FILE
  python -m resnet_jax.main --mode=search --config=FILE --workdir=DIR [--config.base.FIELD=VALUE]
  python -m resnet_jax.main --list=models|configs|datasets|fields|optimizers|schedules|weights

modes (default: train)
  train     train the config's model, or resume: the same command again goes on where it stopped
  eval      score a run's newest and best checkpoints on all test images
  predict   classify images by a run, or by weights: what export wrote, or one of --list=weights
  report    write a page of curves, mistakes and figures of a run, or to compare several
  summary   print the model's layers, parameters, multiply-accumulates and learning rate
  profile   record a few steps with jax's profiler, in the folder of the run
  export    write a run's best checkpoint: to .safetensors, .stablehlo or hf://user/name
  search    train and rank what a search config lists; more processes share or resume the work

flags
  --config          a file, or the name of one of configs/ (resnet_v2); after a colon, a variant
  --config.FIELD    replaces a field, as in --config.optimizer.learning_rate=0.05
  --workdir         the folder of the run; default: runs/<config>-<overrides>-seed<seed>
  --coordinator     HOST:PORT, --num_processes, --process_id: many processes train one model
  --format, --top   of predict: table, json or csv; classes shown (3); --cam: where it looks
"""

import errno
import hashlib
import io
import os
import re
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict

from resnet_jax import errors
from resnet_jax.config import load as config_lib
from resnet_jax.config.flags import override, override_search
from resnet_jax.errors import Interrupted, UserError, one_line, tell, unknown

# Those that take a run as it is, and what they take beside it.
_RUN_MODES = {
    "eval": "nothing else",
    "predict": "image files, folders, patterns or -, and perhaps --format, --top and --cam; "
    "or, in place of --workdir, --weights, a file or a name of --list=weights",
    "report": "perhaps further runs",
    "export": "--output=FILE",
}

_OF_TRAIN = ("coordinator", "num_processes", "process_id")
# The flags of one mode alone.
_ONLY_FOR = {"output": "export"} | dict.fromkeys(("format", "top", "cam", "weights"), "predict")
_ONLY_FOR |= dict.fromkeys(_OF_TRAIN, "train")

_COMPUTING_MODES = ("train", "eval", "predict", "report", "profile", "search")


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
    if isinstance(sys.stdout, io.TextIOWrapper):  # names may be no text, or not in its encoding
        sys.stdout.reconfigure(errors="backslashreplace")
    # XLA's own log would complain of every program that comes from the cache of compiled programs
    # (openxla issue 44565); its errors are raised as exceptions too. It is read on import of jax.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # Threads that wait actively for long keep other processes from the cores that they are to use.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    try:
        return _run_mode(_parse(arguments))
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except Interrupted as error:
        return _interrupted(str(error), error.signal_number, arguments)
    except OSError as error:
        if error.errno not in (errno.EPIPE, *errors.FULL):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno == errno.EPIPE:  # who reads the output has seen enough
            return 128 + signal.SIGPIPE
        print(f"error: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return _interrupted("stopped before the first step", signal.SIGINT, arguments)


def _interrupted(what: str, signal_number: int, arguments: Sequence[str]) -> int:
    program = os.path.basename(arguments[0])
    command = "python -m resnet_jax.main" if program == "main.py" else program
    again = errors.without_secrets(f"{command} {shlex.join(arguments[1:])}")
    tell(f"{what}; the same command again resumes:\n  {again}\n")
    return 128 + signal_number


def run() -> None:
    """Runs the command line of this process; the console script `resnet-jax`."""
    # An exception could be swallowed by a library that is calling back. Before the first step and
    # after the last one there is nothing to save: training handles signals itself in between.
    arguments = [*sys.argv]  # while a config file runs, the first of them is its name

    def end(signal_number: int, frame: Any) -> None:
        if platform := sys.modules.get("resnet_jax.platform"):
            platform.show_cursor()
        os._exit(_interrupted("stopped", signal_number, arguments))

    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a training outlives its terminal
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    try:
        status = main(arguments)
    except Exception:
        traceback.print_exc()
        status = 1
    if hosts := sys.modules.get("resnet_jax.hosts"):  # it trained
        hosts.end(status)
    sys.exit(status)


def _run_mode(settings: "_Settings") -> int:
    """Returns the exit status."""
    # jax takes a second to import: only here, when the command line is known to be good.
    import jax

    from resnet_jax import cpu, platform

    config = settings.config
    if config.get("base", config).get("deterministic"):
        platform.request_determinism()
    platform.keep_freed_memory()
    platform.enable_cache()
    platform.quieten_libraries()
    if settings.mode == "train":
        _join([settings.flags[name].value for name in _OF_TRAIN])
    # With --weights the answer is to come at once, and to compile our calls of oneDNN takes 10 s.
    with_onednn = settings.mode in _COMPUTING_MODES and not settings.flags.weights
    if with_onednn and jax.default_backend() == "cpu":
        cpu.enable()
    with platform.memory_errors():
        return (_list if settings.mode == "list" else _ACTIONS[settings.mode])(settings) or 0


def _join(given: Sequence[Any]) -> None:
    """Makes this process one of several that train together, if it is to be."""
    from resnet_jax import hosts

    if place := hosts.find_place(*given):
        hosts.supervise()
        hosts.join(place)


def _list(settings: "_Settings") -> None:
    from resnet_jax.report.listing import format_list

    print(format_list(settings.flags.list))


def _train(settings: "_Settings") -> None:
    from resnet_jax import hosts, platform
    from resnet_jax.training.loop import train_and_evaluate

    with hosts.losses():
        train_and_evaluate(settings.config, settings.workdir, signals=platform.stop_signals())
    if settings.config.log.report and hosts.is_first():
        try:
            _report(settings)
        except UserError as error:  # the training is done and saved all the same
            print(f"no report: {error}", file=sys.stderr)


def _report(settings: "_Settings") -> None:
    from resnet_jax.report.page import write_report

    print(f"report  {write_report([settings.workdir, *settings.paths])}")


def _profile(settings: "_Settings") -> None:
    from resnet_jax.training.profiling import print_profile

    print_profile(settings.config, settings.workdir)


def _summarise(settings: "_Settings") -> None:
    from resnet_jax.report.summary import print_summary

    print_summary(settings.config)


def _search(settings: "_Settings") -> None:
    from resnet_jax import platform
    from resnet_jax.search.worker import run_search

    run_search(settings.config, settings.workdir, signals=platform.stop_signals())


def _export(settings: "_Settings") -> None:
    from resnet_jax.inference.export import export

    print(f"wrote {export(settings.workdir, settings.flags.output)}")


def _evaluate(settings: "_Settings") -> None:
    from resnet_jax.inference.evaluate import print_scores

    print_scores(settings.workdir)


def _predict(settings: "_Settings") -> int:
    from resnet_jax import platform
    from resnet_jax.inference.printing import print_predictions

    given = settings.flags
    source = settings.workdir, given.weights, settings.paths
    return print_predictions(*source, given.format, given.top, given.cam, platform.stop_signals())


class _Settings(NamedTuple):
    """What the command line asks for."""

    flags: flags.FlagValues
    mode: str
    workdir: str
    config: ConfigDict = ConfigDict()
    paths: Sequence[str] = ()


_ACTIONS: dict[str, Callable[[_Settings], int | None]] = {
    "train": _train,
    "eval": _evaluate,
    "predict": _predict,
    "report": _report,
    "profile": _profile,
    "summary": _summarise,
    "export": _export,
    "search": _search,
}


def _parse(arguments: Sequence[str]) -> _Settings:
    """Returns what the command line asks for, or raises UserError."""
    values = flags.FlagValues()
    values.set_gnu_getopt(True)
    for name in ("config", "workdir", "mode", "output", "list", "format", "weights"):
        default = {"mode": "train", "format": "table"}.get(name, "")
        flags.DEFINE_string(name, default, "", flag_values=values)
    flags.DEFINE_integer("top", 3, "", lower_bound=1, flag_values=values)
    flags.DEFINE_string("coordinator", None, "", flag_values=values)
    for name in ("num_processes", "process_id"):
        flags.DEFINE_integer(name, None, "", lower_bound=0, flag_values=values)
    flags.DEFINE_bool("cam", False, "", flag_values=values)
    try:
        rest = values(arguments, known_only=True)
    except flags.Error as error:
        raise UserError(f"{error}; see --help") from None
    for name in values:
        if values[name].present > 1:
            raise UserError(f"--{name} is given {values[name].present} times")
    for name in ("config", "workdir", "output", "weights"):  # the shell leaves --workdir=~/x alone
        values[name].value = os.path.expanduser(str(values[name].value))
    if values.list:
        if rest[1:] or [name for name in values if values[name].present] != ["list"]:
            raise UserError("--list takes nothing else; see --help")
        return _Settings(values, "list", "")
    if values.mode not in _ACTIONS:
        raise unknown("--mode", values.mode, _ACTIONS)
    if values.mode in _RUN_MODES:
        return _parse_run_mode(values, rest[1:])
    for name, mode in _ONLY_FOR.items():
        if values[name].present and values.mode != mode:
            raise UserError(f"--{name} is for --mode={mode} only")
    if values.mode == "profile" and values.workdir and not values.config and not rest[1:]:
        return _Settings(values, "profile", values.workdir)
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
    return _Settings(values, values.mode, workdir, config)


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
        name += f"-{hashlib.sha256(os.fsencode(wanted)).hexdigest()[:8]}"
    return f"runs/{name}-seed{config.seed}"


def _parse_run_mode(values: flags.FlagValues, files: list[str]) -> _Settings:
    """Returns what the command line asks of a run that there is."""
    mode, names = values.mode, [path for path in files if path == "-" or path[:1] != "-"]
    others = [name for name, of in _ONLY_FOR.items() if of != mode]
    is_fine = {
        "eval": not files,
        "predict": bool(files) and files == names,
        "report": files == names,
        "export": not files and bool(values.output),
    }
    is_foreign = values.config or any(values[name].present for name in others)
    if bool(values.workdir) == bool(values.weights) or is_foreign or not is_fine[mode]:
        takes = f"--mode={mode} takes --workdir, the folder of a run, and {_RUN_MODES[mode]}"
        raise UserError(f"{takes}; see --help")
    return _Settings(values, mode, values.workdir, paths=names)


def _parse_search(values: flags.FlagValues, config: ConfigDict, rest: list[str]) -> _Settings:
    """Returns what the command line asks of a search: its config, with that of its base in it."""
    if "base" not in config:
        raise UserError(f"--config {values.config} is that of a run: --mode=search takes a search")
    if not values.workdir:
        raise UserError("--mode=search needs --workdir, the folder of the search")
    return _Settings(values, "search", values.workdir, override_search(config, rest))


if __name__ == "__main__":
    run()
