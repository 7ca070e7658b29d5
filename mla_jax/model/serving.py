"""Weights as decoding reads them: in the computation's dtype, and packed so that one product does the work of several.

XLA leaves the conversion of a float32 matrix inside a decode loop (seen in the optimised HLO for an H100, JAX 0.11.2:
every matrix was read in float32, written in bfloat16 and read again at every step), which costs four times the bytes,
and it copies matrices that it multiplies side by side into one at every step. Both are done here, once.

Packing also absorbs: DeepSeek-V2 (arXiv 2405.04434, section 2.1.2) notes that w_uk can be absorbed into the queries'
matrix and w_uv into the output's. At decode that is exact and, for small models, faster than the factors: fewer
launches for more bytes: [D, H C] for w_q and w_uk, whose factors have D H N + C H N numbers.

Packed weights stand beside the matrices that prefill goes on reading: docs/how-to/benchmark.md has what that takes.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from mla_jax.config import ModelConfig
from mla_jax.kernels import row_experts, row_linear
from mla_jax.kernels.row_experts import ExpertWeights, Rule
from mla_jax.kernels.row_linear import Linear, NormWeights
from mla_jax.model.backend import Backend

# Used in float32 by the model: vectors (gains), the router, and the position table, which is added before the cast.
_FLOAT32 = ("router", "position")
# Hidden units are padded by zeros up to a multiple of these, once: XLA would pad odd widths at every step.
_DENSE_MULTIPLE = 128  # of a dense layer
_EXPERT_MULTIPLE = 16  # of an expert: each row of its matrices then begins where a memory transaction does
COLLECTION, NAME = "serving", "weights"  # where Transformer.decode looks for the packed ones


@struct.dataclass
class ServingLayer:
    """w_in: to queries and new cache entries (columns: `_heads`, `_latents`); w_out: from attention to the stream.

    latent_gain [C] float32 | None; ffn_in (gated: gate and up), ffn_out: None for a layer with experts; experts: None
    for a dense layer and where `packs_experts` says no (then ffn_norm is None too).
    """

    attention_norm: NormWeights
    w_in: Linear
    w_out: Linear
    latent_gain: jax.Array | None
    ffn_norm: NormWeights | None
    ffn_in: Linear | None
    ffn_out: Linear | None
    experts: ExpertWeights | None = None


@struct.dataclass
class ServingWeights:
    """All layers and the final norm; the embedding is read where it is."""

    layers: tuple[ServingLayer, ...]
    final_norm: NormWeights


def serving_variables(cfg: ModelConfig, variables: Any, backend: Backend) -> Any:
    """`variables` (Transformer.apply's mapping) with matrices in the backend's dtype, and packed ones beside them.

    Values of the matrices do not change beyond what each use would round anyway; without learned positions prefill's
    logits are bit for bit the same. Packed weights are added where decode uses them (`packs`).
    """

    def convert(path: tuple, leaf: jax.Array) -> jax.Array:
        names = [str(getattr(key, "key", "")) for key in path]
        kept = leaf.ndim < 2 or any(word in name for name in names for word in _FLOAT32)
        return leaf if kept else leaf.astype(backend.jnp_dtype)

    served = dict(jax.tree_util.tree_map_with_path(convert, variables))
    if packs(cfg, backend):
        served[COLLECTION] = {NAME: pack(cfg, variables["params"], backend)}
    return served


def packs(cfg: ModelConfig, backend: Backend) -> bool:
    """Whether decode has a packed form: heads or joint latents, nothing between the products but RoPE and the norm."""
    if backend.decode_impl == "xla" or backend.mesh is not None or cfg.qk_norm:
        return False
    return cfg.attention != "mla" or (cfg.latent == "joint" and cfg.absorbed and not cfg.q_lora_rank)


def packs_experts(cfg: ModelConfig) -> bool:
    """Whether layers with experts have a packed form, for few rows: where the path is ours to choose and sizes fit."""
    return cfg.moe_impl == "auto" and row_experts.applies(cfg.n_routed_experts, cfg.n_shared_experts, rule(cfg))


def experts_by_kernels(cfg: ModelConfig, backend: Backend, rows: int) -> bool:
    """Whether decode of so many rows takes kernels/row_experts.py for its experts, not one of `moe_paths.PATHS`."""
    return cfg.n_moe_layers > 0 and rows <= row_linear.MAX_ROWS and packs(cfg, backend) and packs_experts(cfg)


def rule(cfg: ModelConfig) -> Rule:
    """How the router's logits become choices."""
    return Rule(cfg.top_k, cfg.router_score, cfg.router_renormalize, cfg.routed_scaling_factor)


def read_at_decode(variables: Any, rows: int = 1) -> Any:
    """The arrays of `serving_variables` that a decode step of so many rows reads, each once; of experts, all."""
    if COLLECTION not in variables:
        return variables
    params, weights = variables["params"], variables[COLLECTION][NAME]
    tables = [params[name] for name in ("embedding", "position_embedding") if name in params]
    layers, by_modules = [], []
    for i, layer in enumerate(weights.layers):
        if layer.ffn_in is None and (layer.experts is None or rows > row_linear.MAX_ROWS):
            layer = layer.replace(ffn_norm=None, experts=None)
            by_modules.append([params[f"layer_{i}"][name] for name in ("ffn", "ffn_norm")])
        layers.append(layer)
    return weights.replace(layers=tuple(layers)), tables, by_modules


def pack(cfg: ModelConfig, params: Any, backend: Backend) -> ServingWeights:
    """The packed weights, products of factors computed in float32 and rounded once."""
    layers = tuple(_layer(cfg, params[f"layer_{i}"], backend.jnp_dtype) for i in range(cfg.n_layers))
    return ServingWeights(layers, _norm(params["final_norm"]))


def _layer(cfg: ModelConfig, params: Any, dtype: Any) -> ServingLayer:
    attention, ffn = params["attention"], params["ffn"]
    w_in, w_out = (_latents if cfg.attention == "mla" else _heads)(cfg, attention)
    dense, ffn_in, ffn_out = False, None, None
    if "w_gate" in ffn and ffn["w_gate"].ndim == 2:
        dense = True
        ffn_in = Linear(jnp.stack([_padded(ffn[name].T, 0) for name in ("w_gate", "w_up")]))
        ffn_out = Linear(_padded(ffn["w_down"].T, 1))
    elif "w_in" in ffn:
        dense = True
        ffn_in = Linear(_padded(ffn["w_in"].T, 0), _padded(ffn["b_in"], 0))
        ffn_out = Linear(_padded(ffn["w_out"].T, 1), ffn["b_out"])
    attention_norm, w_in = _gain_in_matrix(_norm(params["attention_norm"]), w_in)
    ffn_norm = experts = None
    if dense:
        ffn_norm, ffn_in = _gain_in_matrix(_norm(params["ffn_norm"]), ffn_in)
    elif packs_experts(cfg):
        ffn_norm, experts = _norm(params["ffn_norm"]), _experts(cfg, ffn, dtype)
    cast = [None if a is None else a.replace(w=a.w.astype(dtype)) for a in (w_in, w_out, ffn_in, ffn_out)]
    return ServingLayer(attention_norm, *cast[:2], attention.get("latent_gain"), ffn_norm, *cast[2:], experts)


def _experts(cfg: ModelConfig, params: Any, dtype: Any) -> ExpertWeights:
    """Columns become rows, hidden units are padded; the shared feed-forward is cut into experts behind the routed."""
    shared, gpt = params.get("shared"), cfg.block == "gpt"

    def joined(name: str, of_shared: str, out: bool) -> jax.Array:
        """Of w_up alike: routed [E, D, F] and shared [D, S F] -> [E', F, D]; of w_down (out) [E', D, F]."""
        whole = params[name].astype(dtype)  # first: float32 copies of all experts would be the peak of memory
        if shared is not None:
            wide = shared[of_shared].astype(dtype)  # [D, S F], or [S F, D] (out)
            cut = wide.reshape((-1, *whole.shape[1:])) if out else jnp.stack(jnp.split(wide, cfg.n_shared_experts, 1))
            whole = jnp.concatenate([whole, cut])
        return _padded(whole.swapaxes(1, 2), 2 if out else 1, _EXPERT_MULTIPLE)

    up = joined("w_up", "w_in" if gpt else "w_up", False)
    if not gpt:
        up = jnp.stack([joined("w_gate", "w_gate", False), up])
    up_bias = down_bias = None
    if gpt and shared is not None:
        of_shared = shared["b_in"].reshape(cfg.n_shared_experts, cfg.d_expert)
        up_bias = _padded(jnp.pad(of_shared, ((cfg.n_routed_experts, 0), (0, 0))), 1, _EXPERT_MULTIPLE)
        down_bias = shared["b_out"]
    down = joined("w_down", "w_out" if gpt else "w_down", True)
    return ExpertWeights(params["w_router"].T, up, down, up_bias, down_bias)


def _norm(params: Any) -> NormWeights:
    return NormWeights(params["gain"], params.get("bias"))


def _gain_in_matrix(norm: NormWeights, linear: Linear) -> tuple[NormWeights, Linear]:
    """An RMS norm's gain [K] multiplied into the matrix [..., K] that reads the norm: one load less at each step.

    A LayerNorm stays as it is: its bias would have to go through the matrix too.
    """
    if norm.bias is not None:
        return norm, linear
    return NormWeights(None), linear.replace(w=linear.w * norm.gain)


def _heads(cfg: ModelConfig, params: Any) -> tuple[Linear, Linear]:
    """Columns q of all heads, k, v of all groups; the output's matrix as it is."""
    w_in = jnp.concatenate([_rows(params[name]) for name in ("w_q", "w_k", "w_v")])
    w_out, bias_in, bias_out = params["w_o"].reshape(-1, cfg.d_model).T, None, None
    if cfg.block == "gpt":
        bias_in = jnp.concatenate([params[name].reshape(-1) for name in ("b_q", "b_k", "b_v")])
        bias_out = params["b_o"]
    return Linear(w_in, bias_in), Linear(w_out, bias_out)


def _latents(cfg: ModelConfig, params: Any) -> tuple[Linear, Linear]:
    """Columns q_latent of all heads (w_q w_uk), c_kv, q_rope of all heads, k_rope, and zeros up to a multiple of C."""
    precision = jax.lax.Precision.HIGHEST
    nope, rank, rope = cfg.qk_nope_head_dim, cfg.kv_lora_rank, cfg.qk_rope_head_dim

    def absorbed(q: jax.Array) -> jax.Array:  # [..., H, N] -> [..., H C]
        latent = jnp.einsum("...hn,chn->...hc", q, params["w_uk"], precision=precision)
        return latent.reshape(*q.shape[:-2], -1)

    def columns(q: jax.Array, c_kv: jax.Array, k_rope: jax.Array | None) -> jax.Array:
        parts = [absorbed(q[..., :nope]), c_kv]
        if rope:
            parts += [q[..., nope:].reshape(*q.shape[:-2], -1), k_rope]
        joined = jnp.concatenate(parts, axis=-1)
        return jnp.pad(joined, [(0, 0)] * (joined.ndim - 1) + [(0, -joined.shape[-1] % rank)])

    w_in = columns(params["w_q"], params["w_dkv"], params.get("w_kr")).T
    w_out = jnp.einsum("chv,hvd->dhc", params["w_uv"], params["w_o"], precision=precision)
    bias_in = bias_out = None
    if cfg.block == "gpt":
        bias_in = columns(params["b_q"], jnp.zeros(rank), jnp.zeros(rope) if rope else None)
        bias_out = params["b_o"]
    return Linear(w_in, bias_in), Linear(w_out.reshape(w_out.shape[0], -1), bias_out)


def _padded(w: jax.Array, axis: int, multiple: int = _DENSE_MULTIPLE) -> jax.Array:
    """w with zeros at the end of `axis`, up to a multiple; a hidden unit of zeros adds nothing to the output."""
    return jnp.pad(w, [(0, -w.shape[axis] % multiple if i == axis else 0) for i in range(w.ndim)])


def _rows(w: jax.Array) -> jax.Array:
    """[D, H, K] -> [H K, D]."""
    return w.reshape(w.shape[0], -1).T
