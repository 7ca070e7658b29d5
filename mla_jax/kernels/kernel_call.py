"""`pl.pallas_call`, such that calls that are alike share one kernel: layers trace and lower it once, not once each.

Pallas jits a function anew at each call, so that JAX, which finds what it has traced by the function and what it has
lowered by what was traced, finds nothing. A training step of size m of MLA calls 6 kernels 73 times: tracing and
lowering it takes 1.2 s of a CPU core where it took 2.4 (the first in a process). XLA gets the same program, but for the
source lines in a kernel's text: they are the first caller's (compile_cache.py leaves them out).
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu


def kernel_call(
    program: Callable[..., None],
    out_shape: Any,
    *,
    grid: tuple[int, ...],
    compiler_params: plgpu.CompilerParams,
    interpret: bool,
    name: str,
    input_output_aliases: Mapping[int, int] | None = None,
) -> Callable[..., Any]:
    """What `pl.pallas_call` returns, and the same function for the same arguments.

    program: a function of a module, or partials of one; what it is given must be hashable, and all that it depends on.
    """
    shapes, tree = jax.tree.flatten(out_shape)
    aliases = input_output_aliases or {}
    key = _key(program), *shapes, tree, grid, compiler_params, interpret, name, *sorted(aliases.items())
    if key not in _made:
        _made[key] = pl.pallas_call(
            program,
            out_shape=out_shape,
            grid=grid,
            compiler_params=compiler_params,
            input_output_aliases=aliases,
            interpret=interpret,
            name=name,
        )
    return _made[key]


_made: dict[Any, Callable[..., Any]] = {}


def forget() -> None:
    """Make all kernels anew from now on: for a test that changes what a program calls, before and after."""
    _made.clear()


def _key(program: Any) -> Any:
    """Equal for programs that are alike. A functools.partial equals no other; 1, 1.0 and True are equal, and make
    three kernels."""
    if not isinstance(program, functools.partial):
        return type(program), program
    named = tuple((name, _key(value)) for name, value in sorted(program.keywords.items()))
    return _key(program.func), tuple(map(_key, program.args)), named
