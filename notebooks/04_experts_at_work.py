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
# %%
experts = [row for row in rows if row["kind"] == "experts"]
load = np.asarray(experts[-1]["load"])
heat_figure, heat_axes = plt.subplots(figsize=(7, 3), layout="constrained")
image = heat_axes.imshow(load, aspect="auto", vmin=0, vmax=2)
heat_axes.set(xlabel="expert", ylabel="layer with experts", title="load over the last steps (1 = even)")
heat_figure.colorbar(image)
# %% [markdown]
# ## What do they work on?
# Each token in the colour of its first expert. Spaces, names and verbs often have experts of their own.
# %%
run = runs.load_run(RUN)
prompt = "Once upon a time"
text = mla_jax.Sampler.from_run(run).generate([prompt], max_new_tokens=16 if QUICK else 100, seed=3)[0]
traces = expert_trace.trace(run, [(prompt, text)])
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
pair_axes.imshow(pairs[0])
pair_axes.set(xlabel="expert of layer 1", ylabel="expert of layer 0", title="tokens that both saw")
