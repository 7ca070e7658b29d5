# %% [markdown]
# # 01 Train a small language model and let it write
# A transformer with multi-head latent attention and rotary positions (MLA+RoPE) learns from stories that `mla_jax` makes
# up itself: nothing is downloaded. Two to four minutes on two CPU cores. On a GPU, take `mla_rope:s` and 2,000 steps.
#
# The first cell installs the package where it is missing.
# %% first
# %%
from pathlib import Path

import matplotlib.pyplot as plt

import mla_jax
from mla_jax.rows import read_rows

RUN = Path("runs/notebook_01")
knobs = {"train.steps": 400, "train.eval_every": 50, "train.log_every": 20, "train.tensorboard": False}
if QUICK:
    knobs |= {"train.steps": 4, "train.eval_every": 2, "train.log_every": 1}
    knobs |= {"optim.learning_rate": 1e-2, "optim.warmup_steps": 0}
config = mla_jax.load_config("smoke" if QUICK else "quickstart", **knobs)
m = config.model
print(f"{m.n_layers} layers, {m.d_model} wide, {m.n_heads} heads; {config.train.steps} steps; config {config.hash}")
# %% [markdown]
# A config is a named starting point and the knobs that differ from it (`configs/base.py` in the repository explains each
# one); `config.hash` tells two configs apart. To write the next token, a model keeps something of every token before it:
# the KV cache. The attention variant decides how much:
# %%
from mla_jax.accounting import mha_kv_bytes

kv, mha = mla_jax.kv_bytes(config.model), mha_kv_bytes(config.model)
print(f"KV cache: {kv:,} bytes a token; multi-head attention would keep {mha:,}: {1 - kv / mha:.0%} saved")
# %% [markdown]
# Training makes a *run folder* with everything about the run. Run this cell again after an interruption: it goes on from
# the last checkpoint. *Loss* is the mean surprise at the next token in nats: a model that gives it the probability $p$ has
# $-\ln p$. One nat less is a right guess 2.7 times as likely.
# %%
result = mla_jax.train(config, RUN)
# %% [markdown]
# Held-out stories were never trained on. Where their curve stays with the training curve, the model has learned how such
# stories go, and not these stories by heart. The dotted line is a model that knows how frequent each token is, no more.
# %%
rows = read_rows(RUN / "metrics.jsonl")
train = [(row["step"], row["loss"]) for row in rows if row["kind"] == "train"]
valid = [(row["step"], row["loss"]) for row in rows if row["kind"] == "eval"]
figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
axes.plot(*zip(*train, strict=True), alpha=0.6, label="training")
axes.plot(*zip(*valid, strict=True), marker="o", label="held-out stories")
axes.axhline(result.row["metrics"]["baseline_unigram"], linestyle=":", color="gray", label="token frequencies alone")
axes.set(xlabel="optimizer step", ylabel="loss (nats per token)", ylim=(0, None), title="learning curve")
_ = axes.legend()
# %% [markdown]
# ## Sampling
# A run folder stands alone: copy it anywhere and it samples. The same prompt at three temperatures: at 0 the likeliest
# token is taken every time, which soon repeats itself; at 1.5 unlikely ones come often, and words fall apart.
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
# Every held-out token once, by its place in the window of tokens that the model reads. At the beginning the model has read
# nothing yet, and is worst. How far along the window the curve goes on falling shows how far back the model makes use of
# what it read: after so short a training that is not far.
# %%
evaluation = mla_jax.evaluate(RUN)
by_position = evaluation.result.by_position()
width = max(1, len(by_position) // 8)
bins = [by_position[i : i + width].mean() for i in range(0, len(by_position) - width + 1, width)]
position_figure, position_axes = plt.subplots(figsize=(7, 3), layout="constrained")
position_axes.plot([(i + 0.5) * width for i in range(len(bins))], bins, marker="o")
position_axes.set(xlabel=f"position in the window (token; means of {width})", ylabel="loss (nats per token)")
print(f"{evaluation.result.loss:.4f} nats per token, {evaluation.result.bits_per_byte:.4f} bits per byte")
