# %% [markdown]
# # 04 Experts at work
# A mixture of experts replaces the feed-forward layer by many small ones, of which each token goes through a few. A *router*
# chooses them by a score for each expert. Left alone it tends to send most tokens to a few; a bias on the scores, moved a
# little after every step against the load, keeps it even without disturbing the gradient. Here: 8 experts, of which a
# token gets 2, and one more that all tokens share. One to three minutes on two CPU cores.
# %% first
# %%
import html
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
# The *load* of an expert is how many tokens went to it. Drawn is the busiest expert's load over the mean load, in the layer
# where that is worst, between one line of the log and the next: 1 would be perfectly even, 4 is the worst that 2 of 8 can
# be. A single step scatters around what the bias aims at.
# %%
rows = read_rows(RUN / "metrics.jsonl")
worst = [(row["step"], row["expert_max_load_worst"]) for row in rows if row["kind"] == "train"]
figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
axes.plot(*zip(*worst, strict=True), marker=".")
axes.axhline(1, linestyle=":", color="gray", label="even")
axes.set(xlabel="optimizer step", ylabel="largest load / mean load", title="the worst layer")
_ = axes.legend()
# %% [markdown]
# Every expert of every layer, over the first steps and over the last ones. White is even, red busier, blue idler; the
# colours end at twice the mean.
# %%
experts = [row for row in rows if row["kind"] == "experts"]
early, load = (np.asarray(row["load"]) for row in (experts[0], experts[-1]))
heat_figure, heat_axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained", sharey=True)
for axis, row, values in zip(heat_axes, (experts[0], experts[-1]), (early, load), strict=True):
    image = axis.imshow(values, aspect="auto", vmin=0, vmax=2, cmap="RdBu_r")
    title = f"the {row['steps']} steps up to step {row['step']}"
    axis.set(xlabel="expert", title=title, yticks=range(len(values)), xticks=range(values.shape[1]))
heat_axes[0].set_ylabel("layer with experts")
_ = heat_figure.colorbar(image, ax=heat_axes, label="load / mean load", extend="max")
# %% [markdown]
# ## What do they work on?
# Stories that the model wrote, each token in the colour of the expert that was chosen first. The pointer on a token shows
# all of its experts with their weights; a click on an expert shows every token that it worked on. Layers in between are
# folded. Experts of small models take to word pieces and punctuation rather than to topics: is there one for the ends of
# sentences, or for names?
# %%
run = runs.load_run(RUN)
prompts = ["Once upon a time"] * 4
texts = mla_jax.Sampler.from_run(run).generate(prompts, max_new_tokens=16 if QUICK else 100, seed=3)
traces = expert_trace.trace(run, list(zip(prompts, texts, strict=True)))
page = expert_trace.render("notebook", traces, run.config.model.n_routed_experts)
try:
    from IPython.display import HTML, display

    frame = f'<iframe srcdoc="{html.escape(page)}" width="100%" height="600"></iframe>'  # its style stays inside
    display(HTML(f"<div>{frame}</div>"))
except ImportError:
    print(traces[0].tokens[:20], traces[0].experts[0, :20, 0])
# %% [markdown]
# Do tokens of one expert stay together in the next layer? Independent choices would fill the map evenly; a bright field is a
# pair of experts that share their tokens.
# %%
pairs = expert_trace.coactivation(traces, run.config.model.n_routed_experts)
pair_figure, pair_axes = plt.subplots(figsize=(4.5, 4), layout="constrained")
pair_image = pair_axes.imshow(pairs[0])
ticks = range(len(pairs[0]))
pair_axes.set(
    xlabel="expert of layer 1", ylabel="expert of layer 0", title="tokens that both saw", xticks=ticks, yticks=ticks
)
_ = pair_figure.colorbar(pair_image, label="tokens")
