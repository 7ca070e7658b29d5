"""`pl.pallas_call`, such that calls that are alike share one kernel: layers trace and lower it once, not once each.

Pallas jits a function anew at each call, so that JAX, which finds what it has traced by the function and what it has
lowered by what was traced, finds nothing. A training step of size m of MLA calls 6 kernels 73 times: tracing and
lowering it takes 1.2 s of a CPU core where it took 2.4 (the first in a process). XLA gets the same program, but for the
source lines in a kernel's text: they are the first caller's (compile_cache.py leaves them out).
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

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
    aliases = tuple(sorted((input_output_aliases or {}).items()))
    return _made(_frozen(program), tuple(shapes), tree, grid, compiler_params, interpret, name, aliases)


@functools.lru_cache(maxsize=256)
def _made(
    program: Any, shapes: tuple, tree: Any, grid: tuple, params: Any, interpret: bool, name: str, aliases: tuple
) -> Callable[..., Any]:
    return pl.pallas_call(
        _thawed(program),
        out_shape=jax.tree.unflatten(tree, shapes),
        grid=grid,
        compiler_params=params,
        input_output_aliases=dict(aliases),
        interpret=interpret,
        name=name,
    )


def forget() -> None:
    """Make all kernels anew from now on: for a test that changes what a program calls, before and after."""
    _made.cache_clear()


class _Partial(NamedTuple):
    """A functools.partial, which itself equals no other."""

    function: Any
    given: tuple[Any, ...]
    named: tuple[tuple[str, Any], ...]


class _Typed(NamedTuple):
    """A value with its type: 1, 1.0 and True are equal, and make three kernels."""

    kind: type
    value: Any


def _frozen(program: Any) -> Any:
    if not isinstance(program, functools.partial):
        return _Typed(type(program), program)
    named = ((name, _frozen(value)) for name, value in sorted(program.keywords.items()))
    return _Partial(_frozen(program.func), tuple(map(_frozen, program.args)), tuple(named))


def _thawed(program: Any) -> Any:
    if not isinstance(program, _Partial):
        return program.value
    named = {name: _thawed(value) for name, value in program.named}
    return functools.partial(_thawed(program.function), *map(_thawed, program.given), **named)
