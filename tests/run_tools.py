"""What the tests of runs share: a small corpus, a small config and the command line in a process of its own."""

import hashlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from mla_jax.config import Config
from mla_jax.config_files import load_config

REPOSITORY = Path(__file__).resolve().parents[1]
WORDS = (
    "once upon",
    "a time",
    "the little fox",
    "found",
    "an old key",
    "and ran home",
    "to her mother",
    "who was glad",
)
# A run of seconds. Tests change steps and what is kept only: anything else would compile anew (10 s).
SMALL = {
    "model.d_model": 16,
    "model.max_len": 64,
    "model.dropout": 0.1,
    "tokenizer.vocab_size": 320,
    "data.valid_fraction": 0.1,
    "train.steps": 10,
    "train.batch_size": 4,
    "train.microbatches": 2,
    "train.seq_len": 32,
    "train.log_every": 1,
    "train.eval_every": 5,
    "train.tensorboard": False,
    "optim.warmup_steps": 2,
    "optim.decay_steps": 50,  # fixed, so that runs of other lengths find the same compiled step
    "optim.learning_rate": 1e-2,
    "sample.max_new_tokens": 8,
}


def story_texts(count: int, seed: int = 0) -> list[str]:
    """Different little texts of 5 to 40 words."""
    rng = random.Random(seed)
    return [f"Story {i}: {' '.join(rng.choices(WORDS, k=rng.randint(5, 40)))}." for i in range(count)]


def write_stories(path: Path, count: int = 200, seed: int = 0) -> Path:
    path.write_text("\n<|endoftext|>\n".join(story_texts(count, seed)), encoding="utf-8")
    return path


def small_config(stories: Path, **knobs: object) -> Config:
    """The smoke config at SMALL's size, on a file of stories."""
    return load_config("smoke", **(SMALL | {"data.path": str(stories)} | knobs))


def train_flags(stories: Path, workdir: Path, **knobs: object) -> list[str]:
    """The command line that trains `small_config` in `workdir`."""
    values = SMALL | {"data.path": str(stories)} | knobs
    return ["--config=smoke", f"--workdir={workdir}", *(f"--config.{name}={value}" for name, value in values.items())]


def start(*arguments: object, cache: Path, **more: object) -> subprocess.Popen:
    """`python -m mla_jax.main ARGUMENTS` in a process of its own, its output kept."""
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    environment |= {"MLA_JAX_CACHE": str(cache), "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "mla_jax.main", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, **(pipes | more))


def call(*arguments: object, cache: Path, code: int = 0, **more: object) -> str:
    """`start`, waited for: its standard output and error. Fails unless the exit code is `code`."""
    process = start(*arguments, cache=cache, **more)
    try:
        out, err = process.communicate(timeout=600)
    finally:
        process.kill()
    assert process.returncode == code, f"exit code {process.returncode}\n{out}\n{err}"
    return out + err


def listing(folder: Path) -> dict[str, str]:
    """{path under folder: hash of its content}: equal listings mean that nothing was written."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }


def edit_json(path: Path, change: Callable[[dict], object]) -> None:
    """Change what a JSON file holds."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
