"""Find and load config files: a path, or the bare name of one that ships with mla_jax (`mla_rope`, `mla_rope:l`)."""

import contextlib
import importlib.util
import inspect
import os
import re
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mla_jax.config import Config, from_config_dict
from mla_jax.errors import UserError, brief
from mla_jax.typed import suggest


def config_dir() -> Path:
    """The folder of the named configs: inside the package when installed from a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    return package / "configs" if (package / "configs").is_dir() else package.parent / "configs"


def names() -> list[str]:
    """The bare names that training and `load_config` take."""
    return sorted(name for name in _stems() if not name.startswith("study_"))


def study_names() -> list[str]:
    """The bare names that `--mode study` takes."""
    return sorted(name for name in _stems() if name.startswith("study_") and name != "study_base")


def sizes() -> list[str]:
    """What may stand after the colon of most named configs."""
    return list(_module(config_dir() / "base.py").SIZES)


def _stems() -> list[str]:
    return [path.stem for path in config_dir().glob("*.py") if path.stem != "__init__"]


def find(name_or_path: str) -> tuple[Path, str | None]:
    """`mla_rope:l` or `some/file.py:l` -> (path of the file, "l" or None). Raises UserError when there is none."""
    stem, colon, argument = name_or_path.partition(":")
    path = Path(stem)
    if path.suffix != ".py" and path.name == stem:
        named = config_dir() / f"{stem}.py"
        if named.is_file():
            return named, argument if colon else None
        raise UserError(
            f"--config is {name_or_path!r}, which is no named config{suggest(stem, names() + study_names())}: use a "
            f"path to a .py file or one of {', '.join(names())}, or with --mode study of {', '.join(study_names())}."
        )
    if not path.is_file():
        raise UserError(
            f"--config is {name_or_path!r}, but there is no such file{_near(stem)}: give a path or one of "
            f"{', '.join(names())}."
        )
    return path, argument if colon else None


def _near(path: str) -> str:
    """' (did you mean configs/X.py?)', where a file beside it has nearly its name, or ''; `path` as it was written."""
    name, beside = Path(path).name, []
    with contextlib.suppress(OSError, ValueError):  # no such folder, or a name that no file system takes
        beside = [p.name for p in Path(path).parent.iterdir() if p.suffix == ".py" and p.is_file()]
    return suggest(name, beside, before=path.removesuffix(name), cutoff=0.7)  # all are alike in .py


def load_config_dict(name_or_path: str | os.PathLike[str]) -> ConfigDict:
    """Run the file's `get_config([argument])` and return its ConfigDict, locked. Config files are Python by design."""
    name_or_path = os.fspath(name_or_path)
    path, argument = find(name_or_path)
    try:
        config = _run(path, argument)
    except UserError:
        raise
    except _Refused as error:  # a config's own sentence about its argument
        raise UserError(f"--config is {name_or_path!r}, and {error}.") from None
    except SystemExit as error:
        raise UserError(f"--config {name_or_path}: it exits with {error.code!r}: let it return a ConfigDict.") from None
    except Exception as error:  # a config is the user's own program: whatever it raises is theirs to read
        raise UserError(f"--config {name_or_path}{_line(error, path)}: {_words(error)}.") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"--config {name_or_path}: get_config() returned {type(config).__name__}; return a ConfigDict.")
    return config.lock()


_LOCKED = re.compile(r'Key "(.*?)" does not exist and cannot be added.*?(?:Did you mean "(.*?)".*)?', re.DOTALL)
_UNREAD = re.compile(r"'(\w+)'\s+Did you mean \"(.*?)\".*", re.DOTALL)


def _words(error: Exception) -> str:
    """What a config file raised, in one line. A ConfigDict's own refusal of a name has all fields beside it in it."""
    inner: Any = error
    while isinstance(inner, BaseException) and inner.args:  # one in another: str() of the outer has the inner's repr
        inner = inner.args[0]
    text = str(inner)
    if found := _LOCKED.fullmatch(text) or _UNREAD.fullmatch(text):
        near = f" (did you mean {found[2]}?)" if found[2] else ""
        return f"{found[1]} is not a knob of that section{near}: base.py, or of a study study_base.py, lists them"
    return f"{type(error).__name__}: {brief(error, 300)}".rstrip(".")


def _line(error: Exception, path: Path) -> str:
    """', line 4', where the file itself has a part in the error."""
    own = {str(path), str(path.absolute())}
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename in own]
    return f", line {lines[-1]}" if lines else ""


class _Refused(ValueError):
    """What is wrong with the argument after the colon, in words of the file that reads it."""


def _module(path: Path) -> Any:
    """The file, run. Raises whatever it does."""
    spec = importlib.util.spec_from_file_location(f"mla_jax_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"--config is {str(path)!r}, which is not a Python file: give one that ends in .py.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _run(path: Path, argument: str | None) -> Any:
    """What the file's `get_config([argument])` returns. Raises whatever it does, and _Refused for its argument."""
    get_config = getattr(_module(path), "get_config", None)
    if not callable(get_config):
        raise UserError(f"--config is {str(path)!r}, which has no get_config(): define one that returns a ConfigDict.")
    if argument is None:
        return get_config()
    if not inspect.signature(get_config).parameters:
        raise _Refused(f"{path.stem} takes no argument: leave out {':' + argument!r}")
    try:
        return get_config(argument)
    except ValueError as error:
        raise _Refused(" ".join(str(error).split())) from error


def base_config(size: str = "m") -> ConfigDict:
    """The ConfigDict of configs/base.py, for other config files to start from. Raises ValueError for an unknown size,
    which the file that was asked for is named with."""
    return _run(config_dir() / "base.py", size).lock()


def expert_config(name: str) -> ConfigDict:
    """The named config (`mla_rope:l`) with paper B's experts in place of its feed-forward: 2 shared, 62 routed, top-6.

    An expert is d/3 wide, rounded to 16: about an eighth of the dense SwiGLU layer, so that the 8 that a token meets
    are about as much arithmetic.
    """
    c = load_config_dict(name)
    m = c.model
    m.ffn = "moe"
    m.n_routed_experts = 62
    m.n_shared_experts = 2
    m.top_k = 6
    m.d_expert = round(m.d_model / 3 / 16) * 16
    return c


def apply_overrides(config: ConfigDict, overrides: dict[str, Any]) -> ConfigDict:
    """Set dotted knobs, e.g. {"train.steps": 100}. Raises UserError for a knob that does not exist."""
    for dotted, value in overrides.items():
        check_knob(config, dotted)
        if isinstance(value, dict):  # ConfigDict would make a section of it, or fail in words of its own
            raise UserError(f"{dotted} is {str(value)[:60]}; it must be one value: set knobs one by one.")
        *sections, field = dotted.split(".")
        target = config
        for section in sections:
            target = target[section]
        with target.ignore_type():  # types are judged, with better words, by the bridge
            target[field] = tuple(value) if isinstance(value, list) else value
    return config


_ABBREVIATIONS = {"lr": "learning_rate", "batch": "batch_size", "epochs": "steps", "layers": "n_layers"}


def check_knob(config: ConfigDict, dotted: str) -> None:
    """Raise UserError, suggesting the nearest, unless `dotted` names a knob (a leaf) of the config."""
    node: Any = config
    for depth, name in enumerate(dotted.split(".")):
        if not isinstance(node, ConfigDict) or name not in node:
            leaves = list(knobs(config))
            if "points" in config:
                raise UserError(_no_setting_of_a_study(dotted, leaves))
            prefix = ".".join(dotted.split(".")[:depth])
            near = [leaf for leaf in leaves if leaf.startswith(f"{prefix}.")] if prefix else leaves
            last = dotted.rpartition(".")[2]
            same = [leaf for leaf in leaves if leaf.rpartition(".")[2] == _ABBREVIATIONS.get(last, last)]
            hint = f" (did you mean {same[0]}?)" if same else suggest(dotted, near or leaves)
            raise UserError(f"--config.{dotted} is not a knob{hint}: configs/base.py lists them all.")
        node = node[name]
    if isinstance(node, ConfigDict):
        raise UserError(f"--config.{dotted} is a section, not a knob: set one of {', '.join(node)}.")


def _no_setting_of_a_study(dotted: str, leaves: list[str]) -> str:
    """What a study's command line may set, and where it stands: not configs/base.py, whose knobs are its runs'."""
    knob = dotted.removeprefix("common.")
    same = [leaf for leaf in leaves if leaf.endswith(f".{knob}")]  # train.steps: of which tiers?
    near = f" (did you mean {' or '.join(same)}?)" if 0 < len(same) <= 3 else suggest(dotted, leaves, cutoff=0.8)
    return (
        f"--config.{dotted} is no setting of a study{near}: configs/study_base.py lists its own, and of its runs' "
        "knobs those can be set that its file sets in common, tiers or points: for another edit a copy of that file."
    )


def load_config(name_or_path: str | os.PathLike[str], **overrides: Any) -> Config:
    """`load_config("mla_rope", **{"train.steps": 100})`: a validated, frozen Config.

    Works from a wheel alone. Raises UserError for an unknown name, an unknown knob or a value that breaks a rule.
    """
    return from_config_dict(apply_overrides(load_config_dict(name_or_path), overrides))


def knobs(config: ConfigDict, prefix: str = "") -> Iterator[str]:
    """Dotted names of all knobs (leaves) of a config."""
    for name in config:
        if isinstance(config[name], ConfigDict):
            yield from knobs(config[name], f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
