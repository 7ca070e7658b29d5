"""mla_jax.json of an exported folder: where it comes from, its config, and size and SHA-256 of every file."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from mla_jax import checksums
from mla_jax import config as config_lib
from mla_jax.config import Config
from mla_jax.errors import UserError

NAME = "mla_jax.json"
FORMAT = 1
_DATA_KEYS = ("fingerprint", "tokenizer_sha256", "stats", "baselines", "openings")


@dataclasses.dataclass(frozen=True)
class Manifest:
    """config: the run's, without paths of the machine it was trained on. data: its data.json. files: the checksums."""

    run: str
    step: int
    config_hash: str
    config: Config
    data: dict[str, Any]
    files: dict[str, dict[str, Any]]


def write(folder: Path, run: str, step: int, config_hash: str, config: Config, data: dict[str, Any]) -> None:
    """Describe all files that `folder` has now."""
    content = {
        "format": FORMAT,
        "run": run,
        "step": step,
        "config_hash": config_hash,
        "config": json.loads(config_lib.dumps(_without_paths(config))),
        "data": _without_corpus_path({name: data[name] for name in _DATA_KEYS if name in data}),
        "files": {p.name: checksums.describe(p) for p in sorted(folder.iterdir()) if p.is_file()},
    }
    (folder / NAME).write_text(json.dumps(content, indent=1), encoding="utf-8")


def read(folder: Path) -> Manifest | None:
    """The folder's manifest, its files checked against it; None when it has none. Raises UserError."""
    path = folder / NAME
    if not path.is_file():
        return None
    remedy = f"copy the folder again, or delete {NAME} to import what is there"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if type(content["format"]) is not int or content["format"] < 1:
            raise ValueError
        if content["format"] > FORMAT:
            raise UserError(f"{path} has format {content['format']}, newer than {FORMAT}: upgrade mla_jax.")
        config = config_lib.loads(json.dumps(content["config"]), str(path))
        files = {str(name): (entry["size"], entry["sha256"]) for name, entry in content["files"].items()}
        data = content["data"]
        whole = all(isinstance(data[name], str) for name in ("fingerprint", "tokenizer_sha256"))
        if not whole or type(content["step"]) is not int or content["step"] < 0:
            raise ValueError
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{path} is damaged: {remedy}.") from None
    for name, (size, digest) in files.items():
        file = folder / Path(name).name
        found = checksums.describe(file) if file.is_file() else None
        if found != {"size": size, "sha256": digest}:
            what = "is missing" if found is None else "is not the file that was exported (its SHA-256 differs)"
            raise UserError(f"{file} {what}: {remedy}.")
    return Manifest(str(content["run"]), content["step"], str(content["config_hash"]), config, data, content["files"])


def is_export(folder: Path) -> bool:
    """Whether `folder` holds an export of ours and nothing else, so that a new one may replace it."""
    try:
        files = json.loads((folder / NAME).read_text(encoding="utf-8"))["files"]
        return {p.name for p in folder.iterdir()} <= {*files, NAME}
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _without_paths(config: Config) -> Config:
    """File names instead of paths: an export is made to be given away."""
    names = {f"data.{key}": Path(getattr(config.data, key)).name for key in ("path", "valid_path")}
    return config_lib.replace(config, **names, **{"data.cache_dir": "", "tokenizer.path": "", "init_from": ""})


def _without_corpus_path(data: dict[str, Any]) -> dict[str, Any]:
    stats = dict(data.get("stats") or {})
    if isinstance(stats.get("corpus"), str) and "/" in stats["corpus"]:
        stats["corpus"] = ", ".join(Path(part).name for part in stats["corpus"].split(", "))
    return data | {"stats": stats}
