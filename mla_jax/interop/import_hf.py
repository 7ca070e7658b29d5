"""A Hugging Face folder as a run folder, to sample, evaluate, judge or start training from (`--config.init_from`).

python -m mla_jax.interop.import_hf --hf DIR --workdir RUN [--tokenizer FILE.model]
"""

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from mla_jax import checksums, files, places
from mla_jax import config as config_lib
from mla_jax.errors import run_command
from mla_jax.interop import card, folders, hf, manifest
from mla_jax.runs import Run, RunFolder


def to_run(folder: str | os.PathLike, workdir: str | os.PathLike, tokenizer: str | os.PathLike | None = None) -> Path:
    """Write a run folder with one checkpoint, of the exported step (0 for a foreign model), and no optimizer state.

    Raises UserError as `hf.load` does, and for a `workdir` that is not new or empty; nothing has been written then.
    """
    workdir = Path(workdir)
    folders.check_place(workdir, "--workdir")
    places.check_for_checkpoints(workdir, "--workdir")
    run = hf.load(folder, tokenizer)
    told = manifest.read(Path(folder))
    with folders.built_aside(workdir, "--workdir") as building:
        _write(RunFolder(building), run, told.data if told else _foreign_data(run))
    return workdir


def _write(folder: RunFolder, run: Run, data: dict[str, Any]) -> None:
    checkpoint = folder.checkpoints / str(run.step)
    checkpoint.mkdir(parents=True)
    weights = {"params": run.params}
    if run.router_bias is not None:
        weights["router_bias"] = run.router_bias
    with contextlib.closing(ocp.StandardCheckpointer()) as checkpointer:
        checkpointer.save((checkpoint / "model").resolve(), jax.block_until_ready(weights))
        checkpointer.wait_until_finished()
    checksums.seal(checkpoint)
    folder.tokenizer.write_bytes(run.tokenizer.model)
    files.write_text(folder.data, json.dumps(data, indent=1))
    files.write_text(folder.config, config_lib.dumps(run.config))


def _foreign_data(run: Run) -> dict[str, Any]:
    """data.json of a model that was trained elsewhere, on nobody here knows what."""
    return {
        "fingerprint": card.UNKNOWN_DATA,
        "tokenizer_sha256": run.tokenizer.sha256,
        "stats": {},
        "baselines": {},
        "openings": [],
    }


def main(arguments: Sequence[str]) -> None:
    """The command line. Raises UserError."""
    parser = argparse.ArgumentParser(prog="python -m mla_jax.interop.import_hf", description=__doc__.split("\n")[0])
    parser.add_argument("--hf", required=True, help="the Hugging Face folder")
    parser.add_argument("--workdir", required=True, help="the run folder to make: new or empty")
    parser.add_argument("--tokenizer", help="a sentencepiece model, where the folder has no tokenizer.model")
    values = parser.parse_args(arguments)
    workdir = to_run(values.hf, values.workdir, values.tokenizer)
    print(f"run folder  {workdir}\nnext        python -m mla_jax.main --mode sample --workdir {workdir}")


if __name__ == "__main__":
    sys.exit(run_command(main))
