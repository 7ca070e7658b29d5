# %% [markdown]
# # 02 What the KV cache costs, and what a latent is
# To write token after token, a transformer keeps keys and values of all earlier ones: the KV cache. At size m in 16 bits
# multi-head attention keeps 18,432 bytes a token. Latent attention keeps a short vector instead, from which keys and
# values can be computed.
# %% first
# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import mla_jax
from mla_jax import accounting

NAMES = {"MHA": "mha_rope:m", "GQA, 2 groups": "gqa:m", "per-head latents, r = d/2": "mla_per_head:m"}
NAMES |= {"MLA, r = d/2": "mla:m", "MLA+RoPE, r = d/2": "mla_rope:m", "MLA+RoPE (paper B)": "mla_rope_paper_b:m"}
models = {label: mla_jax.load_config(name, **{"model.vocab_size": 8192}).model for label, name in NAMES.items()}
numbers = {label: accounting.kv_numbers(model) for label, model in models.items()}
figure, axes = plt.subplots(figsize=(8, 3.5), layout="constrained")
axes.barh(list(numbers), list(numbers.values()), color=["C0", "C1", "C2", "C3", "C3", "C3"])
axes.invert_yaxis()
axes.set(xlabel="numbers in the cache, a token and layer (size m)")
for label, value in numbers.items():
    axes.annotate(f" {value} ({1 - value / numbers['MHA']:.1%} saved)", (value, label), va="center")
axes.set_xlim(0, 1350)
# %% [markdown]
# 1,000 stories of 512 tokens at once, at size m:
# %%
for label, model in models.items():
    print(f"{label:28s} {accounting.kv_bytes(model) * 512 * 1000 / 1e9:6.2f} GB")
# %% [markdown]
# ## The equations, step by step
# One layer of MLA+RoPE with few numbers, so that every array can be printed. DeepSeek-V2 (arXiv 2405.04434), eq. 9-19.
# B rows, T tokens, H heads, N unrotated and R rotary numbers of a key, V of a value, C of the latent.
# %%
B, T, D, H, N, R, V, C = 1, 5, 16, 2, 8, 4, 8, 6
keys = jax.random.split(jax.random.key(0), 8)
x = jax.random.normal(keys[0], (B, T, D))
w_dkv = jax.random.normal(keys[1], (D, C)) / D**0.5  # down to the latent
w_uk = jax.random.normal(keys[2], (C, H, N)) / C**0.5  # up to the keys of each head
w_uv = jax.random.normal(keys[3], (C, H, V)) / C**0.5  # up to the values
w_kr = jax.random.normal(keys[4], (D, R)) / D**0.5  # the rotary key, one for all heads
w_q = jax.random.normal(keys[5], (D, H, N + R)) / D**0.5

c_kv = x @ w_dkv
c_kv = c_kv / jnp.sqrt(jnp.mean(c_kv**2, axis=-1, keepdims=True) + 1e-6)  # RMSNorm; the cache holds this ...
print("c_kv", c_kv.shape, "and k_rope", (B, T, R), "instead of k and v", (B, T, H, N + R), (B, T, H, V))
# %% [markdown]
# RoPE turns pairs of numbers by an angle that grows with the position, so that a score depends on the distance alone.
# %%
from mla_jax.model.layers import apply_rope, rope_angles

cos, sin = rope_angles(jnp.arange(T)[None], R, 10000.0)
k_rope = apply_rope((x @ w_kr)[:, :, None], cos, sin)[:, :, 0]  # ... and this, after its rotation
q_nope, q_rope = jnp.split(jnp.einsum("btd,dhk->bthk", x, w_q), [N], axis=-1)
q_rope = apply_rope(q_rope, cos, sin)
# %% [markdown]
# **Expanded** (training): compute keys and values from the latent, then ordinary attention.
# %%
k_nope = jnp.einsum("bsc,chn->bshn", c_kv, w_uk)
v = jnp.einsum("bsc,chv->bshv", c_kv, w_uv)
scale = (N + R) ** -0.5
causal = jnp.tril(jnp.ones((T, T), bool))
rotary = jnp.einsum("bthr,bsr->bhts", q_rope, k_rope)
logits = (jnp.einsum("bthn,bshn->bhts", q_nope, k_nope) + rotary) * scale
weights = jax.nn.softmax(jnp.where(causal, logits, -1e30), axis=-1)
expanded = jnp.einsum("bhts,bshv->bthv", weights, v)
# %% [markdown]
# **Absorbed** (decode): `q . (c w_uk)` is `(q w_uk^T) . c`. The query is taken to the latent's space once, and the keys and
# values are never made: a step reads C + R numbers a token instead of H (N + R + V).
# %%
q_latent = jnp.einsum("bthn,chn->bthc", q_nope, w_uk)
logits = (jnp.einsum("bthc,bsc->bhts", q_latent, c_kv) + rotary) * scale
weights = jax.nn.softmax(jnp.where(causal, logits, -1e30), axis=-1)
absorbed = jnp.einsum("bthc,chv->bthv", jnp.einsum("bhts,bsc->bthc", weights, c_kv), w_uv)
difference = float(jnp.abs(expanded - absorbed).max())
print(f"largest difference: {difference:.1e}")
# %% [markdown]
# ## How many directions does a trained cache use?
# Singular values of what a trained model's layers cache. Where they fall off quickly, a shorter latent loses little.
# %%
from pathlib import Path

from mla_jax import runs
from mla_jax.data.prepare import prepare
from mla_jax.study.spectra import cache_spectra

RUN = Path("runs/notebook_01")  # of the first notebook; trained here when it is missing
knobs = {"train.steps": 200, "train.eval_every": 50, "train.log_every": 10, "train.tensorboard": False}
if QUICK:
    knobs |= {"train.steps": 4, "train.eval_every": 2, "train.log_every": 1}
    knobs |= {"optim.learning_rate": 1e-2, "optim.warmup_steps": 0}
if not (RUN / "result.json").exists():
    mla_jax.train(mla_jax.load_config("smoke" if QUICK else "quickstart", **knobs), RUN)
run = runs.load_run(RUN)
seq_len = run.config.train.seq_len
tokens = np.asarray(prepare(run.config, run.tokenizer, quiet=True).valid.tokens[: 4 * seq_len]).reshape(4, seq_len)
spectra = cache_spectra(run, tokens)
spectrum_figure, spectrum_axes = plt.subplots(figsize=(7, 4), layout="constrained")
for row in spectra:
    if row["entry"] == "c_kv":
        label = f"layer {row['layer']}: effective rank {row['effective_rank']:.1f} of {row['width']}"
        values = row["singular_values"]
        spectrum_axes.plot(range(1, len(values) + 1), values, marker=".", label=label)
spectrum_axes.set(xlabel="direction", ylabel="singular value / largest", yscale="log")
spectrum_axes.legend()
