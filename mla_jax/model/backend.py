"""What the device can do: the computation dtype and the attention implementation, chosen once per process."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from mla_jax.config import ModelConfig
from mla_jax.errors import UserError

CUDNN_MAX_HEAD_DIM = 128  # of the fused backward pass below sm90; Hopper takes 256, which no config here needs


@dataclasses.dataclass(frozen=True)
class Backend:
    """Hashable, so that it can be an attribute of Flax modules and a static argument of jit."""

    dtype: str  # "bfloat16" | "float32": of matrix products and activations; params stay float32
    attention_impl: str  # "cudnn" | "xla"
    reason: str = dataclasses.field(default="", compare=False)

    @property
    def jnp_dtype(self) -> Any:
        return jnp.dtype(self.dtype)


REFERENCE = Backend("float32", "xla", "the plain twin that tests compare against")


def choose(cfg: ModelConfig, device: Any = None) -> Backend:
    """The backend for `cfg` on `device` (default: the first one of JAX).

    cuDNN attention needs an NVIDIA GPU from sm80 on, bfloat16 and a head size that is a multiple of 8 up to 128;
    bfloat16 needs sm80, a TPU or an explicit wish. Everything else gets plain XLA attention in float32.
    Raises UserError when `model.attention_impl=cudnn` is asked of a device or a config that cannot have it.
    """
    device = device or jax.devices()[0]
    modern_gpu = _is_modern_gpu(device)
    dtype = default_dtype(device) if cfg.dtype == "auto" else cfg.dtype

    head_dim = max(cfg.qk_head_dim, cfg.v_head_dim)  # the narrower of the two is padded
    if not modern_gpu:
        obstacle = f"{_describe(device)} has no fused cuDNN attention (it needs an NVIDIA GPU from sm80 on)"
    elif dtype != "bfloat16":
        obstacle = f"cuDNN attention computes in bfloat16 and model.dtype is {dtype}"
    elif head_dim % 8 or head_dim > CUDNN_MAX_HEAD_DIM:
        obstacle = f"cuDNN attention needs head sizes that are multiples of 8 up to 128, not {head_dim}"
    else:
        obstacle = ""
    if cfg.attention_impl == "cudnn" and obstacle:
        raise UserError(f"model.attention_impl is 'cudnn'; {obstacle}: use auto or xla.")
    if cfg.attention_impl == "xla" or obstacle:
        return Backend(dtype, "xla", obstacle or "model.attention_impl=xla")
    return Backend(dtype, "cudnn", _describe(device))


def default_dtype(device: Any = None) -> str:
    """The dtype of matrix products on `device` (default: the first one of JAX) where nothing else is asked."""
    device = device or jax.devices()[0]
    return "bfloat16" if _is_modern_gpu(device) or device.platform == "tpu" else "float32"


def _is_modern_gpu(device: Any) -> bool:
    return device.platform in ("gpu", "cuda") and _compute_capability(device) >= (8, 0)


def _compute_capability(device: Any) -> tuple[int, ...]:
    parts = str(getattr(device, "compute_capability", "0.0")).split(".")
    return tuple(int(part) for part in parts) if all(map(str.isdigit, parts)) else (0, 0)  # AMD: "gfx942"


def _describe(device: Any) -> str:
    return f"{device.platform}:{getattr(device, 'device_kind', '?')}"
