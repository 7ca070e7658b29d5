"""Block sizes of the decode kernels: a small table, and how many programs share a row.

None of the entries has been timed on a GPU yet: they are guesses from what compilers say. Triton 3.7.1 and ptxas for
sm90a, bfloat16, 8 heads (a kernel that also writes the newest entry), none with spills:

    cache per position        positions  warps  stages   shared memory   registers a thread
    latent 256 + 32                  64      4       2        47 KiB          128
    latent 256 + 32                  64      4       3        83 KiB          128
    latent 512 + 64                  32      4       2        55 KiB          128
    latent 512 + 64                  64      4       2        92 KiB          189
    latent 256 + 32, int8            64      4       2        37 KiB          244
    latent 256 + 32, int8            64      8       2        45 KiB          128
    key and value of 64             128      4       2        38 KiB           94

A multiprocessor has 227 KiB and 65,536 registers, so that 4 programs of the first row fit, and 2 of the second.
`--mode bench --suite=kernels` sweeps them; put its winners here, with the figure and the device.
"""

from mla_jax.kernels.flash_decode import Blocks

_MULTIPROCESSORS = 132  # H100; only the number of splits depends on it
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
    wanted = max(1, _MULTIPROCESSORS // (batch * groups))
    possible = max(1, capacity // (2 * positions))
    splits = min(1 << (wanted.bit_length() - 1), 1 << (possible.bit_length() - 1), _MAX_SPLITS)
    return Blocks(positions, splits, warps, stages)
