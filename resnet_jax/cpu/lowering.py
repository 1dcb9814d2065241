"""How a primitive of JAX becomes another call on a CPU, and only there.

JAX traces, differentiates and batches the primitive as ever. Programs for several devices, whose
calls XLA can't split, and those for export keep what they have.
"""

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import mlir

Function = Callable[..., Any]
Choose = Callable[[Sequence[Any], Sequence[Any], dict[str, Any]], Function | None]

_OF_CPU = mlir._platform_specific_lowerings["cpu"]
# What JAX has for a CPU alone, or None, for each primitive that has a lowering of ours.
_usual: dict[Primitive, Any] = {}


def replace(primitive: Primitive, choose: Choose) -> None:
    """Makes programs that are lowered for a CPU from now on compute a primitive otherwise.

    Args:
      primitive: the primitive.
      choose: returns the function that computes it, from the shapes and dtypes of its operands and
        results, and its parameters; None: leave it as it is.
    """
    usual = usual_lowering(primitive)

    def lower(ctx: Any, *operands: Any, **params: Any) -> Any:
        module = ctx.module_context
        # What has no such number is a shard_map's or pmap's: a program for several devices.
        alone = getattr(module.axis_context, "num_devices", 0) in (1, None)
        # Where types tell of shardings, as on jax.make_mesh's, our functions would have to as well.
        alone = alone and not any(any(aval.sharding.spec) for aval in ctx.avals_in)
        function = None
        if alone and not module.lowering_parameters.for_export:
            function = choose(ctx.avals_in, ctx.avals_out, params)
        if function is None:
            return usual(ctx, *operands, **params)
        return mlir.lower_fun(function, primitive.multiple_results)(ctx, *operands)

    _usual.setdefault(primitive, _OF_CPU.get(primitive))
    mlir.register_lowering(primitive, lower, platform="cpu")


def usual_lowering(primitive: Primitive) -> Callable[..., Any]:
    """Returns what JAX lowers a primitive to on a CPU, for which there is no public name."""
    rule = _usual.get(primitive, _OF_CPU.get(primitive)) or mlir._lowerings[primitive]
    return rule.rule


def offer(library: ctypes.CDLL, *names: str) -> None:
    """Lets programs call functions of our library by their names."""
    for name in names:
        capsule = jax.ffi.pycapsule(getattr(library, name))
        jax.ffi.register_ffi_target(name, capsule, platform="cpu")
