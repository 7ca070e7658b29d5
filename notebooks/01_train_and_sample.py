# %% [markdown]
# # 01 Train a small language model and let it write
# A transformer with multi-head latent attention and RoPE learns from stories that `mla_jax` makes up itself.
# About two minutes on two CPU cores. On a GPU, raise `steps` and take `mla_rope:s`.
# %% first
# %%
from pathlib import Path

import matplotlib.pyplot as plt

import mla_jax
from mla_jax.rows import read_rows

RUN = Path("runs/notebook_01")
knobs = {"train.steps": 200, "train.eval_every": 50, "train.log_every": 10, "train.tensorboard": False}
if QUICK:
    knobs |= {"train.steps": 4, "train.eval_every": 2, "train.log_every": 1}
    knobs |= {"optim.learning_rate": 1e-2, "optim.warmup_steps": 0}
config = mla_jax.load_config("smoke" if QUICK else "quickstart", **knobs)
config.hash
# %% [markdown]
# `config` holds every knob, derived values included. The attention variant decides what the KV cache holds:
# %%
from mla_jax.accounting import mha_kv_bytes

kv, mha = mla_jax.kv_bytes(config.model), mha_kv_bytes(config.model)
print(f"KV cache: {kv} bytes a token, multi-head attention would take {mha}: {1 - kv / mha:.0%} saved")
# %% [markdown]
# Training makes a *run folder*. Run this cell again after an interruption: it goes on from the last checkpoint.
# %%
result = mla_jax.train(config, RUN)
# %%
rows = read_rows(RUN / "metrics.jsonl")
train = [(row["step"], row["loss"]) for row in rows if row["kind"] == "train"]
valid = [(row["step"], row["loss"]) for row in rows if row["kind"] == "eval"]
figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
axes.plot(*zip(*train, strict=True), alpha=0.6, label="training")
axes.plot(*zip(*valid, strict=True), marker="o", label="held-out stories")
axes.axhline(result.row["metrics"]["baseline_unigram"], linestyle=":", color="gray", label="word frequencies alone")
axes.set(xlabel="optimizer step", ylabel="loss (nats per token)")
axes.legend()
# %% [markdown]
# ## Sampling
# A run folder stands alone: copy it anywhere and it samples. The same prompt at three temperatures:
# %%
sampler = mla_jax.Sampler.from_run(RUN)
stories = {
    temperature: sampler.generate(
        ["Once upon a time"], max_new_tokens=16 if QUICK else 120, temperature=temperature, seed=1
    )[0]
    for temperature in (0.0, 0.8, 1.5)
}
for temperature, text in stories.items():
    print(f"--- temperature {temperature}\nOnce upon a time{text}\n")
# %% [markdown]
# ## How good is it, and where?
# Every held-out token once. At a window's beginning the model has read nothing of the story, and is worst. After so short
# a training it uses a few words before the next one; a longer one makes the curve fall further along the window.
# %%
evaluation = mla_jax.evaluate(RUN)
by_position = evaluation.result.by_position()
width = max(1, len(by_position) // 8)
bins = [by_position[i : i + width].mean() for i in range(0, len(by_position) - width + 1, width)]
position_figure, position_axes = plt.subplots(figsize=(7, 3), layout="constrained")
position_axes.plot([i * width for i in range(len(bins))], bins, marker="o")
position_axes.set(xlabel="position in the window", ylabel="loss")
print(f"{evaluation.result.loss:.4f} nats per token, {evaluation.result.bits_per_byte:.4f} bits per byte")
