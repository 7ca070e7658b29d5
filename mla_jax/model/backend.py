"""What the device can do: the computation dtype and the attention implementations, chosen once per process."""

import dataclasses
import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mla_jax.config import ModelConfig
from mla_jax.errors import UserError

CUBLAS_PRODUCTS = {"xla_gpu_enable_triton_gemm": False}  # instead of XLA's own, written in Triton
# Left alone, XLA makes one product of two of the same x, then copies the results apart: 138 MB a layer of MLA.
SEPARATE_PRODUCTS = {"xla_gpu_dot_merger_threshold_mb": 0}
# XLA sends one sum of gradients at a time and has one product in between, which holds all multiprocessors until it is
# done: nothing overlapped (docs/scaling.md). With as many under way as there are, each starts when its gradients exist.
# Not with FSDP: its sums are then all put to the end, and its matrices are gathered long before they are needed. Nor
# with the axes whose sums lie between one product and the next: not timed.
SUMS_SIDE_BY_SIDE = {"xla_gpu_experimental_parallel_collective_overlap_limit": 16}
CUDNN_MAX_HEAD_DIM = 128  # of the fused backward pass below sm90; Hopper takes 256, which no config here needs


@dataclasses.dataclass(frozen=True)
class Backend:
    """Hashable, so that it can be an attribute of Flax modules and a static argument of jit."""

    dtype: str  # "bfloat16" | "float32": of matrix products and activations; params stay float32
    attention_impl: str  # "cudnn" | "xla"
    reason: str = dataclasses.field(default="", compare=False)
    decode_impl: str = "xla"  # "pallas" | "cudnn" | "xla": of one new token per row over the cache
    decode_reason: str = dataclasses.field(default="", compare=False)
    interpret: bool = False  # Pallas kernels as plain JAX: what tests on a CPU do
    platform: str = "cpu"  # "gpu" | "tpu" | "cpu": whose rates choose among the paths of experts
    grouped_impl: str = "xla"  # "tokamax" | "pallas" | "xla": of grouped products
    train_impl: str = "xla"  # "pallas" | "xla": of norms, GELU, RoPE and the loss where training's shapes allow it
    train_reason: str = dataclasses.field(default="", compare=False)  # why not "pallas", where one would expect it
    mesh: Mesh | None = None  # the devices that a batch is spread over; None = one

    @property
    def compiler_options(self) -> dict[str, Any] | None:
        """XLA's, of the programs that train: on GPUs products go to cuBLAS, which adds biases and residuals on the way,
        and those that stand side by side stay so.

        Size m, block=gpt, 128 x 512 on an H200: 38.83 ms a step with Triton's products among them, 38.10 without.
        """
        if self.platform != "gpu":
            return None
        data_parallel = self.mesh is not None and self.mesh.size == self.mesh.shape["data"]
        return CUBLAS_PRODUCTS | SEPARATE_PRODUCTS | (SUMS_SIDE_BY_SIDE if data_parallel else {})

    @property
    def jnp_dtype(self) -> Any:
        return jnp.dtype(self.dtype)


LATER = "chosen when samples are drawn"  # the decode_reason of a backend that only trains


def choose(cfg: ModelConfig, device: Any = None, decodes: bool = True) -> Backend:
    """The backend for `cfg` on `device` (default: the first one of JAX).

    decodes: False leaves decode to plain XLA where a self-check of kernels would have to decide (20 to 40 s, once).

    cuDNN attention needs an NVIDIA GPU from sm80 on, bfloat16 and a head size that is a multiple of 8 up to 128;
    bfloat16 needs sm80, a TPU or an explicit wish. Everything else gets plain XLA attention in float32.
    One token a row over the cache (decode): the Pallas kernels from sm80 on, in bfloat16, where they pass their
    self-check on the device that is there; else plain XLA.
    Norms, GELU, RoPE and the loss of training: Pallas kernels from sm80 on, in bfloat16, where they pass theirs; else
    plain XLA.
    Raises UserError when `model.attention_impl`, `model.train_impl` or `model.decode_impl` asks for what the device
    or the config cannot have.
    """
    probe = "" if device is not None else None  # a device that is only described cannot be tried
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
    impl = "xla" if cfg.attention_impl == "xla" or obstacle else "cudnn"
    reason = (obstacle or "model.attention_impl=xla") if impl == "xla" else _describe(device)
    decode_impl, decode_reason = _choose_decode(cfg, device, dtype, modern_gpu, probe, decodes)
    platform = "gpu" if device.platform in ("gpu", "cuda", "rocm") else device.platform
    grouped_impl = _grouped_impl(cfg, device, dtype)
    train_impl, train_reason = _train_impl(cfg, device, dtype), ""
    if train_impl == "pallas" and probe is None:
        train_impl, train_reason = tried_train_impl(cfg.train_impl)
    return Backend(
        dtype,
        impl,
        reason,
        decode_impl,
        decode_reason,
        platform=platform,
        grouped_impl=grouped_impl,
        train_impl=train_impl,
        train_reason=train_reason,
    )


def tried_train_impl(wish: str) -> tuple[str, str]:
    """ "pallas" where the training kernels pass their self-check, or are asked for by name; else "xla" and why."""
    if wish == "pallas":
        return "pallas", ""
    from mla_jax.kernels import train_probe

    obstacle = train_probe.obstacle()
    return ("xla", obstacle) if obstacle else ("pallas", "")


def anywhere(cfg: ModelConfig) -> ModelConfig:
    """cfg with its wishes for speed left to the device: a run folder is read where other kernels than its own exist."""
    fields = ("attention_impl", "train_impl", "decode_impl", "grouped_impl")
    return dataclasses.replace(cfg, **{name: "auto" for name in fields if getattr(cfg, name) != "xla"})


def _train_impl(cfg: ModelConfig, device: Any, dtype: str) -> str:
    """Raises UserError for kernels that the device cannot have."""
    gpu = _is_modern_gpu(device)
    if cfg.train_impl == "pallas" and not gpu:
        raise UserError(
            f"model.train_impl is 'pallas', whose kernels need an NVIDIA GPU from sm80 on, not {_describe(device)}: "
            "use auto."
        )
    if cfg.train_impl == "auto":
        return "pallas" if gpu and dtype == "bfloat16" else "xla"
    return cfg.train_impl


def _choose_decode(
    cfg: ModelConfig, device: Any, dtype: str, modern_gpu: bool, probe: str | None, decodes: bool
) -> tuple[str, str]:
    """decode_impl and why. probe: the result of the kernels' self-check; None = make it, if it comes to that."""
    wish = cfg.decode_impl
    if wish == "xla":
        return "xla", "model.decode_impl=xla"
    if not modern_gpu:
        obstacle = f"{_describe(device)} has no decode kernel (it needs an NVIDIA GPU from sm80 on)"
    elif dtype != "bfloat16":
        obstacle = f"the decode kernels compute in bfloat16 and model.dtype is {dtype}"
    elif cfg.attention == "mla" and not cfg.absorbed:
        obstacle = "this variant expands its cache at every step, so there is nothing for a decode kernel to read"
    elif wish == "cudnn":
        obstacle = _cudnn_decode_obstacle(cfg)
    elif probe is None and wish == "auto" and not decodes:
        return "xla", LATER
    elif probe is None:
        from mla_jax.kernels import probe as probe_lib

        obstacle = probe_lib.obstacle()
    else:
        obstacle = probe
    if not obstacle:
        return ("pallas" if wish == "auto" else wish), _describe(device)
    if wish == "auto":
        return "xla", obstacle
    raise UserError(f"model.decode_impl is {wish!r}; {obstacle}: use auto or xla.")


def _cudnn_decode_obstacle(cfg: ModelConfig) -> str:
    if cfg.attention == "mla" and (cfg.latent == "joint" or cfg.qk_rope_head_dim):
        return "cuDNN has no attention over one shared latent or a shared rotary key"
    width = cfg.kv_lora_rank if cfg.attention == "mla" else cfg.head_dim
    if width % 8 or width > CUDNN_MAX_HEAD_DIM:
        return f"cuDNN attention needs head sizes that are multiples of 8 up to 128, not {width}"
    return ""


def default_dtype(device: Any = None) -> str:
    """The dtype of matrix products on `device` (default: the first one of JAX) where nothing else is asked."""
    device = device or jax.devices()[0]
    return "bfloat16" if _is_modern_gpu(device) or device.platform == "tpu" else "float32"


def _is_modern_gpu(device: Any) -> bool:
    return device.platform in ("gpu", "cuda") and _compute_capability(device) >= (8, 0)


def _grouped_impl(cfg: ModelConfig, device: Any, dtype: str) -> str:
    """Which grouped product; only looked for where there are experts. Raises UserError for one that cannot be had."""
    wanted = cfg.grouped_impl
    if cfg.ffn != "moe" or wanted == "xla":
        return "xla"
    gpu = _is_modern_gpu(device)
    found = gpu and importlib.util.find_spec("tokamax") is not None
    if wanted == "auto":
        # Their tiles take 128 KiB of shared memory: sm90 and sm100 have it, consumers' sm120 has not.
        suits = gpu and dtype == "bfloat16" and (9, 0) <= _compute_capability(device) < (12, 0)
        return "pallas" if suits else "xla"
    if wanted == "tokamax" and not found:
        raise UserError(
            f"model.grouped_impl is 'tokamax', which needs an NVIDIA GPU from sm80 on (this is {_describe(device)}) "
            "and the package: pip install '.[gpu]' in the checkout, or use auto."
        )
    if wanted == "pallas" and not gpu:
        raise UserError(
            f"model.grouped_impl is 'pallas', whose kernels need an NVIDIA GPU from sm80 on, not "
            f"{_describe(device)}: use auto."
        )
    return wanted


def _compute_capability(device: Any) -> tuple[int, ...]:
    parts = str(getattr(device, "compute_capability", "0.0")).split(".")
    return tuple(int(part) for part in parts) if all(map(str.isdigit, parts)) else (0, 0)  # AMD: "gfx942"


def _describe(device: Any) -> str:
    return f"{device.platform}:{getattr(device, 'device_kind', '?')}"
