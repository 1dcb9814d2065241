"""Trees of arrays, with the leaves named by their paths: "stage1_block1/conv1/kernel"."""

from collections.abc import Callable, Mapping
from typing import Any

import jax


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """Returns the leaves of a tree with their paths, in its order."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(_name(path), leaf) for path, leaf in leaves]


def with_leaves(template: Any, arrays: Mapping[str, Any]) -> Any:
    """Returns a tree of the structure of `template`, of arrays by the paths of its leaves."""
    leaves = [arrays[name] for name, _ in named_leaves(template)]
    return jax.tree.unflatten(jax.tree.structure(template), leaves)


def mismatch(template: Any, arrays: Mapping[str, Any]) -> str:
    """Returns how arrays by name differ from a tree in names, shapes or dtypes; empty: not at all.

    Args:
      template: the tree.
      arrays: what has a shape and a dtype, by the paths of leaves.
    """
    leaves = dict(named_leaves(template))
    if others := sorted(leaves.keys() ^ arrays.keys()):
        return f"it is of another model ({', '.join(others[:3])} ...)"
    for name, leaf in leaves.items():
        array = arrays[name]
        if array.shape != leaf.shape or array.dtype != leaf.dtype:
            found, wanted = (f"{a.dtype}{list(a.shape)}" for a in (array, leaf))
            return f"{name} is {found}, not {wanted}"
    return ""


def map_with_path(function: Callable[[str, Any], Any], tree: Any) -> Any:
    """Returns a tree of `function(path, leaf)`."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: function(_name(path), leaf), tree)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
