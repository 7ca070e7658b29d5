"""Run folders as the judge takes them: who wrote, how to have it write, and stories it has not seen."""

import functools
import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mla_jax import runs
from mla_jax.data.corpus import open_corpus
from mla_jax.judge.evaluate import run
from mla_jax.judge.settings import JudgeSettings, validate
from mla_jax.judge.study_folder import Generate, RunToJudge
from mla_jax.rows import result_row
from mla_jax.sample.sampler import Sampler

MAX_HELD_OUT = 5000


def judge_run_folders(
    workdirs: Sequence[str | os.PathLike],
    settings: JudgeSettings,
    out: Path | None = None,
    step: int | None = None,
    held_out_by_run: Mapping[str, Sequence[str]] | None = None,
    **kwargs: Any,
) -> Path:
    """`evaluate.run` on run folders, into `out` or else `default_out`; what `--mode judge` calls.

    Args:
      step: the checkpoint to sample from; default: the best of each run.
      held_out_by_run: folder name -> stories it was not trained on; default: the run's own validation part.
      kwargs: command, checker, confirm, environment of `evaluate.run`.

    Returns:
      Path of report.md.

    Raises:
      UserError: a folder without a model, or whose data is not there any more, and whatever `evaluate.run` raises.
    """
    validate(settings)
    opened = [open_run(workdir, step, (held_out_by_run or {}).get(Path(workdir).name)) for workdir in workdirs]
    return run(settings, opened, out or default_out([Path(w) for w in workdirs], settings), **kwargs)


def open_run(workdir: str | os.PathLike, step: int | None = None, held_out: Sequence[str] | None = None) -> RunToJudge:
    """A run folder, found to be whole. Its weights are not kept: they are loaded again when it is to write.

    Raises:
      UserError: as `runs.load_run` and, unless `held_out` is given, `data.corpus.open_corpus`.
    """
    loaded = runs.load_run(workdir, step)
    if held_out is None:
        # whether a story is held out depends on its own text, so a file that has grown since training does no harm
        stories = open_corpus(loaded.config).stories("valid")
        held_out = list(itertools.islice(stories, MAX_HELD_OUT))
    fingerprint = runs.read_data(loaded.folder)["fingerprint"]
    facts = result_row(loaded.folder.name, loaded.config.hash, {}, fingerprint, loaded.tokenizer.sha256)
    return RunToJudge(
        name=loaded.folder.name,
        generate=_lazy_generate(Path(workdir), loaded.step),
        held_out=held_out,
        config_hash=facts["config_hash"],
        data_fingerprint=facts["data_fingerprint"],
        tokenizer_sha256=facts["tokenizer_sha256"],
        device=facts["device"],
        step=loaded.step,
    )


def default_out(workdirs: Sequence[Path], settings: JudgeSettings) -> Path:
    """Where a study goes unless told otherwise: inside the run folder, or beside the first of several."""
    model = "".join(c if c.isalnum() or c in "-._" else "_" for c in settings.model)
    study = f"{settings.rubric}_{model[:80]}"
    if len(workdirs) == 1:
        return workdirs[0] / "judge" / study
    return workdirs[0].parent / f"judge_{'_'.join(w.name for w in workdirs)[:80]}" / study


def _lazy_generate(workdir: Path, step: int) -> Generate:
    def generate(prompts: list[str], **settings: Any) -> list[str]:
        return _sampler(workdir, step).generate(prompts, **settings)

    return generate


@functools.lru_cache(maxsize=1)
def _sampler(workdir: Path, step: int) -> Sampler:
    """One model in memory at a time: a study's runs write one after the other."""
    return Sampler.from_run(workdir, step)
