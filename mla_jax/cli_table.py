"""The modes of the command line, and the one table of their flags."""

import dataclasses
from collections.abc import Callable
from typing import Any

from absl import flags
from ml_collections import config_flags

MODES = {  # what each does
    "train": "train a model by a config into a run folder; the same command goes on with an unfinished run",
    "eval": "losses of runs on held-out stories or a file, side by side",
    "sample": "write stories with a trained run",
    "export": "a run as a Hugging Face folder",
    "bench": "speed and memory of decoding and training",
    "study": "many runs by one study file, and their report",
    "judge": "have an LLM grade the stories of runs",
}


@dataclasses.dataclass(frozen=True)
class Flag:
    """define: absl's function that makes it. modes: those that read it. about: what --help says of it.

    knob: what training has in its place, "" = nothing. setting: the field of the config's section `bench` or `judge`
    that it sets in that mode, "" = none.
    """

    define: Callable[..., Any]
    default: Any
    modes: tuple[str, ...]
    about: str
    knob: str = ""
    setting: str = ""


_TEXT, _WHOLE, _REAL, _YES = flags.DEFINE_string, flags.DEFINE_integer, flags.DEFINE_float, flags.DEFINE_boolean
_TEXTS, _WHOLES = flags.DEFINE_multi_string, flags.DEFINE_multi_integer
_SAMPLE, _JUDGE, _BENCH, _STUDY, _TRAIN = ("sample",), ("judge",), ("bench",), ("study",), ("train",)
_SAMPLE_JUDGE = ("sample", "judge")

# The modes that do not read it read the run folder's own config.
CONFIG = Flag(
    config_flags.DEFINE_config_file,
    None,
    ("train", "study", "bench"),
    "a config file or the bare name of one; --config.KNOB=VALUE changes a knob of it",
)

# Name -> flag, as --help lists them, behind --config; those that every mode has: --workdir alone.
FLAGS = {
    "workdir": Flag(_TEXTS, [], tuple(MODES), "the run folder; eval, judge and bench take several"),
    "prompt": Flag(_TEXTS, [], _SAMPLE, "how a story begins; may be repeated", "sample.prompts"),
    "num_samples": Flag(_WHOLE, None, _SAMPLE, "stories per prompt", "sample.num_samples"),
    "max_new_tokens": Flag(
        _WHOLE,
        None,
        _SAMPLE_JUDGE,
        "at most so many tokens after the prompt",
        "sample.max_new_tokens",
        "judge.max_new_tokens",
    ),
    "temperature": Flag(_REAL, None, _SAMPLE_JUDGE, "0 is greedy", "sample.temperature", "judge.temperature"),
    "top_k": Flag(
        _WHOLE, None, _SAMPLE_JUDGE, "draw from the k likeliest tokens; 0 = from all", "sample.top_k", "judge.top_k"
    ),
    "top_p": Flag(_REAL, None, _SAMPLE, "draw from the likeliest tokens that hold this share; 1 = all", "sample.top_p"),
    "min_p": Flag(_REAL, None, _SAMPLE, "drop tokens below this share of the likeliest one; 0 = none", "sample.min_p"),
    "repetition_penalty": Flag(
        _REAL, None, _SAMPLE, "make tokens used before less likely; 1 = no", "sample.repetition_penalty"
    ),
    "stop": Flag(_TEXTS, [], _SAMPLE, "end a story before this string; may be repeated", "sample.stop"),
    "stream": Flag(_YES, False, _SAMPLE, "write stories as they come, one after the other"),
    "cache_dtype": Flag(
        _TEXT,
        None,
        ("sample", "eval"),
        "type of the KV cache: auto, bfloat16, float32 or int8 (eval: read the text through it)",
        "sample.cache_dtype",
    ),
    "seed": Flag(_WHOLE, None, _SAMPLE_JUDGE, "seed of the first row", "train.seed", "judge.seed"),
    "step": Flag(
        _WHOLE,
        None,
        ("sample", "eval", "judge", "export"),
        "the checkpoint to read (default: the best)",
        "train.steps",
    ),
    "coordinator_address": Flag(_TEXT, None, _TRAIN, "of several processes, HOST:PORT of process 0"),
    "num_processes": Flag(_WHOLE, None, _TRAIN, "of several processes, how many; 1 = this one alone"),
    "process_id": Flag(_WHOLE, None, _TRAIN, "of several processes, this one's number, from 0"),
    "init_timeout_s": Flag(_WHOLE, 300, _TRAIN, "of several processes, how long to wait for the others"),
    "base_url": Flag(_TEXT, None, _JUDGE, "an OpenAI-compatible endpoint ending in /v1", setting="judge.base_url"),
    "judge_model": Flag(_TEXT, None, _JUDGE, "the judging model, by the endpoint's name", setting="judge.model"),
    "rubric": Flag(_TEXT, None, _JUDGE, "paper_a, paper_b or tinystories", setting="judge.rubric"),
    "num_prompts": Flag(_WHOLE, None, _JUDGE, "beginnings that each run completes", setting="judge.num_prompts"),
    "pairwise": Flag(_YES, None, _JUDGE, "also compare every two runs, in both orders", setting="judge.pairwise"),
    "budget_usd": Flag(_REAL, None, _JUDGE, "stop before spending more", setting="judge.budget_usd"),
    "price_in": Flag(_REAL, None, _JUDGE, "US dollars per million tokens read", setting="judge.price_in"),
    "price_out": Flag(_REAL, None, _JUDGE, "US dollars per million tokens written", setting="judge.price_out"),
    "yes": Flag(_YES, None, _JUDGE, "do not ask before spending", setting="judge.yes"),
    "judge_knob": Flag(_TEXTS, [], _JUDGE, "NAME=VALUE of any other knob of the judge section"),
    "out": Flag(_TEXT, None, ("judge", "bench", "export"), "the folder to make (judge: of the study)"),
    "dtype": Flag(_TEXT, None, ("export",), "float32 (default) or bfloat16 weights", "model.dtype"),
    "suite": Flag(_TEXTS, [], _BENCH, "kernels, decode, prefill, memory, train or peers; several"),
    "quick": Flag(_YES, False, _BENCH, "tiny models and shapes, to see that it runs"),
    "point": Flag(_TEXTS, [], _BENCH, "only the points of the grid so named; may be repeated"),
    "only": Flag(_TEXT, None, _BENCH, "only measurements whose label has this in it; plain = no label"),
    "size": Flag(_TEXT, None, _BENCH, "size of the built-in grid", setting="bench.size"),
    "batch": Flag(
        _WHOLES, [], _BENCH, "rows that decode together; may be repeated", "train.batch_size", "bench.batches"
    ),
    "context": Flag(_WHOLES, [], _BENCH, "positions of the cache; may be repeated", "model.max_len", "bench.contexts"),
    "data.path": Flag(_TEXT, None, ("eval",), "a file of stories instead of the held-out part", "data.path"),
    "fact_stories": Flag(
        _WHOLE, 0, ("eval",), "put the fact questions of so many embedded stories too", "data.stories"
    ),
    "dry_run": Flag(_YES, False, _STUDY, "print the runs and their minutes, do nothing"),
    "max_minutes": Flag(
        _REAL, None, ("study", "bench"), "stop cleanly after so many minutes", setting="bench.max_minutes"
    ),
    "report_only": Flag(_YES, False, _STUDY, "write the report of the rows that there are"),
    "rows_only": Flag(_YES, False, _STUDY, "write no report: --report_only makes it later"),
    "sharing": Flag(_WHOLE, 1, _STUDY, "so many processes like this one take turns on its device"),
    "trace_experts": Flag(_YES, False, _SAMPLE, "also write which experts each token went to"),
}


def settings(section: str) -> dict[str, str]:
    """Flag -> field of the config's section `bench` or `judge` that it sets."""
    found = {name: flag.setting.partition(".") for name, flag in FLAGS.items()}
    return {name: field for name, (where, _, field) in found.items() if where == section}
