"""A self-check of kernels that passed is not run again by other processes on the same device, libraries and sources.

The decode kernels' takes 20 to 40 s of a process on an H200, the training kernels' 3 s. Notes are kept beside the
compiled programs that the checks ran: in JAX's compilation cache, where it is in use. Without the folder
mla_jax_checks/ there, the checks run again.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Callable
from pathlib import Path

import jax
import jaxlib

from mla_jax.files import write_text

PACKAGE = Path(__file__).resolve().parents[1]
SOURCES = ("kernels", "model")  # folders of PACKAGE with all that a check runs: kernels and plain twins
DRIVER = Path("/proc/driver/nvidia/version")


def once(name: str, check: Callable[[], str]) -> str:
    """`check()`, which is "" where all is well, else what is wrong; "" at once where it passed before.

    A failure is not noted: it may have been a full memory. Nothing is noted for CPUs, where no kernel is in use.
    """
    note = _note(name)
    if note is not None and _is_there(note):
        return ""
    found = check()
    if note is not None and not found:
        _write(note, name)
    return found


def _note(name: str) -> Path | None:
    """Where the note of this check is, or would be."""
    folder = jax.config.jax_compilation_cache_dir if jax.config.jax_enable_compilation_cache else None
    if not folder or "://" in folder or jax.local_devices()[0].platform == "cpu":
        return None
    key = hashlib.sha256(json.dumps(_surroundings()).encode()).hexdigest()
    return Path(folder) / "mla_jax_checks" / f"{name}-{key[:24]}.json"


def _is_there(note: Path) -> bool:
    """Whether it can be seen; a cache that cannot be read is no error."""
    try:
        return note.is_file()
    except OSError:
        return False


def _surroundings() -> dict[str, str]:
    """All that a check's result may depend on: this process' device, what compiles for it, and the sources."""
    device, digest = jax.local_devices()[0], hashlib.sha256()
    for folder in SOURCES:
        for path in sorted((PACKAGE / folder).rglob("*.py")):
            digest.update(path.name.encode() + path.read_bytes())
    return {
        "device": f"{device.device_kind}, {getattr(device, 'compute_capability', '')}",
        "runtime": getattr(getattr(device, "client", None), "platform_version", ""),
        "driver": DRIVER.read_text() if DRIVER.is_file() else "",
        "jax": f"{jax.__version__}, {jaxlib.__version__}, x64 {jax.config.jax_enable_x64}, "
        f"{jax.config.jax_default_matmul_precision}",
        "libraries": ", ".join(sorted(filter(None, map(_library, importlib.metadata.distributions())))),
        "flags": os.environ.get("XLA_FLAGS", ""),
        "sources": digest.hexdigest(),
    }


def _library(installed: importlib.metadata.Distribution) -> str:
    """Name and version of a part of CUDA or of JAX's plugin for it (ptxas, cuDNN, ...); "" for others."""
    name = (installed.metadata["Name"] or "").lower()
    return f"{name} {installed.version}" if name.startswith(("jax-cuda", "nvidia-")) else ""


def _write(note: Path, name: str) -> None:
    """A cache that cannot be written is no error."""
    with contextlib.suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        write_text(note, json.dumps({"check": name, "passed": True} | _surroundings(), indent=1))
