"""Muon against AdamW at size m, 3 seeds, and the wall-clock to a loss beside nanoGPT's recipe in torch.

    python -m mla_jax.main --mode study --config configs/study_muon.py --workdir studies/muon

Default block, no dropout, 1,000 steps of 64 x 512 (`study_muon:long`: 2,000), each optimizer at the best of 4 learning
rates (seed 0). On the embedded stories; `study_muon:files` with --config.common.data.path=TRAIN.txt (and .valid_path)
is the same on real ones, `study_muon:smoke` tries it with toy models and fewer runs. `study_muon:alone` and
`study_muon:files_alone`: one more seed of the best recipe, for a GPU that nothing else uses: its seconds. In pieces,
with torch's runs and the table of steps and seconds to a loss: launch/gpu_muon.sh. Paper C's claims are judged here at
size m, by study_optimizer at size s.
"""

from ml_collections import ConfigDict

from mla_jax.study import declare

# As many values each, around where its best one lay so far: Muon's took larger ones (docs/results/muon_cpu.md).
RATES = {"adamw": (5e-4, 1e-3, 2e-3, 4e-3), "muon": (1e-3, 2e-3, 4e-3, 8e-3)}


TRAINING = {"train.steps": 1000, "train.batch_size": 64, "train.seq_len": 512, "train.eval_every": 50}
VOCABULARY = {"short": 2048, "long": 2048, "alone": 2048, "files": 8192, "files_alone": 8192, "smoke": 320}
BEST = (2e-3,)  # Muon's; the rate that was best on both corpora (docs/results/muon_gpu.md)
TOY = {"model.n_layers": 1, "model.d_model": 32, "model.n_heads": 2, "model.max_len": 32, "sample.max_new_tokens": 8}
TOY |= {"data.stories": 200, "data.valid_stories": 20, "optim.warmup_steps": 2, "train.log_every": 2}
TOY |= {"train.steps": 20, "train.batch_size": 4, "train.seq_len": 32, "train.eval_every": 4}


def get_config(form: str = "short") -> ConfigDict:
    if form not in VOCABULARY:
        raise ValueError(f"{form!r} is not one of {', '.join(VOCABULARY)}: write e.g. study_muon:files")
    titles = {"files": ", on files of stories", "smoke": ": toy models", "long": ": long runs"}
    titles |= {"alone": ": seconds", "files_alone": ": seconds, on files of stories"}
    alone = form.endswith("alone")
    c = declare.new(
        "muon" if form == "short" else f"muon_{form}",
        "Muon against AdamW at size m" + titles.get(form, ""),
        papers=("C",),
        verdicts=form != "smoke" and not alone,
        reference="mla_rope_muon" if alone else "mla_rope_adamw",
    )
    declare.common(c, {"tokenizer.vocab_size": VOCABULARY[form], "train.tensorboard": False})
    training = TRAINING | {"checkpoint.every": 250} | ({"train.steps": 2000} if form == "long" else {})
    declare.tier(c, "headline", "xs" if form == "smoke" else "m", TOY if form == "smoke" else training)
    if alone:
        knobs = {"optim.name": "muon"}
        declare.point(c, "mla_rope_muon", "mla_rope", "headline", knobs, (3,), learning_rates=BEST)
        return c
    for name, rates in RATES.items():
        knobs, seeds = {"optim.name": name}, (0, 1, 2)
        if form == "smoke":
            rates, seeds = rates[1:3], (0, 1)
        declare.point(c, f"mla_rope_{name}", "mla_rope", "headline", knobs, seeds, 1, learning_rates=rates)
    # The same question without a schedule in the way: AdamW's best loss comes at the end of its cosine, where Muon, on
    # the way to it, still has a large rate. So Muon once more with 60 % of the steps and a whole cosine in them.
    steps = 6 * training["train.steps"] // 10 if form != "smoke" else 12
    knobs = {"optim.name": "muon", "train.steps": steps}
    declare.point(c, "mla_rope_muon_sooner", "mla_rope", "headline", knobs, seeds, 2, learning_rates=BEST)
    # The other half of a recipe: attention whose step is shorter. One seed: the table of seconds shows it.
    knobs = {"optim.name": "muon"}
    declare.point(c, "mha_rope_muon", "mha_rope", "headline", knobs, priority=2, learning_rates=RATES["muon"][1:3])
    return c
