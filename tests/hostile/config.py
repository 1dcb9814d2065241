"""Hostile and broken command lines and configs."""

import tiny_run
from hostile.cases import CODE, CONFIG, fixed, written

# Config overrides

NUMBERS = {
    "nan": "nan",
    "inf": "inf",
    "minus_inf": "-inf",
    "overflow": "1e400",
    "digits": "9" * 5000,
    "empty": "",
    "word": "zwölf",
    "emoji": "🐍",
    "list": "[1]",
    "code": CODE,
}
TRUTHS = {"word": "maybe", "two": "2", "empty": "", "emoji": "🐍", "nan": "nan", "code": CODE}
TUPLES = {
    "open": "(((",
    "deep": "(" * 500 + ")" * 500,
    "nan": "(nan, nan, nan)",
    "overflow": "(1e400, 1, 1)",
    "texts": "('a', 'b', 'c')",
    "nested": "((1,), (2,), (3,))",
    "code": CODE,
    "call": "(1, 2, exit(3))",
    "dict": "{'a': 1}",
    "emoji": "(🐍,)",
    "empty": "",
}
OPEN = {"number": "=3", "list": "=[1]", "empty": "=", "deep": ".a.b=1", "unknown": ".no_such=1"}
OPEN |= {"dunder": ".__class__=1", "emoji": ".🐍=1", "method": ".items=1", "dots": "..=1"}
TEXTS = {  # text -> what its error names
    "model.name": dict.fromkeys(["", "🐍", "a" * 5000, "../resnet", CODE], "unknown model"),
    "data.source": dict.fromkeys(["", "🐍", "http://example.org", CODE], "data.source"),
    "optimizer.name": dict.fromkeys(["", "🐍", "__class__", CODE], "unknown optimizer"),
    "optimizer.no_decay": dict.fromkeys(
        ["(", "🐍", "(?P<a>", "[" * 100, "\\"], "optimizer.no_decay"
    ),
    "optimizer.frozen": dict.fromkeys(["(", "🐍", "(?P<a>", ".*", "*"], "optimizer.frozen"),
    "schedule.name": dict.fromkeys(["", "🐍", "__init__", CODE], "unknown schedule"),
    "init.weights": dict.fromkeys(["🐍", "/", "a" * 5000, "/dev/zero"], "init.weights")
    | {"/proc/self/mem": "/proc/self/mem"},
}


CHOICES = {"empty": "", "emoji": "🐍", "case": "VAL", "nul": "a\0b", "code": CODE}
# One field of each kind; what the others refuse, the tests of the checker say.
KINDS = {
    "data.shuffle": TRUTHS,
    "seed": NUMBERS | {"below": "-1", "above": "9999999999", "half": "1.5"},
    "optimizer.learning_rate": NUMBERS | {"below": "-1", "above": "1e7", "long": "1" * 400},
    "data.mean": TUPLES,
    "optimizer.learning_rate_factors": {k: v for k, v in TUPLES.items() if v},
    "evaluate.split": CHOICES,
}


def overrides():
    for path, values in KINDS.items():
        for name, value in values.items():
            yield fixed(f"override/{path}={name}", path, CONFIG, f"--config.{path}={value}")
    for path, texts in TEXTS.items():
        for index, (text, names) in enumerate(texts.items()):
            yield fixed(f"override/{path}={index}", names, CONFIG, f"--config.{path}={text}")
    for group in ("model", "optimizer", "schedule"):
        for name, rest in OPEN.items():
            flag = f"--config.{group}.options{rest}"
            yield fixed(f"override/{group}.options={name}", group, CONFIG, flag)


UNKNOWN = ["lr", "", ".", "seed.", ".seed", "a.b.c.d", "__class__", "__dict__.a", "items", "🐍"]
UNKNOWN += [
    "x" * 5000,
    "data",
    "model.option",
    "seed.x",
    "to_json",
    "a b",
    "../seed",
    "%s%n",
    "\x1b[2J",
]
COMMANDS = {
    "twice": ("--mode is given 2 times", "--mode=eval", "--mode=train", "--workdir=x"),
    "unknown_mode": ("--mode", "--mode=evaluate"),
    "empty_mode": ("--mode", "--mode="),
    "unknown_flag": ("frobnicate", CONFIG, "--frobnicate=3"),
    "near_flag": ("workdri", CONFIG, "--workdri=x"),
    "junk": ("junk", CONFIG, "junk"),
    "emoji": ("🐍", CONFIG, "🐍"),
    "no_value": ("workdir", CONFIG, "--workdir"),
    "no_config": ("--config is missing", "--workdir=x"),
    "empty_config": ("--config is missing", "--config="),
    "two_configs": ("--config is given 2 times", CONFIG, CONFIG),
    "eval_without": ("--workdir", "--mode=eval"),
    "eval_nowhere": ("nowhere", "--mode=eval", "--workdir=nowhere"),
    "eval_file": ("file.txt", "--mode=eval", "--workdir=file.txt"),
    "eval_below_file": ("file.txt/run", "--mode=eval", "--workdir=file.txt/run"),
    "eval_empty_folder": ("empty", "--mode=eval", "--workdir=empty"),
    "eval_loop": ("loop", "--mode=eval", "--workdir=loop"),
    "eval_long": ("aaaa", "--mode=eval", "--workdir=" + "a" * 5000),
    "eval_emoji": ("🐍", "--mode=eval", "--workdir=🐍"),
    "eval_surrogate": ("--workdir", "--mode=eval", "--workdir=\udcff"),
    "eval_lines": ("a b", "--mode=eval", "--workdir=a\nb"),
    "eval_more": ("--mode=eval", "--mode=eval", "--workdir=empty", "more"),
    "train_file": ("file.txt", CONFIG, "--workdir=file.txt"),
    "train_below_file": ("file.txt/run", CONFIG, "--workdir=file.txt/run"),
    "train_loop": ("loop", CONFIG, "--workdir=loop"),
    "train_long": ("aaaa", CONFIG, "--workdir=" + "a" * 5000),
    "train_device": ("/dev/null", CONFIG, "--workdir=/dev/null"),
    "export_without": ("--output", "--mode=export", "--workdir=empty"),
    "export_empty": ("empty", "--mode=export", "--workdir=empty", "--output=x.safetensors"),
    "export_nowhere": ("nowhere", "--mode=export", "--workdir=nowhere", "--output=x.safetensors"),
    "predict_without": ("--workdir", "--mode=predict", "file.txt"),
    "predict_nothing": ("image files", "--mode=predict", "--workdir=empty"),
    "predict_flag": ("image files", "--mode=predict", "--workdir=empty", "--tip=3", "file.txt"),
    "predict_missing": ("empty holds no checkpoint", "--mode=predict", "--workdir=empty", "no.png"),
    "weights_missing": ("no.pth", CONFIG, "--config.init.weights=no.pth"),
    "summary_without": ("--config is missing", "--mode=summary"),
}


def commands():
    for index, name in enumerate(UNKNOWN):
        case = f"override/unknown_{index}"
        yield fixed(case, "config", CONFIG, f"--config.{name}=1")
    for name, (names, *arguments) in COMMANDS.items():
        yield fixed(f"command/{name}", names, *arguments)
    for suffix in ("", ".exe", ".py", ".pkl", ".PTH"):
        arguments = "--mode=export", "--workdir={run}", f"--output={{room}}/x{suffix}"
        yield written(f"command/output_{suffix}", f"/x{suffix.rstrip('/')}", "a", "", *arguments)
    outputs = {
        "folder": ("ends in", "{room}"),
        "nowhere": ("no/x.safetensors", "{room}/no/x.safetensors"),
        "long": ("aaaa", "a" * 5000 + ".safetensors"),
        "surrogate": ("ends in", "\udcff"),
    }
    for name, (names, path) in outputs.items():
        arguments = "--mode=export", "--workdir={run}", f"--output={path}"
        yield written(f"command/output_{name}", names, "a", "", *arguments)


# Config files

RETURNS = {
    "none": "None",
    "text": "'x'",
    "number": "3",
    "dict": "{'seed': 1}",
    "class": "ConfigDict",
    "empty": "ConfigDict()",
    "function": "get_config",
    "nested": "ConfigDict({'model': 3})",
    "extra": "changed('extra', 1)",
    "object": "changed('seed', object())",
    "text_seed": "changed('seed', 'zero')",
    "nan_seed": "changed('seed', float('nan'))",
    "big_seed": "changed('seed', 10**5000)",
    "bool_seed": "changed('seed', True)",
    "none_model": "changed('model', None)",
    "list_model": "changed('model', [])",
    "itself": "cyclic()",
    "deep": "deep()",
    "array": "changed('data', __import__('numpy').zeros(3))",
    "bytes": "changed('model', b'\\xff')",
    "key": "changed(3, 3)",
    "options": "options({'a': {'b': {'c': 1}}})",
    "option_object": "options({'num_filters': object()})",
    "option_huge": "options({'num_filters': (10**30,)})",
    "option_negative": "options({'num_filters': (-8,)})",
    "option_zero": "options({'num_filters': (0,)})",
    "option_nan": "options({'dropout_rate': float('nan')})",
    "option_name": "options({'name': 'x'})",
    "option_parent": "options({'parent': None})",
    "option_many": "options({'stage_sizes': (10**9,)})",
    "option_long": "options({'stage_sizes': (1,) * 10**6})",
    "option_wide": "options({'num_filters': (10**6,)})",
    "option_weights": "options({'weights': 'x.pth'})",
    "option_classes": "options({'num_classes': 3})",
    "option_dtype": "options({'dtype': 'complex64'})",
}
HEADER = """
from ml_collections import ConfigDict
from resnet_jax.config.load import default_config
def changed(name, value):
    config = default_config().unlock()
    config._fields[name] = value
    return config
def options(values):
    config = default_config()
    config.model.name = 'resnet_small'
    config.model.options = values
    config.data.source = 'sample'
    return config
def cyclic():
    config = ConfigDict()
    config.model = config
    return config
def deep():
    config = {}
    for _ in range(5000): config = {'a': config}
    return ConfigDict(config)
"""
TEXTS_OF_FILES = {
    "empty": "",
    "no_function": "x = 1",
    "not_callable": "get_config = 3",
    "arguments": "def get_config(a, b): pass",
    "syntax": "def get_config(:",
    "indent": "def get_config():\nreturn 1",
    "raises": "def get_config(): raise ValueError('two\\nlines')",
    "raises_empty": "def get_config(): raise ValueError",
    "raises_key": "def get_config(): raise KeyError('x')",
    "raises_base": "def get_config(): raise BaseException('x')",
    "raises_generator": "def get_config(): raise GeneratorExit",
    "raises_object": "def get_config(): raise 3",
    "raises_memory": "def get_config(): raise MemoryError",
    "bad_str": "class E(Exception):\n def __str__(self): raise E\ndef get_config(): raise E",
    "exits": "import sys\nsys.exit(0)",
    "exits_inside": "def get_config(): raise SystemExit",
    "quits": "def get_config(): quit()",
    "recursion": "def get_config(): return get_config()",
    "recursion_at_top": "def f(): return f()\nf()",
    "imports_nothing": "import no_such_module",
    "imports_itself": "from config import get_config",
    "divides": "1 / 0",
    "nested": "(" * 3000 + ")" * 3000,
    "nul": b"x = 1\0",
    "binary": b"\xff\xfe\x00\x01" * 50,
    "utf16": "def get_config(): pass".encode("utf-16"),
    "latin": b"# -*- coding: no-such -*-\n",
    "bad_utf8": b"x = '\xff'\n",
    "zip": b"PK\x03\x04" + bytes(100),
    "elf": b"\x7fELF" + bytes(100),
}


def config_files():
    for name, text in TEXTS_OF_FILES.items():
        yield written(f"config/{name}", "config.py", "config.py", text, "--config={file}")
    for name, value in RETURNS.items():
        text = f"{HEADER}\ndef get_config(): return {value}\n"
        part = "config.py" if name in ("none", "text", "number", "class", "function") else ""
        yield written(f"config/returns_{name}", part, "config.py", text, "--config={file}")
    paths = {"missing": "no.py", "folder": "empty", "loop": "loop", "long": "a" * 5000 + ".py"}
    paths |= {"emoji": "🐍.py", "device": "/dev/zero", "below": "file.txt/a.py"}
    paths |= {"colon": ":", "variant": f"{tiny_run.CONFIG_FILE}:no", "surrogate": "\udcff.py"}
    for name, path in paths.items():
        yield fixed(f"config/{name}", "config", f"--config={path}")


def cases():
    yield from commands()
    yield from overrides()
    yield from config_files()
