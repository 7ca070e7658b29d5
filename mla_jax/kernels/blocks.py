"""Block sizes of the decode kernels: a small table, and how many programs share a row.

Measured in whole steps of size m on an H100 (docs/results/decode_gpu.md, launch/decode_tuning.py) for keys and values
of 64 and for latents of 256 + 32; the others are guesses from what compilers say. Triton 3.7.1 and ptxas for sm90a,
bfloat16, 8 heads (a kernel that also writes the newest entry), none with spills:

    cache per position        positions  warps  stages   shared memory   registers a thread
    latent 256 + 32                  64      4       2        47 KiB          128
    latent 256 + 32                  64      4       3        83 KiB          128
    latent 512 + 64                  32      4       2        55 KiB          128
    latent 512 + 64                  64      4       2        92 KiB          189
    latent 256 + 32, int8            64      4       2        37 KiB          244
    latent 256 + 32, int8            64      8       2        45 KiB          128
    key and value of 64             128      4       2        38 KiB           94

A multiprocessor has 227 KiB and 65,536 registers, so that 4 programs of the first row fit, and 2 of the second.
"""

import dataclasses

from mla_jax.kernels.operands import Blocks

_MULTIPROCESSORS = 132  # H100; only the number of splits depends on it
_MAX_SPLITS = 64
_SHORTEST = 128  # positions of a part; a shorter one costs more to join than it saves
_CROWDED = 4  # programs for each multiprocessor that the rows alone give: then `_Row.crowded` applies
_LONG = 16  # steps of a program from which a third stage pays (64 x 4096: 273.7 us against 287 for 3 layers)


@dataclasses.dataclass(frozen=True)
class _Row:
    """For caches of at most `limit` numbers per position, int8 or not; positions, warps, stages: as in `Blocks`.

    long_stages: stages of programs of _LONG steps or more. programs: how many per multiprocessor splitting aims at.
    short_warps: warps where one step of _SHORTEST covers a whole part; 0 = `warps`, and steps of `positions`. crowded:
    other blocks to use when the rows alone give every multiprocessor _CROWDED programs; None = the same.
    """

    limit: int
    int8: bool
    positions: int
    warps: int
    stages: int
    long_stages: int
    programs: int
    short_warps: int = 0
    crowded: Blocks | None = None


# The first that fits.
TABLE = (
    _Row(160, False, 128, 4, 2, 2, 1),
    # The headline: 256 + 32. Crowded, 9 layers' calls at 1024 x 512 took 107 us each instead of 111.
    # Parts of 128 in one step: 68.5 us for 3 layers at 1 x 512, where two steps of 64 took 71.4.
    _Row(320, False, 64, 4, 2, 3, 1, 8, Blocks(32, 1, 2, 3, late_sum=True)),
    _Row(384, False, 64, 4, 2, 3, 1, 0, Blocks(32, 1, 2, 3, late_sum=True)),  # two steps of 128 would not fit
    _Row(10**9, False, 32, 4, 2, 2, 4),  # 512 + 64; with one program each, 1.66 ms a step at 64 x 4096 against 1.37
    _Row(10**9, True, 64, 8, 2, 2, 4),  # int8: its conversion takes registers (244 with 4 warps)
)


def choose(numbers: int, quantized: bool, batch: int, groups: int, capacity: int) -> Blocks:
    """Blocks for `batch` rows of `capacity` positions, `groups` programs a row before splitting, each loading
    `numbers` numbers per position.

    A row is split until the device is full, but no part is shorter than _SHORTEST.
    """
    row = next(row for row in TABLE if row.int8 == quantized and numbers <= row.limit)
    if row.crowded and batch * groups >= _CROWDED * _MULTIPROCESSORS:
        return row.crowded
    wanted = max(1, _MULTIPROCESSORS * row.programs // (batch * groups))
    possible = max(1, capacity // max(row.positions, _SHORTEST))
    splits = min(1 << (wanted.bit_length() - 1), 1 << (possible.bit_length() - 1), _MAX_SPLITS)
    if row.short_warps and capacity == splits * _SHORTEST:
        return Blocks(_SHORTEST, splits, row.short_warps, row.stages)
    steps = capacity // (splits * row.positions)
    return Blocks(row.positions, splits, row.warps, row.long_stages if steps >= _LONG else row.stages)
