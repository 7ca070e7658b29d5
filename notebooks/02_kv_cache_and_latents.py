# %% [markdown]
# # 02 What the KV cache costs, and what a latent is
# To write token after token, a transformer keeps keys and values of all earlier ones: the KV cache. At size m in 16 bits
# multi-head attention (MHA) keeps 18,432 bytes a token. Grouped-query attention (GQA) lets several heads share keys and
# values. Multi-head latent attention (MLA) keeps a short vector instead, the *latent*, from which the keys and values of
# all heads can be computed. r is the latent's width, d the model's.
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
axes.barh(list(numbers), list(numbers.values()), color=["gray"] + ["C0"] * 5)
axes.invert_yaxis()
axes.set(xlabel="numbers in the cache per token and layer (size m)", xlim=(0, 1250))
for label, value in numbers.items():
    saved = "" if label == "MHA" else f" ({1 - value / numbers['MHA']:.1%} saved)"
    axes.annotate(f" {value:,}{saved}", (value, label), va="center")
# %% [markdown]
# What that makes in memory, for 1,000 stories of 512 tokens written side by side at size m (9 layers, 2 bytes a number):
# %%
for label, model in models.items():
    print(f"{label:28s} {accounting.kv_bytes(model) * 512 * 1000 / 1e9:6.2f} GB")
# %% [markdown]
# ## The equations, step by step
# One layer of MLA+RoPE with few numbers, so that every array can be printed: DeepSeek-V2 (arXiv 2405.04434), eq. 9-19.
# B rows (texts), T tokens, D the model's width, H heads, N unrotated and R rotary numbers of a key, V numbers of a value,
# C numbers of the latent.
#
# **1. Down.** Each token's vector $x_t$ becomes a latent, normalised: $c_t = \mathrm{RMSNorm}(x_t W_{DKV})$.
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
print("latents, a row a token:\n", np.round(np.asarray(c_kv[0]), 2))
# %% [markdown]
# **2. Positions.** RoPE turns pairs of numbers by an angle that grows with the position, so that a score depends on the
# distance between two tokens alone. Turned keys would put a rotation between the query and $W_{UK}$, in the way of step 4;
# so a few numbers beside the latent carry the position: $k^R_t = \mathrm{RoPE}(x_t W_{KR})$, one key for all heads.
# %%
from mla_jax.model.functions import apply_rope, rope_angles

cos, sin = rope_angles(jnp.arange(T)[None], R, 10000.0)
k_rope = apply_rope((x @ w_kr)[:, :, None], cos, sin)[:, :, 0]  # ... and this, after its rotation
q_nope, q_rope = jnp.split(jnp.einsum("btd,dhk->bthk", x, w_q), [N], axis=-1)
q_rope = apply_rope(q_rope, cos, sin)
cached, ordinary = C + R, H * (N + R) + H * V
print(f"cached per token: c_kv and k_rope, {cached} numbers, instead of k and v of {H} heads, {ordinary} numbers")
# %% [markdown]
# **3. Expanded** (training, prefill): keys and values are computed from the latents, $k^i_s = c_s W^i_{UK}$ and
# $v^i_s = c_s W^i_{UV}$ for head $i$, and ordinary attention follows. A score of query $t$ with token $s$ is
# $(q^i_t \cdot k^i_s + q^{R,i}_t \cdot k^R_s) / \sqrt{N + R}$.
# %%
k_nope = jnp.einsum("bsc,chn->bshn", c_kv, w_uk)
v = jnp.einsum("bsc,chv->bshv", c_kv, w_uv)
scale = (N + R) ** -0.5
causal = jnp.tril(jnp.ones((T, T), bool))
rotary = jnp.einsum("bthr,bsr->bhts", q_rope, k_rope)
logits = (jnp.einsum("bthn,bshn->bhts", q_nope, k_nope) + rotary) * scale
weights = jax.nn.softmax(jnp.where(causal, logits, -1e30), axis=-1)
expanded = jnp.einsum("bhts,bshv->bthv", weights, v)
print("attention of head 0, a row a query; no token sees a later one:\n", np.round(np.asarray(weights[0, 0]), 2))
# %% [markdown]
# **4. Absorbed** (decode): $q \cdot (c W_{UK})$ is $(q W_{UK}^\top) \cdot c$. The query is taken to the latent's space
# once, attention runs over the latents themselves, and $W_{UV}$ comes last, on the one vector that attention returns. The
# keys and values are never made: a step reads C + R numbers a token instead of H (N + R + V). The rotary part of the
# scores is the same as above.
# %%
q_latent = jnp.einsum("bthn,chn->bthc", q_nope, w_uk)
logits = (jnp.einsum("bthc,bsc->bhts", q_latent, c_kv) + rotary) * scale
weights = jax.nn.softmax(jnp.where(causal, logits, -1e30), axis=-1)
absorbed = jnp.einsum("bthc,chv->bthv", jnp.einsum("bhts,bsc->bthc", weights, c_kv), w_uv)
difference = float(jnp.abs(expanded - absorbed).max())
print(f"largest difference between the two forms: {difference:.1e} (float32 rounds at about 1e-7)")
# %% [markdown]
# So both forms are one function, and `mla_jax` uses each where it is cheaper. Absorbed pays in decoding, where reading the
# cache takes the time; in training, where all queries share the keys, it would cost more products than it saves.
#
# ## How many directions does a trained cache use?
# The latents of many tokens form a cloud in C dimensions. Its singular values say how far it reaches along each direction.
# Where they fall off quickly, a shorter latent would lose little; the *effective rank* puts that in one number (C if all
# directions are alike, 1 if there is only one). The model is the small one of notebook 01.
# %%
from pathlib import Path

from mla_jax import runs
from mla_jax.data.prepare import prepare
from mla_jax.study.spectra import cache_spectra

RUN = Path("runs/notebook_01")  # of the first notebook; trained here when it is missing
knobs = {"train.steps": 400, "train.eval_every": 50, "train.log_every": 20, "train.tensorboard": False}
if QUICK:
    knobs |= {"train.steps": 4, "train.eval_every": 2, "train.log_every": 1}
    knobs |= {"optim.learning_rate": 1e-2, "optim.warmup_steps": 0}
if not (RUN / "result.json").exists():
    mla_jax.train(mla_jax.load_config("smoke" if QUICK else "quickstart", **knobs), RUN)
run = runs.load_run(RUN)
seq_len = run.config.train.seq_len
tokens = np.asarray(prepare(run.config, run.tokenizer, quiet=True).valid.tokens[: 4 * seq_len]).reshape(4, seq_len)
spectra = cache_spectra(run, tokens, kept=None)
spectrum_figure, spectrum_axes = plt.subplots(figsize=(7, 4), layout="constrained")
for row in spectra:
    if row["entry"] == "c_kv":
        label = f"layer {row['layer']}: effective rank {row['effective_rank']:.1f} of {row['width']}"
        values = row["singular_values"]
        spectrum_axes.plot(range(1, len(values) + 1), values, marker=".", label=label)
spectrum_axes.set(xlabel="direction of the latent, the widest first", ylabel="singular value / largest", yscale="log")
_ = spectrum_axes.legend()
# %% [markdown]
# Whether a shorter latent really costs nothing is for training to say: notebook 03.
