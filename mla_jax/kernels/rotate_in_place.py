"""RoPE of heads of which an end is rotated, where they lie, in one pass each way (Pallas, Triton).

MLA's queries of size m are 96 numbers a head, the last 32 of them rotated: the 64 before them are left alone.
"""

import functools
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from mla_jax.kernels.kernel_call import kernel_call
from mla_jax.kernels.rotate_heads import At, Blocks, Part, move_heads, row_angles

# Size m's queries, 65,536 rows in bfloat16 on an H200 (launch/rope_tuning.py): 36 us; 16 rows a warp 39 to 43, XLA 118.
IN_PLACE = Blocks(rows=32, warps=2, ahead=8)
_SHORT = Blocks(rows=16, warps=1, ahead=8)  # for lengths that 32 does not divide


def applies(batch: int, length: int) -> bool:
    """Whether [batch, length, W] has a length that blocks of rows divide."""
    return length % _SHORT.rows == 0


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def rotate(y: jax.Array, cos: jax.Array, sin: jax.Array, part: Part, interpret: bool) -> jax.Array:
    """y [B, T, part.columns] with its heads rotated as by `rotate_heads.split_and_rotate`.

    Written over y where nobody else needs it. cos, sin: [T, rotary/2] float32, not differentiated.
    """
    return turned(y, cos, sin, part, interpret)


def turned(
    y: jax.Array, cos: jax.Array, sin: jax.Array, part: Part, interpret: bool, blocks: Blocks | None = None
) -> jax.Array:
    """`rotate`, without a gradient, with blocks of one's own."""
    matrix = y.reshape(-1, y.shape[-1])
    blocks = blocks or (IN_PLACE if y.shape[1] % IN_PLACE.rows == 0 else _SHORT)
    out = kernel_call(
        functools.partial(_turning_program, part=part, blocks=blocks),
        out_shape=jax.ShapeDtypeStruct(matrix.shape, matrix.dtype),
        grid=(matrix.shape[0] // blocks.rows,),
        compiler_params=plgpu.CompilerParams(num_warps=blocks.warps, num_stages=1),
        input_output_aliases={0: 0},
        interpret=interpret,
        name="rotate_in_place",
    )(matrix, cos, sin)
    return out.reshape(y.shape)


rotate.defvjp(
    lambda y, cos, sin, part, interpret: (turned(y, cos, sin, part, interpret), (cos, sin)),
    lambda part, interpret, kept, g: (turned(g, kept[0], -kept[1], part, interpret), None, None),
)


def _turning_program(y_ref: Any, cos_ref: Any, sin_ref: Any, out_ref: Any, *, part: Part, blocks: Blocks) -> None:
    first = pl.program_id(0) * blocks.rows
    rows, angles = pl.ds(first, blocks.rows), row_angles(cos_ref, sin_ref, first, blocks)
    move_heads(At(y_ref, rows, 0), At(out_ref, rows, 0), part, angles, blocks.ahead, copies=False)
