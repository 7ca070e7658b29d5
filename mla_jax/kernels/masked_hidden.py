"""Hidden units of a masked dense layer: those of a token's own experts times their weight, 0 for all others.

Forward reads the pre-activations of the chosen experts alone and writes every hidden unit; backward reads those again
with their gradients, and writes the pre-activations' gradients, 0 for all others as well. Shared experts, which every
token goes to, stand behind the routed ones (Pallas, Triton).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from mla_jax.kernels import gelu
from mla_jax.kernels.kernel_call import kernel_call
from mla_jax.kernels.tiles import padded


class Blocks(NamedTuple):
    """What a program does: so many rows; zeros of so many experts are written at a time."""

    rows: int
    experts: int
    warps: int


# launch/elementwise_tuning.py on an H200, 65,536 rows of 62 experts: forward 97.6 us (3.1 TB/s), 103.4 with the blocks
# below, up to 159 with others. Backward: not measured.
FORWARD = Blocks(rows=4, experts=32, warps=8)
BACKWARD = Blocks(rows=8, experts=16, warps=4)

_ROWS = 64  # whose multiples are taken
_NUMBERS = 8192  # of an array that a program holds at a time, at most

Arrays = tuple[jax.Array, ...]


class _Form(NamedTuple):
    """E routed experts, S shared ones, F units of each, K experts of a token; whether shared ones have biases."""

    experts: int
    shared: int
    width: int
    top_k: int
    n_pre: int
    biased: bool


def applies(n_rows: int, at_once: int, width: int) -> bool:
    """Whether programs divide the rows, and can hold the units of `at_once` experts of a row: chosen, or shared."""
    return n_rows % _ROWS == 0 and pl.next_power_of_2(at_once) * pl.next_power_of_2(width) <= _NUMBERS


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def masked_hidden(
    pre: Arrays,
    bias: jax.Array | None,
    expert_idx: jax.Array,
    expert_weight: jax.Array,
    n_shared: int,
    interpret: bool,
) -> jax.Array:
    """pre, of up or of gate and up, each [N, E + S, F] -> hidden units [N, E + S, F]: `functions.activation`.

    expert_idx [N, K]: different ones of 0..E-1, whose units are multiplied by expert_weight [N, K] float32; E is no
    expert, and its weight has no gradient. bias [S, F] is added to `pre` of the S shared experts, whose weight is 1;
    it may be None. In float32 inside, in the dtype of `pre` outside.
    """
    return forward(pre, bias, expert_idx, expert_weight, n_shared, interpret)


def forward(
    pre: Arrays,
    bias: jax.Array | None,
    expert_idx: jax.Array,
    expert_weight: jax.Array,
    n_shared: int,
    interpret: bool,
    blocks: Blocks = FORWARD,
) -> jax.Array:
    """`masked_hidden`, without a gradient, with blocks of one's own."""
    form = _form(pre, bias, expert_idx, n_shared)
    blocks = _fitting(form, blocks)
    logistic = gelu.logistic_for(pre[0].dtype, interpret)
    return kernel_call(
        functools.partial(_forward_program, form=form, blocks=blocks, logistic=logistic),
        out_shape=jax.ShapeDtypeStruct(pre[0].shape, pre[0].dtype),
        grid=(pre[0].shape[0] // blocks.rows,),
        compiler_params=plgpu.CompilerParams(num_warps=blocks.warps),
        interpret=interpret,
        name="masked_hidden",
    )(expert_idx, expert_weight, *pre, *([] if bias is None else [bias]))


def backward(
    pre: Arrays,
    bias: jax.Array | None,
    expert_idx: jax.Array,
    expert_weight: jax.Array,
    d_hidden: jax.Array,
    n_shared: int,
    interpret: bool,
    blocks: Blocks = BACKWARD,
) -> tuple[Arrays, jax.Array | None, jax.Array]:
    """Of `masked_hidden`: d_hidden [N, E + S, F] -> gradients of pre, of bias (or None) and of expert_weight [N, K].

    In their dtypes; that of expert_weight in float32.
    """
    form = _form(pre, bias, expert_idx, n_shared)
    blocks = _fitting(form, blocks)
    programs = pre[0].shape[0] // blocks.rows
    shapes = [*(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in pre)]
    shapes.append(jax.ShapeDtypeStruct(expert_idx.shape, jnp.float32))
    if bias is not None:
        shapes.append(jax.ShapeDtypeStruct((programs, *bias.shape), jnp.float32))
    logistic = gelu.logistic_for(pre[0].dtype, interpret)
    found = kernel_call(
        functools.partial(_backward_program, form=form, blocks=blocks, logistic=logistic),
        out_shape=shapes,
        grid=(programs,),
        compiler_params=plgpu.CompilerParams(num_warps=blocks.warps),
        interpret=interpret,
        name="masked_hidden_backward",
    )(expert_idx, expert_weight, d_hidden, *pre, *([] if bias is None else [bias]))
    d_pre, (d_weight, *parts) = found[: len(pre)], found[len(pre) :]
    d_bias = None if bias is None else jnp.sum(parts[0], axis=0).astype(bias.dtype)
    return tuple(d_pre), d_bias, d_weight


def _masked_hidden_backward(
    n_shared: int, interpret: bool, kept: tuple, d_hidden: jax.Array
) -> tuple[Arrays, jax.Array | None, None, jax.Array]:
    d_pre, d_bias, d_weight = backward(*kept, d_hidden, n_shared, interpret)
    return d_pre, d_bias, None, d_weight


masked_hidden.defvjp(lambda *a: (forward(*a), a[:4]), _masked_hidden_backward)


def _form(pre: Arrays, bias: jax.Array | None, expert_idx: jax.Array, n_shared: int) -> _Form:
    _, experts, width = pre[0].shape
    return _Form(experts - n_shared, n_shared, width, expert_idx.shape[1], len(pre), bias is not None)


def _fitting(form: _Form, blocks: Blocks) -> Blocks:
    """The blocks asked for, made smaller where a tile would be of more than _NUMBERS numbers."""
    width = pl.next_power_of_2(form.width)
    rows = min(blocks.rows, _ROWS, max(1, _NUMBERS // (width * pl.next_power_of_2(max(form.top_k, form.shared)))))
    experts = min(blocks.experts, pl.next_power_of_2(form.experts), max(1, _NUMBERS // (rows * width)))
    return blocks._replace(rows=rows, experts=experts)


def _value(pre: list[jax.Array], logistic: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Hidden units of pre-activations [...] float32, of up or of gate and up."""
    if len(pre) == 1:
        return gelu.value(pre[0], logistic)
    gate, up = pre
    return gate * logistic(0.5 * gate) * up


def _value_and_slopes(
    pre: list[jax.Array], logistic: Callable[[jax.Array], jax.Array]
) -> tuple[jax.Array, list[jax.Array]]:
    """`_value`, and its derivative by each of pre."""
    if len(pre) == 1:
        value, slope = gelu.value_and_slope(pre[0], logistic)
        return value, [slope]
    gate, up = pre
    s = logistic(0.5 * gate)
    silu = gate * s
    return silu * up, [(s + (silu - silu * s)) * up, silu]


class _Places(NamedTuple):
    """Where a tile [rows, experts, units] lies in arrays [N, E + S, F], and which of it there is."""

    index: tuple[jax.Array, ...]
    mask: jax.Array

    def load(self, ref: Any) -> jax.Array:
        return plgpu.load(ref.at[self.index], mask=self.mask, other=0.0).astype(jnp.float32)

    def store(self, ref: Any, value: jax.Array) -> None:
        plgpu.store(ref.at[self.index], value.astype(ref.dtype), mask=self.mask)


class _Tile:
    """A program's rows (R of them): the experts that they chose, all the others, and the shared ones.

    choices: the slice of K choices, padded to a power of two K'; choice_exists [R, K'] bool: not padding;
    expert_idx [R, K'] int32: the experts that were chosen, E (no expert) for padding.
    """

    def __init__(self, form: _Form, blocks: Blocks, idx_ref: Any) -> None:
        self.form, self.blocks = form, blocks
        self.first = pl.program_id(0) * blocks.rows
        self.rows, self.idx_ref = pl.ds(self.first, blocks.rows), idx_ref
        self.choices = padded(pl.next_power_of_2(form.top_k), form.top_k)
        shape = blocks.rows, self.choices.size
        self.choice_exists = jnp.broadcast_to(jnp.arange(self.choices.size) < form.top_k, shape)
        self.expert_idx = plgpu.load(idx_ref.at[self.rows, self.choices], mask=self.choice_exists, other=form.experts)

    def chosen(self) -> _Places:
        """The units of the chosen experts, [R, K', F']."""
        return self._places(self.expert_idx, self.expert_idx < self.form.experts)

    def shared(self) -> _Places:
        """The units of the shared experts, [R, S', F']."""
        shape = self.blocks.rows, pl.next_power_of_2(self.form.shared)
        number = jnp.broadcast_to(jnp.arange(shape[1]), shape)
        return self._places(self.form.experts + number, number < self.form.shared)

    def store_zeros(self, refs: Any) -> None:
        """To the units of the routed experts that a row did not choose, in every ref: no place is written twice."""
        shape = self.blocks.rows, self.blocks.experts
        each = [plgpu.load(self.idx_ref.at[self.rows, pl.ds(k, 1)]) for k in range(self.form.top_k)]
        for first in range(0, self.form.experts, self.blocks.experts):
            number = jnp.broadcast_to(first + jnp.arange(shape[1]), shape)
            others = number < self.form.experts
            for expert_idx in each:
                others &= number != expert_idx
            places = self._places(number, others)
            for ref in refs:
                places.store(ref, jnp.zeros(places.mask.shape, ref.dtype))

    def load_of_choices(self, ref: Any) -> jax.Array:
        """Numbers [N, K] of the rows' choices, [R, K'], 0 for padding."""
        return plgpu.load(ref.at[self.rows, self.choices], mask=self.choice_exists, other=0.0)

    def _places(self, experts: jax.Array, there: jax.Array) -> _Places:
        """The units of experts [R, n], of those that are `there` [R, n] bool, as tiles [R, n, F']."""
        units = pl.next_power_of_2(self.form.width)
        shape = (*experts.shape, units)
        rows = self.first + jnp.arange(shape[0])
        unit = jnp.arange(units)
        mask = there[:, :, None]
        if units != self.form.width:
            mask &= unit < self.form.width
        index = (rows[:, None, None], experts[:, :, None], unit[None, None, :])
        return _Places(tuple(jnp.broadcast_to(i, shape) for i in index), jnp.broadcast_to(mask, shape))

    def bias(self, ref: Any) -> jax.Array:
        """The shared experts' biases [S, F] as [1, S', F'] float32."""
        mask = self._shared_mask()
        place = ref.at[padded(mask.shape[0], self.form.shared), padded(mask.shape[1], self.form.width)]
        return plgpu.load(place, mask=mask, other=0.0).astype(jnp.float32)[None]

    def store_part(self, ref: Any, value: jax.Array) -> None:
        """This program's part [1, S, F] of the biases' gradient: value [R, S', F'], summed over the rows."""
        mask = self._shared_mask()[None]
        all_shared = padded(mask.shape[1], self.form.shared), padded(mask.shape[2], self.form.width)
        place = ref.at[pl.ds(pl.program_id(0), 1), *all_shared]
        plgpu.store(place, jnp.sum(value, axis=0)[None], mask=mask)

    def _shared_mask(self) -> jax.Array:
        """[S', F'] bool: what there is of the shared experts' units."""
        shape = pl.next_power_of_2(self.form.shared), pl.next_power_of_2(self.form.width)
        inside = (jnp.arange(shape[0]) < self.form.shared)[:, None] & (jnp.arange(shape[1]) < self.form.width)[None]
        return jnp.broadcast_to(inside, shape)


def _forward_program(idx_ref: Any, weight_ref: Any, *refs: Any, form: _Form, blocks: Blocks, logistic: Any) -> None:
    pre_refs, (*bias_ref, h_ref) = refs[: form.n_pre], refs[form.n_pre :]
    tile = _Tile(form, blocks, idx_ref)
    parts = [(tile.chosen(), tile.load_of_choices(weight_ref)[:, :, None], None)]
    if form.shared:
        parts.append((tile.shared(), 1.0, tile.bias(bias_ref[0]) if form.biased else None))
    loaded = [[_plus(places.load(ref), bias) for ref in pre_refs] for places, _, bias in parts]
    tile.store_zeros([h_ref])  # while those numbers are on their way
    for (places, weight, _), pre in zip(parts, loaded, strict=True):
        places.store(h_ref, _value(pre, logistic) * weight)


def _backward_program(
    idx_ref: Any, weight_ref: Any, dh_ref: Any, *refs: Any, form: _Form, blocks: Blocks, logistic: Any
) -> None:
    pre_refs, rest = refs[: form.n_pre], refs[form.n_pre :]
    bias_ref, rest = rest[: form.biased], rest[form.biased :]
    d_pre_refs, (d_weight_ref, *part_ref) = rest[: form.n_pre], rest[form.n_pre :]
    tile = _Tile(form, blocks, idx_ref)
    chosen, weight = tile.chosen(), tile.load_of_choices(weight_ref)[:, :, None]
    pre, dh = [chosen.load(ref) for ref in pre_refs], chosen.load(dh_ref)
    if form.shared:
        shared = tile.shared()
        bias = tile.bias(bias_ref[0]) if form.biased else None
        shared_pre, shared_dh = [_plus(shared.load(ref), bias) for ref in pre_refs], shared.load(dh_ref)
    tile.store_zeros(d_pre_refs)  # while those numbers are on their way
    value, slopes = _value_and_slopes(pre, logistic)
    for ref, slope in zip(d_pre_refs, slopes, strict=True):
        chosen.store(ref, dh * weight * slope)
    plgpu.store(d_weight_ref.at[tile.rows, tile.choices], jnp.sum(value * dh, axis=2), mask=tile.choice_exists)
    if form.shared:
        _, slopes = _value_and_slopes(shared_pre, logistic)
        for ref, slope in zip(d_pre_refs, slopes, strict=True):
            shared.store(ref, shared_dh * slope)
        if form.biased:
            tile.store_part(part_ref[0], shared_dh * slopes[0])


def _plus(a: jax.Array, bias: jax.Array | None) -> jax.Array:
    return a if bias is None else a + bias
