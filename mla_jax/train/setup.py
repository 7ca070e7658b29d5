"""Opening a run: data, tokenizer, resolved config, model and starting state. Fails before anything is written."""

import contextlib
import dataclasses
import itertools
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grain
import jax
import optax
from absl import logging

from mla_jax import config as config_lib
from mla_jax import distributed, places, runs
from mla_jax import mesh as mesh_lib
from mla_jax.config import Config
from mla_jax.data.pipeline import baselines
from mla_jax.data.prepare import Prepared, prepare
from mla_jax.data.tokenizer import Tokenizer
from mla_jax.errors import UserError
from mla_jax.files import write_text
from mla_jax.model import backend as backend_lib
from mla_jax.model.initial import init_params
from mla_jax.model.transformer import Transformer
from mla_jax.restore import abstract_params
from mla_jax.rows import read_result
from mla_jax.runs import RunFolder, check_lock, lock
from mla_jax.train.checkpoint import Checkpoints
from mla_jax.train.precompile import Precompiler
from mla_jax.train.resume import check_resumable, check_same_shapes, check_steps, check_vocabulary, other_vocabulary
from mla_jax.train.state import TrainState, abstract_state, init_state

OPENINGS = 16
MIN_FREE_BYTES = 200_000_000  # below this a checkpoint of even a small model may not fit


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a run needs before its first step.

    changes: allowed config changes since the checkpoint being resumed, as lines for the log. baselines: nats per
    token. openings: first words of held-out stories, prompts for the samples at the end. ahead: is compiling the
    training step meanwhile.
    """

    folder: RunFolder
    config: Config
    prepared: Prepared
    backend: backend_lib.Backend
    model: Transformer
    resumes: bool
    changes: list[str]
    baselines: dict[str, float]
    openings: list[str]
    ahead: Precompiler


def open_run(config: Config, workdir: Path) -> Setup:
    """Check everything that can be checked before compiling or writing. Raises UserError."""
    folder = RunFolder(workdir)
    _check_place(folder)
    resumes = bool(folder.steps())
    saved = runs.read_config(folder) if resumes else None
    tokenizer = None
    if resumes:
        if folder.imported:
            raise UserError(
                f"--workdir is {str(workdir)!r}, which holds weights without an optimizer state, as imported ones do, "
                f"so its training cannot go on: start a new --workdir with --config.init_from={workdir}."
            )
        tokenizer = runs.read_tokenizer(folder)
    elif config.init_from:
        tokenizer = runs.read_tokenizer(runs.existing(config.init_from, "init_from"))
    if tokenizer is not None and config.tokenizer.path:
        given = Tokenizer.load(config.tokenizer.path)
        if given.sha256 != tokenizer.sha256:
            raise UserError(
                f"tokenizer.path is {config.tokenizer.path!r}, which is not the tokenizer that these weights were "
                "trained with: leave it out."
            )
    backend = backend_lib.choose(config.model, decodes=False)
    backend = dataclasses.replace(backend, mesh=mesh_lib.make_mesh(config.mesh))
    mesh_lib.check_batches(config, backend.mesh)
    pieces = tokenizer.vocab_size if tokenizer else config.tokenizer.vocab_size
    ahead = Precompiler(backend, restores=resumes or bool(config.init_from))

    def start_early() -> None:
        with contextlib.suppress(UserError):  # the tokenizer may get fewer pieces than asked for, and fit
            ahead.start(with_vocabulary(config, pieces))

    prepared = prepare(config, tokenizer, on_build=start_early)
    if resumes:
        check_vocabulary(config, runs.read_data(folder), prepared.tokenizer.vocab_size)
    elif config.init_from:
        data = runs.read_data(runs.existing(config.init_from, "init_from"))
        if note := other_vocabulary(config, data, prepared.tokenizer.vocab_size):
            logging.warning("%s", note)
    config = with_vocabulary(config, prepared.tokenizer.vocab_size)
    changes: list[str] = []
    if saved is not None:
        changes = check_resumable(saved, config, str(workdir))
        done, row = max(folder.steps()), read_result(folder.result)
        # A run that was finished, went on with more steps and was stopped has a result that is older than its weights.
        check_steps(config, done, finished=row is not None and row["metrics"].get("step", done) >= done)
        found = runs.read_data(folder)["fingerprint"]
        if found != prepared.fingerprint:
            raise UserError(
                f"--workdir is {str(workdir)!r}, which was trained on other data (fingerprint {found[:12]}, now "
                f"{prepared.fingerprint[:12]}): give the same --config.data, or start a new --workdir with "
                f"--config.init_from={workdir}."
            )
    model = Transformer(config.model, backend)
    if config.init_from and not resumes:
        source = runs.load_run(config.init_from, field="init_from")
        check_same_shapes(config.init_from, source.params, abstract_params(model))
    _check_prompts(config, prepared)
    candidates = (_opening(prepared, story, config.model.max_len) for story in _first_stories(prepared, 8 * OPENINGS))
    openings = list(dict.fromkeys(candidates))[:OPENINGS]  # many stories begin alike
    if max(folder.steps(), default=0) < config.train.steps:  # a finished run has no step to compile
        ahead.start(config)
    return Setup(folder, config, prepared, backend, model, resumes, changes, baselines(prepared), openings, ahead)


def with_vocabulary(config: Config, vocab_size: int) -> Config:
    """The config with the tokenizer's real size, and embedding rows to match. Raises UserError for too few rows."""
    rows = config.model.vocab_size or vocab_size
    if rows < vocab_size:
        raise UserError(
            f"model.vocab_size is {rows}; the tokenizer has {vocab_size} pieces and each needs a row: "
            "set it to 0, or lower --config.tokenizer.vocab_size."
        )
    return config_lib.replace(config, **{"model.vocab_size": rows, "tokenizer.vocab_size": vocab_size})


def starting_state(
    setup: Setup,
    optimizer: optax.GradientTransformation,
    checkpoints: Checkpoints,
    data: grain.DatasetIterator,
) -> TrainState:
    """The state to go on from: the newest good checkpoint, another run's weights, or fresh ones."""
    if setup.resumes:
        restored = checkpoints.restore(abstract_state(setup.model, optimizer), data)
        if restored is not None:
            return restored
    if setup.config.init_from:
        source = runs.load_run(setup.config.init_from)
        params, mesh = source.params, setup.backend.mesh
        if mesh is None:
            state = init_state(setup.model, optimizer, params, source.router_bias)
            # Bound to the device, as a step's result and a checkpoint are: else the second step compiles again.
            return jax.device_put(state, jax.devices()[0])
        params = mesh_lib.spread(params, mesh_lib.state_shardings(mesh, setup.config.model, params, params))
        return init_state(setup.model, optimizer, params, source.router_bias)
    return init_state(setup.model, optimizer, init_params(setup.model, setup.config.train.seed))


@contextlib.contextmanager
def held(folder: RunFolder) -> Iterator[None]:
    """The run folder, held by process 0 for all of them. Raises UserError where another run holds it."""
    mark = distributed.exchange("mark", uuid.uuid4().hex)[0]
    with contextlib.ExitStack() as stack:
        with distributed.together("lock"):
            if distributed.is_first():
                stack.enter_context(lock(folder, mark))
        with distributed.together("locked"):
            if not distributed.is_first():
                check_lock(folder, mark)
        yield


def write_run_files(setup: Setup) -> None:
    """config.json, tokenizer.model, data.json."""
    folder, prepared = setup.folder, setup.prepared
    if not setup.resumes:  # what a run that never reached a checkpoint left may belong to other data
        temporary = folder.path / ".tokenizer.tmp"
        temporary.write_bytes(prepared.tokenizer.model)
        os.replace(temporary, folder.tokenizer)
    data: dict[str, Any] = {
        "fingerprint": prepared.fingerprint,
        "tokenizer_sha256": prepared.tokenizer.sha256,
        "stats": prepared.stats,
        "baselines": setup.baselines,
        "openings": setup.openings,
    }
    write_text(folder.data, json.dumps(data, indent=1))
    write_text(folder.config, config_lib.dumps(setup.config))


def _check_place(folder: RunFolder) -> None:
    path = folder.path
    foreign = [name for name in places.names_in(path, "--workdir") if not name.startswith(".")]
    places.check_for_checkpoints(path, "--workdir")
    ours = folder.config.is_file() and not runs.is_hugging_face(folder)
    if foreign and not ours and not _was_killed_at_its_start(folder, foreign):
        raise UserError(
            f"--workdir is {str(path)!r}, which holds other files ({', '.join(foreign[:3])}) and no run: "
            "give a new or empty folder."
        )
    parent = places.writable(path, "--workdir")
    free = shutil.disk_usage(parent).free
    if free < MIN_FREE_BYTES:
        raise UserError(
            f"--workdir is {str(path)!r}, whose disk has {free // 2**20} MiB free and a run needs at least "
            f"{MIN_FREE_BYTES // 2**20}: free some space or choose another folder."
        )


def _was_killed_at_its_start(folder: RunFolder, names: list[str]) -> bool:
    """Whether there is nothing but what a start leaves that was killed before it wrote config.json, its last file."""
    ours = {folder.checkpoints.name, folder.tokenizer.name, folder.data.name}
    return set(names) <= ours and (folder.path / ".lock").is_file() and not folder.steps()


def _first_stories(prepared: Prepared, count: int) -> list[str]:
    starts = prepared.valid.story_starts[: count + 1]
    return [
        prepared.tokenizer.decode(prepared.valid.tokens[begin + 1 : end].tolist())
        for begin, end in itertools.pairwise(starts)
    ]


def _opening(prepared: Prepared, story: str, max_len: int) -> str:
    """The first words of a story: enough to start on, too few to copy, and room to go on (not all scripts space)."""
    text = " ".join(story.split()[:6])
    ids = prepared.tokenizer.encode(text)
    return text if len(ids) <= max_len // 4 else prepared.tokenizer.decode(ids[: max_len // 4]).rstrip("\ufffd")


def _check_prompts(config: Config, prepared: Prepared) -> None:
    """The samples come last: a prompt that cannot fit should not wait for them to be found out."""
    for prompt in config.sample.prompts:
        length = len(prepared.tokenizer.encode(prompt)) + 1
        if length >= config.model.max_len:
            raise UserError(
                f"sample.prompts has {prompt[:40]!r}..., which is {length} tokens with the separator; model.max_len is "
                f"{config.model.max_len} and a sample needs room after it: shorten the prompt."
            )
