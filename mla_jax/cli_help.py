"""What --help prints. Defaults and explanations are read from configs/base.py, where they stand once."""

import re
import shutil
import textwrap
from typing import Any

from ml_collections import ConfigDict

from mla_jax import config_files
from mla_jax.main import EXIT_CODES

MOST_USED = (
    "data.path",
    "tokenizer.vocab_size",
    "model.attention",
    "model.n_layers",
    "model.d_model",
    "model.max_len",
    "model.ffn",
    "train.steps",
    "train.batch_size",
    "train.microbatches",
    "train.seq_len",
    "train.eval_every",
    "train.seed",
    "optim.learning_rate",
    "init_from",
)


def overview(modes: dict[str, str], flags: dict[str, list[str]]) -> str:
    """The first page. modes: what each does; flags: those of each."""
    base = config_files.load_config_dict("base")
    names = [name for name in config_files.names() if name != "base"]
    return "\n".join(
        [
            "Trains, samples and measures small language models with a compressed KV cache.",
            "",
            "  python -m mla_jax.main --config quickstart --workdir runs/first",
            '  python -m mla_jax.main --mode sample --workdir runs/first --prompt "One day"',
            "",
            "Modes (--mode, else train) and their flags; --mode MODE --help explains them:",
            *_table({mode: f"{does}: {' '.join(flags[mode])}" for mode, does in modes.items()}),
            "",
            *_wrapped(f"Configs (--config NAME or FILE.py): {', '.join(names)}."),
            *_wrapped(f"Most take a size (mla_rope:s): {', '.join(config_files.sizes())}; m where it is left out."),
            *_wrapped(f"Studies, for --mode study: {', '.join(config_files.study_names())}."),
            "",
            "The most used knobs of a config (--config.KNOB=VALUE) and their defaults;",
            "named configs change some: --config NAME --help lists every knob as it is there.",
            *_knobs(base, MOST_USED),
            "",
            "Any flag may stand in a file, one a line: --flagfile FILE.",
            "",
            "Exit codes:",
            *_table({str(code): meaning for code, meaning in EXIT_CODES.items()}),
        ]
    )


def mode_page(mode: str, does: str, about: dict[str, tuple[str, Any]]) -> str:
    """The flags of one mode. about: explanation and default (None, [] and False go unsaid) of each."""
    rows = {
        flag: text + (f" (default: {default})" if default not in (None, [], False) else "")
        for flag, (text, default) in about.items()
    }
    notes = {
        "sample": ["", "What is not given is as in the `sample` section of the run's own config.json."],
        "train": ["", "--config NAME --help lists the knobs of a config."],
        "study": [
            "",
            "A study's own settings (configs/study_base.py) are set like knobs:",
            *_table(
                {
                    """--config.only="('mha','mla')\"""": "these points alone",
                    "--config.common.data.path=FILE": "other stories",
                    '--config.points.mha.seeds="(0,1)"': "other seeds of a point",
                }
            ),
        ],
    }
    return "\n".join([*_wrapped(f"--mode {mode}: {does}."), *_table(rows), *notes.get(mode, [])])


def knobs_page(config: ConfigDict) -> str:
    """Every knob of a config as the command line leaves it."""
    note = '0, "" and "auto" mean "derived"; what was derived stands in the config.json of a run folder.'
    return "\n".join(["Every knob (--config.KNOB=VALUE) as it is in this config:", *_knobs(config), "", note])


def explanations() -> dict[str, str]:
    """{"model.d_model": its comment in configs/base.py, or ""}, in that file's order (a ConfigDict has none)."""
    sections, found = {"c": ""}, {}
    for line in (config_files.config_dir() / "base.py").read_text(encoding="utf-8").splitlines():
        if opened := re.match(r"\s+c\.(\w+) = (\w+) = ConfigDict\(\)", line):
            sections[opened[2]] = f"{opened[1]}."
        elif (knob := re.match(r"\s+(\w+)\.(\w+) = ", line)) and knob[1] in sections:
            found[sections[knob[1]] + knob[2]] = line.partition("  # ")[2]
    return found


def _knobs(config: ConfigDict, names: tuple[str, ...] = ()) -> list[str]:
    texts, rows = explanations(), {}
    held = set(config_files.knobs(config))
    for name in names or [*(name for name in texts if name in held), *sorted(held - texts.keys())]:
        value: Any = config
        for part in name.split("."):
            value = value[part]
        rows[f"{name}={value!r}"] = texts.get(name, "")
    return _table(rows)


def _table(rows: dict[str, str]) -> list[str]:
    """Lines of two columns: names, and texts wrapped to the terminal. A longer name has a line of its own."""
    left = min(34, max(map(len, rows)) + 2)
    lines = []
    for name, text in rows.items():
        first, *more = textwrap.wrap(text, _width() - 2 - left, break_on_hyphens=False) or [""]
        if len(name) > left - 2:
            lines.append(f"  {name}")
            name = ""
        lines.append(f"  {name:{left}}{first}".rstrip())
        lines += [" " * (left + 2) + line for line in more]
    return lines


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _width(), subsequent_indent="  ", break_on_hyphens=False)


def _width() -> int:
    return max(60, min(shutil.get_terminal_size((100, 24)).columns, 120))
