"""What a path of the user's means: a file, a folder of files, or a Hugging Face data set."""

import dataclasses
import os
from pathlib import Path

from mla_jax.data import hub
from mla_jax.data.readers import READERS, Source


@dataclasses.dataclass(frozen=True)
class Found:
    """What a path led to. `named` is the path itself as a Source, for messages.

    files: its stories, in order. valid: those that it holds out itself (data sets may).
    """

    named: Source
    files: tuple[Source, ...]
    valid: tuple[Source, ...] = ()

    @property
    def held_out(self) -> tuple[Source, ...]:
        """The files to evaluate on, where all of this is for evaluation."""
        return self.valid or self.files


def on_hub(name: str) -> bool:
    """Whether `name` is that of a data set to download, not of a file or folder."""
    return name.startswith(hub.PREFIX) or (not os.path.exists(os.path.expanduser(name)) and hub.looks_like_a_name(name))


def find(name: str, like: Source, root: Path, quiet: bool = False) -> Found:
    """Files behind `name`; a path that exists wins over a data set's name. Raises UserError when there are none.

    like: a Source with the field and settings to read with. root: the cache folder, where data sets are copied to.
    """
    path = Path(os.path.expanduser(name))
    named = dataclasses.replace(like, path=path)
    if on_hub(name):
        data_set = name.removeprefix(hub.PREFIX)
        named = dataclasses.replace(like, path=Path(data_set or name))
        copies = hub.local_copy(data_set, named, root, quiet)
        parts = {split: (dataclasses.replace(like, path=copy, text_field=""),) for split, copy in copies.items()}
        return Found(named, parts["train"], parts.get("valid", ()))
    if os.path.isdir(path):
        return Found(named, _in_folder(named))
    named.check()
    return Found(named, (named,))


def _in_folder(folder: Source) -> tuple[Source, ...]:
    """Files with an ending that a reader has (or .gz), subfolders included, by path; hidden and empty ones left out."""

    def refuse(error: OSError) -> None:
        path = os.path.relpath(error.filename or folder.path, folder.path)
        raise folder.fail(f"{path} in it cannot be read ({error.strerror})", "check the permissions")

    paths = []
    for parent, folders, names in os.walk(folder.path, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths += [Path(parent, name) for name in names if not name.startswith(".")]
    paths = [path for path in paths if path.suffix.lower() in (*READERS, ".gz") and path.is_file()]
    sources = [dataclasses.replace(folder, path=path) for path in paths if path.stat().st_size]
    if not sources:
        raise folder.fail(
            "that is a folder without story files", f"give it files that end in {', '.join(READERS)} or .gz"
        )
    for source in sources:
        source.check()
    return tuple(sorted(sources, key=lambda source: source.path.relative_to(folder.path).parts))
