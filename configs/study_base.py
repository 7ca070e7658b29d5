"""Every setting of a study, once, with a comment. The files study_*.py fill in tiers and points.

    python -m mla_jax.main --mode study --config configs/study_smoke.py --workdir studies/smoke

A *point* is a named config with some knobs set, and the seeds it is trained with; a *tier* is what points share (size,
length of training, what is measured); `common` is what the whole study shares. Later ones win: common, tier, point.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.name = "study"  # in rows, reports and file names
    c.title = "A study"  # heads the report
    c.papers = ()  # whose claims the report judges: "A", "B", "C" (mla_jax/study/claims.py)
    c.verdicts = True  # False: too small to judge a paper by; the report shows figures and no verdicts on them
    c.reference = "mha"  # the point that others are compared with, story by story
    c.common = ConfigDict()  # knobs of every run, by section
    c.common.data = ConfigDict()
    c.common.data.path = ""  # stories to train on; "" = the embedded ones
    c.common.data.valid_path = ""  # "" = data.valid_fraction of data.path
    c.tiers = ConfigDict()  # name -> settings; mla_jax.study.declare.tier adds one
    c.points = ConfigDict()  # name -> settings; mla_jax.study.declare.point adds one
    c.only = ()  # names of points: a call with it does these alone, and reports what it has of them; () = all
    c.keep_checkpoints = False  # True: keep the weights of finished runs; rows are complete without them
    c.plan_device = "NVIDIA H100 80GB HBM3"  # whose minutes --dry_run counts
    # What --dry_run counts with while no row of that device has been measured. H100, docs/results: size m trains at
    # 1.35-1.5 and size s at 1.8 million tokens/s, which is these two figures; experts are an estimate.
    c.plan_flops = 3.4e14  # FLOP/s of a step
    c.plan_step_s = 0.004  # and seconds a step whatever its size
    c.plan_experts = 2.0  # times as long with experts as their FLOPs say
    c.plan_overhead_s = 25.0  # seconds a run costs beside its steps (compiling, evaluating)
    return c
