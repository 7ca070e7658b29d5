"""Whether the decode kernels work on this device: compiled, run and compared once per process."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from mla_jax.kernels.latent_decode import latent_decode, latent_decode_reference

_TOLERANCE = 0.03  # of bfloat16 results of size 1


@functools.lru_cache(maxsize=1)
def obstacle() -> str:
    """ "" where the kernel computes what its plain twin does, else the reason: drivers, compilers and GPUs differ."""
    rng = np.random.default_rng(0)
    shapes = ((2, 8, 48), (2, 8, 16), (2, 200, 48), (2, 200, 16))
    q, q_rope, c_kv, k_rope = (jnp.asarray(rng.standard_normal(shape), jnp.bfloat16) for shape in shapes)
    lengths, rows = jnp.asarray([77, 200], jnp.int32), jnp.arange(2)
    try:
        new = (c_kv[rows, lengths - 1], k_rope[rows, lengths - 1])  # as decode calls it: the kernel writes the entry
        run = jax.jit(lambda *operands: latent_decode(*operands, 0.1, new=new))
        out, written, _ = run(q, q_rope, c_kv.at[rows, lengths - 1].set(0), k_rope, lengths - 1)
        expected = latent_decode_reference(q, q_rope, c_kv, k_rope, lengths, 0.1)
        error = float(jnp.max(jnp.abs(out.astype(jnp.float32) - expected.astype(jnp.float32))))
        error = error if bool(jnp.all(written == c_kv)) else float("inf")
    except Exception as failure:  # compilers raise many types
        return f"the Pallas kernel does not run here ({' '.join(str(failure).split())[:150] or type(failure).__name__})"
    if not error <= _TOLERANCE:
        return f"the Pallas kernel is wrong here (error {error:.2g})"
    return ""
