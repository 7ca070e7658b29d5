# %% [markdown]
# # 04 Experts at work
# A mixture of experts replaces the feed-forward layer by many small ones, of which a token meets a few. A *router* chooses,
# and a bias on its scores, moved a little after every step, keeps the load even without disturbing the gradient.
# %% first
# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import mla_jax
from mla_jax import runs
from mla_jax.rows import read_rows
from mla_jax.sample import expert_trace

RUN = Path("runs/notebook_04")
EXPERTS = {"ffn": "moe", "n_routed_experts": 8, "n_shared_experts": 1, "top_k": 2, "d_expert": 48}
knobs = {f"model.{name}": value for name, value in EXPERTS.items()} | {"model.router_bias_rate": 1e-2}
knobs |= {"train.steps": 200, "train.eval_every": 25, "train.log_every": 5, "train.tensorboard": False}
if QUICK:
    knobs |= {"train.steps": 6, "train.eval_every": 2, "train.log_every": 1, "optim.warmup_steps": 0}
config = mla_jax.load_config("smoke" if QUICK else "quickstart", **knobs)
result = mla_jax.train(config, RUN)
# %% [markdown]
# ## Is the load even?
# The busiest expert's load over the mean, worst layer: 1 is even. The bias pulls it down.
# %%
rows = read_rows(RUN / "metrics.jsonl")
worst = [(row["step"], row["expert_max_load_worst"]) for row in rows if row["kind"] == "train"]
figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
axes.plot(*zip(*worst, strict=True))
axes.axhline(1, linestyle=":", color="gray")
axes.set(xlabel="optimizer step", ylabel="largest load / mean load")
# %% [markdown]
# Every expert of every layer, after the first steps and at the end (1 = even; the map ends at 2):
# %%
experts = [row for row in rows if row["kind"] == "experts"]
early, load = (np.asarray(row["load"]) for row in (experts[0], experts[-1]))
heat_figure, heat_axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained", sharey=True)
for axis, row, values in zip(heat_axes, (experts[0], experts[-1]), (early, load), strict=True):
    image = axis.imshow(values, aspect="auto", vmin=0, vmax=2)
    axis.set(xlabel="expert", title=f"step {row['step']}", yticks=range(len(values)), xticks=range(values.shape[1]))
heat_axes[0].set_ylabel("layer with experts")
heat_figure.colorbar(image, ax=heat_axes, label="load / mean load")
# %% [markdown]
# ## What do they work on?
# Each token in the colour of its first expert; rest the pointer on one for all of its experts and their weights.
# %%
run = runs.load_run(RUN)
prompts = ["Once upon a time"] * 4
texts = mla_jax.Sampler.from_run(run).generate(prompts, max_new_tokens=16 if QUICK else 100, seed=3)
traces = expert_trace.trace(run, list(zip(prompts, texts, strict=True)))
page = expert_trace.render("notebook", traces, run.config.model.n_routed_experts)
try:
    from IPython.display import HTML, display

    display(HTML(page))
except ImportError:
    print(traces[0].tokens[:20], traces[0].experts[0, :20, 0])
# %% [markdown]
# Which expert of one layer hands over to which of the next?
# %%
pairs = expert_trace.coactivation(traces, run.config.model.n_routed_experts)
pair_figure, pair_axes = plt.subplots(figsize=(4.5, 4), layout="constrained")
pair_image = pair_axes.imshow(pairs[0])
ticks = range(len(pairs[0]))
pair_axes.set(
    xlabel="expert of layer 1", ylabel="expert of layer 0", title="tokens that both saw", xticks=ticks, yticks=ticks
)
pair_figure.colorbar(pair_image, label="tokens")
