# %% [markdown]
# # 03 Reading a study
# Does a latent cost quality? One training run cannot tell: another seed moves the loss too. A *study* trains each variant
# with several seeds and says how far the difference can be trusted. Here two variants, MHA and MLA, both with RoPE, three
# seeds each. The models are toys, so that six trainings take one to three minutes on two cores: read *how* things are
# compared, and nothing about the variants.
# %% first
# %%
from pathlib import Path

import matplotlib.pyplot as plt
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
# The same study from the command line would be `--mode study --config my_study.py --workdir studies/notebook`. Run the cell
# again after an interruption: what is done is not done again. What each training printed is in `studies/notebook/logs/`.
# %%
FOLDER = Path("studies/notebook")
_ = study_mode.run(study, str(FOLDER), None, rich.console.Console())
# %% [markdown]
# Every run left one row, and all that follows is made from rows alone. A cell "4.84 ± 0.34 (3)" is a mean, half of its 95 %
# interval and the number of seeds: were the whole study repeated with other seeds again and again, 95 of 100 such
# intervals would hold the mean over all seeds.
# %%
found = collect(study, gather(FOLDER))


def show(text):
    """A report's table, as the notebook draws Markdown; as plain text outside of notebooks."""
    try:
        from IPython.display import Markdown, display

        display(Markdown(text))
    except ImportError:
        print(text)


show(tables.main(found, "headline"))
# %% [markdown]
# ## Two ways to compare
# Intervals of the two losses are wide: the scatter of the seeds is in them. But equal seeds saw the same batches in the
# same order, so what a seed does to one variant it mostly does to the other, and the *difference by seed* (paired) is
# known better than either loss.
# %%
difference = estimate(relative(found.find("mla_rope"), found.find("mha")))
print("MLA+RoPE less MHA+RoPE, per cent of the loss:", claim_tables.measured(difference, ""))
print(f"a difference of {difference.detectable:.2f} % would have been seen four times out of five")
# %% [markdown]
# A verdict needs the whole interval on one side. "Not different" is never shown by a wide interval, only by a narrow one:
# hence the last line, the smallest difference that this study could have seen. But an interval is about seeds only. After
# 100 steps of a toy it says who begins faster; whether that lasts, it cannot know.
# %%
lines = series.curves(found, "headline")
figure = plots.draw(
    lines, "optimizer step", "validation loss (nats per token)", title="bands: range over seeds", subplots=plt.subplots
)
# %% [markdown]
# What a study is after: loss over cache. Further left is a smaller cache, further down a better model; bars are 95 %
# intervals over seeds, and not of the paired difference, which is narrower.
# %%
pareto = series.pareto(found, "headline")
labels = "numbers in the cache per token and layer", "validation loss (nats per token)"
pareto_figure = plots.draw(pareto, *labels, marks=True, subplots=plt.subplots)
# %% [markdown]
# ## Story by story
# The same held-out stories, each compared with itself: how other *stories* would move the difference. It says nothing
# about other seeds; both errors belong in a claim.
# %%
show(tables.by_story(found))
# %% [markdown]
# ## What the papers claim
# Some claims need no training at all: arithmetic decides them. `docs/how-to/reproduce_a_table.md` has the whole studies.
# %%
from mla_jax.study import arithmetic

for fact in (arithmetic.cache_45, arithmetic.cache_68, arithmetic.combinations):
    text, verdict = fact()
    print(f"{verdict}: {text}")
