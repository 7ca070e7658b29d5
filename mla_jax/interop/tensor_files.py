"""safetensors files, by the `safetensors` library and numpy alone. Never pickle: loading one can run its code."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from mla_jax.errors import UserError, brief

NAME = "model.safetensors"
INDEX = "model.safetensors.index.json"
_DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


def library() -> Any:
    """The `safetensors` package. Raises UserError when it is not installed."""
    try:
        import safetensors.numpy
    except ImportError:
        raise UserError(
            "Hugging Face folders need the package safetensors: "
            "pip install '.[hf]' in the checkout (or safetensors alone; "
            "torch and transformers are not needed to export or import)."
        ) from None
    return safetensors


def write(path: Path, tensors: dict[str, np.ndarray], dtype: str, exact: str = "") -> None:
    """Write float32 `tensors` as `dtype` (float32 or bfloat16), those whose name ends in `exact` as they are."""
    kind = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}[dtype]
    kinds = {name: np.dtype(np.float32) if exact and name.endswith(exact) else kind for name in tensors}
    content = {name: np.ascontiguousarray(tensor.astype(kinds[name])) for name, tensor in tensors.items()}
    # transformers refuses files that do not name a framework.
    library().numpy.save_file(content, path, metadata={"format": "pt"})
    path.chmod(0o644)  # the library closes it to other users


def read(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of the folder's model.safetensors, or of the shards that its index names; in their own dtypes.

    Raises UserError when they are missing, damaged or of a dtype that is no float, or when their header does not
    describe the bytes behind it.
    """
    tensors: dict[str, np.ndarray] = {}
    for path in _files(folder):
        for name, tensor in _read_one(path).items():
            if name in tensors:
                raise UserError(f"{folder}: the tensor {name} is in two files: copy the folder again.")
            tensors[name] = tensor
    return tensors


def _files(folder: Path) -> list[Path]:
    if (folder / NAME).is_file():
        return [folder / NAME]
    if (folder / INDEX).is_file():
        return _shards(folder)
    pickles = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for p in folder.glob(pattern))
    if pickles:
        raise UserError(
            f"{folder} has its weights in {pickles[0]}, a pickle, which could run any code when it is read: "
            "save them as safetensors (save_pretrained does)."
        )
    raise UserError(f"{folder} has no {NAME}: copy the folder again.")


def _shards(folder: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
        if not names or any(Path(name).name != name or not name.endswith(".safetensors") for name in names):
            raise ValueError
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise UserError(f"{folder / INDEX} is no index of safetensors files in this folder: copy it again.") from None
    for name in names:
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing, though {INDEX} names it: copy the folder again.")
    return [folder / name for name in names]


def _read_one(path: Path) -> dict[str, np.ndarray]:
    safetensors = library()
    try:
        found = safetensors.deserialize(path.read_bytes())  # checks sizes, offsets and overlaps
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check its permissions.") from None
    except safetensors.SafetensorError as error:
        reason = brief(error).removeprefix("Error while deserializing: ")
        raise UserError(
            f"{path} is damaged, or its header does not fit its content ({reason}): copy it again."
        ) from None
    tensors = {}
    for name, tensor in found:
        kind = _DTYPES.get(tensor["dtype"])
        if kind is None:
            raise UserError(
                f"{path}: {name} has the dtype {tensor['dtype']}; weights must be {', '.join(_DTYPES)}: "
                "convert them, or copy the file again."
            )
        tensors[name] = np.frombuffer(tensor["data"], dtype=kind).reshape(tensor["shape"])
    return tensors
