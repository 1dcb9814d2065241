"""The plan of the package: imports run downwards, rooms and functions stay small."""

import ast
import pathlib

PACKAGE = pathlib.Path(__file__).parent.parent / "resnet_jax"

# From the ground up; rooms of one floor may import each other, without a circle.
FLOORS = (
    {"errors", "files", "hosts", "platform", "randomness", "restricted_pickle", "trees"},
    {"config"},
    {"data", "models"},
    {"runs", "weights"},
    {"training"},
    {"cpu", "inference"},
    {"report", "search"},
    {"main", "resnet_jax"},
)
HEIGHT = {name: height for height, floor in enumerate(FLOORS) for name in floor}
ROOMS = sorted(PACKAGE.rglob("*.py"))


def module_of(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): ast.parse(path.read_text()) for path in ROOMS}


def imports(name):
    """Returns the modules of the package that a module imports, also inside its functions."""
    found = set()
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("resnet_jax"):
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in MODULES else node.module)
    return found


def height(name):
    return HEIGHT[name.split(".")[1] if "." in name else name]


def test_imports_run_downwards():
    for name in MODULES:
        for other in imports(name):
            assert height(other) <= height(name), f"{name} imports {other}, which is above it"


def test_no_circles():
    def visit(name, path):
        assert name not in path, " -> ".join([*path, name])
        if name not in done:
            for other in imports(name) - {"resnet_jax"}:
                visit(other, [*path, name])
            done.add(name)

    done = set()
    for name in MODULES:
        if name != "resnet_jax":  # its imports are for type checkers
            visit(name, [])


def test_rooms_and_functions_are_small():
    assert len(list(PACKAGE.glob("*.py"))) <= 9
    for path in ROOMS:
        assert len(path.read_text().splitlines()) <= 350, path
    for name, tree in MODULES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                limit = 120 if node.name in ("_train", "train_and_evaluate") else 60
                assert node.end_lineno - node.lineno < limit, f"{name}.{node.name}"


def test_no_private_names_of_libraries():
    for name, tree in MODULES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                assert "._" not in f".{node.module}.", f"{name} imports {node.module}"
                if not node.module.startswith("resnet_jax"):
                    assert not any(alias.name.startswith("_") for alias in node.names), name
