"""The norms of a block, and the biases whose gradients they compute on the way."""

import jax
from flax import linen as nn

from mla_jax import mesh
from mla_jax.kernels import norm
from mla_jax.model import initial
from mla_jax.model.backend import Backend
from mla_jax.model.functions import LAYER_NORM_EPS, RMS_EPS, layer_norm, rms_norm, with_bias_gradient
from mla_jax.model.one_pass import in_one_pass


class Norm(nn.Module):
    """The block's norm: RMSNorm, or LayerNorm with block=gpt.

    Stream biases. A bias [D] that a sublayer adds to the residual stream has as its gradient the stream's gradient,
    summed over all rows; XLA reads that gradient once more for it. The backward kernel of the norm before the sublayer
    reads it anyway, since the stream that passes the sublayer by has the same gradient, and sums its columns on the
    way. So the bias is given to the norm (`with_stream`), which computes its gradient, and the sublayer adds it under
    stop_gradient (`add_bias`). The plain twin of the norm's part is `with_bias_gradient`.
    """

    block: str
    backend: Backend | None = None

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.with_stream(x)[1]

    def gives_bias_gradient(self, x: jax.Array) -> bool:
        """Whether `with_stream` computes a stream bias' gradient at no cost, for x [B, T, D]: where the kernel runs."""
        return self.backend is not None and in_one_pass(x.shape, self.backend, norm.applies)

    @nn.compact
    def with_stream(self, x: jax.Array, stream_bias: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """x [..., D], for the stream to go on with, and its norm [..., D], both in x's dtype.

        The gradients of the two are added where the norm's is computed.

        stream_bias [D] float32: a bias that will be added to the stream under stop_gradient; its gradient comes from
        here.
        """
        gain = self.param("gain", initial.ONES, (x.shape[-1],))
        bias = self.param("bias", initial.ZEROS, (x.shape[-1],)) if self.block == "gpt" else None
        backend = self.backend
        if not self.gives_bias_gradient(x):
            normed = rms_norm(x, gain) if bias is None else layer_norm(x, gain, bias)
            return with_bias_gradient(x, stream_bias), normed
        eps = RMS_EPS if bias is None else LAYER_NORM_EPS
        given = [vector for vector in (gain, bias, stream_bias) if vector is not None]

        def kernel(x: jax.Array, gain: jax.Array, *more: jax.Array) -> tuple[jax.Array, jax.Array]:
            optional = iter(more)
            vectors = [None if vector is None else next(optional) for vector in (bias, stream_bias)]
            return norm.norm_with_stream(x, gain, *vectors, eps, backend.interpret)

        return mesh.by_rows(kernel, backend.mesh, [x], given)


def add_bias(y: jax.Array, bias: jax.Array | None, stream_bias: jax.Array | None) -> jax.Array:
    """A sublayer's output y [..., D] + bias [D], if it has one.

    stream_bias [D], if the norm has been given it: added in place of `bias`, without a gradient.
    """
    if bias is None:
        return y
    return y + (bias if stream_bias is None else jax.lax.stop_gradient(stream_bias)).astype(y.dtype)
