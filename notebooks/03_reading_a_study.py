# %% [markdown]
# # 03 Reading a study
# Does a latent cost quality? One training run cannot tell: another seed moves the loss too. A *study* trains each variant
# with several seeds and says how far the difference can be trusted. Here: toy models, about three minutes on two cores.
# %% first
# %%
from pathlib import Path

import rich.console

from mla_jax.study import claim_tables, declare, grid, plots, series, study_mode, tables
from mla_jax.study.results import collect, relative
from mla_jax.study.rows import gather
from mla_jax.study.stats import estimate

TOY = {
    "model.n_layers": 1 if QUICK else 2,
    "model.d_model": 16 if QUICK else 48,
    "model.n_heads": 2 if QUICK else 4,
    "model.max_len": 128,
    "tokenizer.vocab_size": 320 if QUICK else 512,
    "data.stories": 60 if QUICK else 2000,
    "data.valid_stories": 6 if QUICK else 60,
    "train.steps": 4 if QUICK else 100,
    "train.batch_size": 4 if QUICK else 16,
    "train.seq_len": 32 if QUICK else 64,
    "train.eval_every": 2 if QUICK else 20,
    "train.tensorboard": False,
    "optim.learning_rate": 4e-3,
    "sample.max_new_tokens": 8 if QUICK else 48,
}
c = declare.new("notebook", "A study in a notebook", verdicts=False)
declare.tier(c, "headline", "xs", TOY, fact_stories=2 if QUICK else 20, stories=1)
seeds = (0,) if QUICK else (0, 1, 2)
declare.point(c, "mha", "mha_rope", "headline", seeds=seeds)
declare.point(c, "mla_rope", "mla_rope", "headline", seeds=seeds)
study = grid.from_config_dict(c)
# %% [markdown]
# The same study from the command line would be `--mode study --config my_study.py --workdir studies/notebook`. Run this cell
# again after an interruption: what is done is not done again.
# %%
FOLDER = Path("studies/notebook")
study_mode.run(study, str(FOLDER), None, rich.console.Console())
# %% [markdown]
# Every run left one row, and all that follows is made from rows alone.
# %%
found = collect(study, gather(FOLDER))
print(tables.main(found, "headline"))
# %% [markdown]
# ## Two ways to compare
# Intervals of the two losses are wide: they have the scatter of the seeds in them. But equal seeds saw the same batches
# in the same order, so the *difference by seed* has less of it.
# %%
difference = estimate(relative(found.find("mla_rope"), found.find("mha")))
print("MLA+RoPE less MHA+RoPE, per cent of the loss:", claim_tables.measured(difference, ""))
print(f"a difference of {difference.detectable:.2f} % would have been seen four times out of five")
# %% [markdown]
# A verdict needs the whole interval on one side. "Not different" is never shown by a wide interval, only by a narrow one.
# %%
lines = series.curves(found, "headline")
figure = plots.draw(lines, "step", "validation loss", title="bands: range over seeds")
# %%
pareto = series.pareto(found, "headline")
pareto_figure = plots.draw(pareto, "KV numbers a token and layer", "validation loss", log_x=2, marks=True)
# %% [markdown]
# ## Story by story
# The same held-out stories, each compared with itself: how other *stories* would move the difference. It says nothing
# about other seeds; both errors belong in a claim.
# %%
print(tables.by_story(found))
# %% [markdown]
# ## What the papers claim
# Some claims need no training at all: arithmetic decides them. `docs/how-to/reproduce_a_table.md` has the whole studies.
# %%
from mla_jax.study import arithmetic

for fact in (arithmetic.cache_45, arithmetic.cache_68, arithmetic.combinations):
    text, verdict = fact()
    print(f"{verdict}: {text}")
