"""Grouped matrix products for experts (Pallas, Triton): blocks of rows, each multiplied by its own expert's matrix.

Rows are padded so that a block of ROWS has one expert (model/moe_grouped.py), so no program has to ask where a group
ends. A program reads its expert's number and loads from that matrix directly, and, where it is told a `source`, it
fetches each row from there: the sorted copy of the tokens, K times as large as they are, is never written.
Block sizes were measured on an H100 (launch/grouped_tuning.py).
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from mla_jax.kernels.kernel_call import kernel_call
from mla_jax.kernels.tiles import dot

ROWS = 128  # of a block, and of a program of `grouped_product`


@dataclasses.dataclass(frozen=True)
class Tiles:
    """Of a program: columns (and for `grouped_outer` rows, `down`) of its result, depth of a step of its sum."""

    columns: int
    depth: int
    warps: int
    stages: int
    down: int = 128


# H100, 393,216 rows of 512, experts 256 wide: 0.28 ms with the wide tiles, 0.40 with 128 columns (370, 261 TFLOP/s).
WIDE, NARROW = Tiles(256, 64, 8, 4), Tiles(128, 64, 8, 4)
OUTER = NARROW  # fetched rows: 0.27 ms, 0.32 with 256 columns


def grouped_product(
    rows: jax.Array,
    w: jax.Array,
    block_expert: jax.Array,
    source: jax.Array | None = None,
    *,
    transposed: bool = False,
    tiles: Tiles | None = None,
    interpret: bool = False,
) -> jax.Array:
    """rows [P, D], w [E, D, F], block_expert [P / ROWS] int32 -> [P, F] in rows' dtype, summed in float32.

    source [P] int32: row p is rows[source[p]], and rows [N, D] has any length. transposed: w is [E, F, D].
    """
    n_rows = block_expert.shape[0] * ROWS
    n_columns = w.shape[1 if transposed else 2]
    tiles = tiles or (WIDE if n_columns > NARROW.columns else NARROW)
    program = functools.partial(
        _product_program, depth=rows.shape[1], columns=n_columns, tiles=tiles, transposed=transposed
    )
    return kernel_call(
        program if source is not None else functools.partial(_without, program, 2),
        out_shape=jax.ShapeDtypeStruct((n_rows, n_columns), rows.dtype),
        # The last axis runs fastest: programs that read the same rows run together.
        grid=(n_rows // ROWS, pl.cdiv(n_columns, tiles.columns)),
        compiler_params=plgpu.CompilerParams(num_warps=tiles.warps, num_stages=tiles.stages),
        interpret=interpret,
        name="grouped_product",
    )(rows, w, *([] if source is None else [source]), block_expert)


def grouped_product_reference(
    rows: jax.Array, w: jax.Array, block_expert: jax.Array, source: jax.Array | None = None, transposed: bool = False
) -> jax.Array:
    """The plain twin: a batch of blocks, each beside a copy of its expert's matrix."""
    rows = rows if source is None else rows[source]
    blocks = rows.reshape(block_expert.shape[0], -1, rows.shape[1])
    return jnp.einsum("bpd,bfd->bpf" if transposed else "bpd,bdf->bpf", blocks, w[block_expert]).reshape(
        rows.shape[0], -1
    )


def grouped_outer(
    rows: jax.Array,
    g: jax.Array,
    first_block: jax.Array,
    rows_source: jax.Array | None = None,
    g_source: jax.Array | None = None,
    *,
    tiles: Tiles | None = None,
    interpret: bool = False,
) -> jax.Array:
    """rows [P, D], g [P, F], first_block [E + 1] int32 -> [E, D, F]: each expert's rows^T g, summed in float32.

    Expert e has the blocks first_block[e] up to first_block[e + 1]; one without blocks gets zeros. rows_source,
    g_source [P] int32: as `source` of `grouped_product`.
    """
    tiles = tiles or OUTER
    n_experts, depth, columns = first_block.shape[0] - 1, rows.shape[1], g.shape[1]
    program: Any = functools.partial(_outer_program, depth=depth, columns=columns, tiles=tiles)
    if rows_source is None:
        program = functools.partial(_without, program, 2)
    if g_source is None:
        program = functools.partial(_without, program, 2 if rows_source is None else 3)
    sources = [source for source in (rows_source, g_source) if source is not None]
    return kernel_call(
        program,
        out_shape=jax.ShapeDtypeStruct((n_experts, depth, columns), rows.dtype),
        grid=(n_experts, pl.cdiv(depth, tiles.down), pl.cdiv(columns, tiles.columns)),
        compiler_params=plgpu.CompilerParams(num_warps=tiles.warps, num_stages=tiles.stages),
        interpret=interpret,
        name="grouped_outer",
    )(rows, g, *sources, first_block)


def grouped_outer_reference(rows: jax.Array, g: jax.Array, block_expert: jax.Array, n_experts: int) -> jax.Array:
    """The plain twin: every block's product, then a sum over the blocks of each expert.

    They are sorted, which is not said: with it XLA took minutes to compile the sum for an H100 (JAX 0.11.2), not 0.2 s.
    """
    blocks, cotangents = (a.reshape(block_expert.shape[0], -1, a.shape[1]) for a in (rows, g))
    each = jnp.einsum("bpd,bpf->bdf", blocks, cotangents, preferred_element_type=jnp.float32)
    return jax.ops.segment_sum(each, block_expert, n_experts).astype(rows.dtype)


def _without(program: Any, place: int, *refs: Any, **more: Any) -> None:
    """Calls a program with None in place of a source that was not given."""
    program(*refs[:place], None, *refs[place:], **more)


def _product_program(
    rows_ref: Any,
    w_ref: Any,
    source_ref: Any,
    expert_ref: Any,
    out_ref: Any,
    *,
    depth: int,
    columns: int,
    tiles: Tiles,
    transposed: bool,
) -> None:
    block, strip = pl.program_id(0), pl.program_id(1)
    here = pl.ds(block * ROWS, ROWS)
    across = _Span(strip * tiles.columns, tiles.columns, columns)
    fetched = None if source_ref is None else plgpu.load(source_ref.at[here])
    expert = expert_ref[block]

    def step(index: jax.Array, acc: jax.Array) -> jax.Array:
        along = _Span(index * tiles.depth, tiles.depth, depth)
        a = _load_rows(rows_ref, here, fetched, along)
        if transposed:
            return acc + dot(a, _load(w_ref.at[expert, across.slice, along.slice], across, along).T)
        return acc + dot(a, _load(w_ref.at[expert, along.slice, across.slice], along, across))

    acc = jnp.zeros((ROWS, tiles.columns), jnp.float32)
    acc = jax.lax.fori_loop(0, pl.cdiv(depth, tiles.depth), step, acc)
    plgpu.store(out_ref.at[here, across.slice], acc.astype(out_ref.dtype), mask=_mask(None, across, acc.shape))


def _outer_program(
    rows_ref: Any,
    g_ref: Any,
    rows_source_ref: Any,
    g_source_ref: Any,
    first_ref: Any,
    out_ref: Any,
    *,
    depth: int,
    columns: int,
    tiles: Tiles,
) -> None:
    expert, down, strip = (pl.program_id(axis) for axis in range(3))
    along = _Span(down * tiles.down, tiles.down, depth)
    across = _Span(strip * tiles.columns, tiles.columns, columns)
    steps = ROWS // tiles.depth

    def step(index: jax.Array, acc: jax.Array) -> jax.Array:
        here = pl.ds(index * tiles.depth, tiles.depth)
        rows_fetched = None if rows_source_ref is None else plgpu.load(rows_source_ref.at[here])
        g_fetched = None if g_source_ref is None else plgpu.load(g_source_ref.at[here])
        a = _load_rows(rows_ref, here, rows_fetched, along)
        b = _load_rows(g_ref, here, g_fetched, across)
        return acc + dot(a.T, b)

    acc = jnp.zeros((tiles.down, tiles.columns), jnp.float32)
    acc = jax.lax.fori_loop(first_ref[expert] * steps, first_ref[expert + 1] * steps, step, acc)
    plgpu.store(
        out_ref.at[expert, along.slice, across.slice],
        acc.astype(out_ref.dtype),
        mask=_mask(along, across, acc.shape),
    )


@dataclasses.dataclass(frozen=True)
class _Span:
    """`size` places from `start` on an axis of `limit`. Tiles that divide the axis need no masks."""

    start: Any
    size: int
    limit: int

    @property
    def slice(self) -> Any:
        return pl.ds(self.start, self.size)

    @property
    def inside(self) -> jax.Array | None:
        return None if self.limit % self.size == 0 else self.start + jnp.arange(self.size) < self.limit


def _mask(down: _Span | None, across: _Span | None, shape: tuple[int, ...]) -> jax.Array | None:
    parts = [
        inside.reshape(place)
        for span, place in ((down, (-1, 1)), (across, (1, -1)))
        if span is not None and (inside := span.inside) is not None
    ]
    return jnp.broadcast_to(functools.reduce(jnp.logical_and, parts), shape) if parts else None


def _load_rows(ref: Any, here: Any, fetched: jax.Array | None, across: _Span) -> jax.Array:
    """The rows `here`, or, where they are given, the rows `fetched`."""
    if fetched is None:
        return _load(ref.at[here, across.slice], None, across)
    columns = across.start + jnp.arange(across.size)
    return _load(ref.at[fetched[:, None], columns[None, :]], None, across)


def _load(ref: Any, down: _Span | None, across: _Span) -> jax.Array:
    mask = _mask(down, across, ref.shape)
    return plgpu.load(ref) if mask is None else plgpu.load(ref, mask=mask, other=0.0)
