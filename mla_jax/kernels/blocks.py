"""Block sizes of the decode kernels: a small table, and how many programs share a row.

None of the entries has been timed on a GPU yet: they are guesses from what the compiler says. Triton 3.7.1 for sm90a
(bfloat16, 8 heads, latents of 256 + 32): 64 positions, 4 warps and 2 stages take 47 KiB of shared memory and 128
registers a thread, without spills, so that 4 programs fit on a multiprocessor; 3 stages take 83 KiB, so that 2 fit.
For one key and value head of 64: 64 positions, 2 stages take 20 KiB and 64 registers.
`--mode bench --suite=kernels` sweeps them; put its winners here, with the figure and the device.
"""

from jax.experimental import pallas as pl

from mla_jax.kernels.flash_decode import Blocks

_MULTIPROCESSORS = 132  # H100; only the number of splits depends on it
_PROGRAMS_PER_MULTIPROCESSOR = 4
_MAX_SPLITS = 64

# (largest numbers of cache loaded per position, int8 or not) -> (positions, warps, stages). First that fits.
TABLE = (
    ((160, False), (128, 4, 2)),
    ((384, False), (64, 4, 2)),  # the headline: 256 + 32
    ((10**9, False), (32, 4, 2)),  # 512 + 64: 55 KiB, 128 registers; 64 positions take 189 registers
    ((10**9, True), (64, 8, 2)),  # int8: its conversion takes registers (244 with 4 warps)
)


def choose(numbers: int, quantized: bool, batch: int, groups: int, capacity: int) -> Blocks:
    """Blocks for `batch` rows of `capacity` positions, `groups` programs a row before splitting, each loading
    `numbers` numbers per position.

    A row is split until the device is full, but no part is shorter than two steps of a program.
    """
    positions, warps, stages = next(row for (limit, int8), row in TABLE if int8 == quantized and numbers <= limit)
    wanted = pl.cdiv(_MULTIPROCESSORS * _PROGRAMS_PER_MULTIPROCESSOR, 2 * batch * groups)
    possible = max(1, capacity // (2 * positions))
    splits = min(pl.next_power_of_2(wanted), 1 << (possible.bit_length() - 1), _MAX_SPLITS)
    return Blocks(positions, splits, warps, stages)
