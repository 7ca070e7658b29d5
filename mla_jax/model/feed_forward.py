"""The dense feed-forward of a block. B batch, T queries, D model width, F feed-forward width."""

import jax
from flax import linen as nn

from mla_jax import mesh
from mla_jax.config import ModelConfig
from mla_jax.kernels import gelu
from mla_jax.model import initial
from mla_jax.model.backend import Backend
from mla_jax.model.experts import FeedForwardWeights
from mla_jax.model.functions import bias_gelu
from mla_jax.model.norms import add_bias
from mla_jax.model.one_pass import in_one_pass
from mla_jax.model.stds import residual_std


def hidden_units(x: jax.Array, bias: jax.Array, backend: Backend) -> jax.Array:
    """tanh-GELU of x [..., F] + bias [F] in the form that the backend takes. The kernel reads float32 biases itself."""
    if not in_one_pass(x.shape, backend, gelu.applies):
        return bias_gelu(x, bias.astype(x.dtype))

    def kernel(x: jax.Array, bias: jax.Array) -> jax.Array:
        return gelu.bias_gelu(x, bias, backend.interpret)

    return mesh.by_rows(kernel, backend.mesh, [x], [bias])


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020), or a tanh-GELU layer with biases for block=gpt. x [B, T, D] -> [B, T, D]."""

    cfg: ModelConfig
    backend: Backend
    hidden: int  # F

    def __call__(self, x: jax.Array, stream_bias: jax.Array | None = None) -> jax.Array:
        """x [B, T, D] -> [B, T, D]. stream_bias: `self.stream_bias()`, if the norm computes its gradient (`Norm`)."""
        dtype, w = self.backend.jnp_dtype, self.weights()
        if w.w_gate is None:
            h = hidden_units(x @ w.w_up.astype(dtype), w.b_up, self.backend)
            return add_bias(h @ w.w_down.astype(dtype), w.b_down, stream_bias)
        h = jax.nn.silu(x @ w.w_gate.astype(dtype)) * (x @ w.w_up.astype(dtype))
        return h @ w.w_down.astype(dtype)

    def stream_bias(self) -> jax.Array | None:
        """What a call adds to every row: the second layer's bias [D] float32, or None."""
        return self.weights().b_down

    @nn.compact
    def weights(self) -> FeedForwardWeights:
        """The parameters, in their own dtype: for a layer that computes this one along with its own."""
        cfg, width, hidden = self.cfg, self.cfg.d_model, self.hidden
        into, out_of = initial.normal(cfg.init_std), initial.normal(residual_std(cfg))
        if cfg.block == "gpt":
            w_in = self.param("w_in", into, (width, hidden))
            b_in = self.param("b_in", initial.ZEROS, (hidden,))
            w_out = self.param("w_out", out_of, (hidden, width))
            b_out = self.param("b_out", initial.ZEROS, (width,))
            return FeedForwardWeights(None, w_in, w_out, b_in, b_out)
        w_gate = self.param("w_gate", into, (width, hidden))
        w_up = self.param("w_up", into, (width, hidden))
        return FeedForwardWeights(w_gate, w_up, self.param("w_down", out_of, (hidden, width)))
