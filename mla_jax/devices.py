"""Facts about the device a run is on: its name, peak arithmetic rate, and the versions recorded with every number."""

import platform
from importlib import metadata

import jax

# Dense bfloat16 peaks from the vendors' data sheets, FLOP/s. A device that is not listed has no MFU.
PEAK_FLOPS = {
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "A10G": 70e12,
    "L4": 121e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
}


def device_name() -> str:
    """E.g. 'NVIDIA H100 80GB HBM3' or 'cpu x86_64'."""
    device = jax.devices()[0]
    return f"cpu {platform.machine()}" if device.platform == "cpu" else device.device_kind


def peak_flops(name: str | None = None) -> float | None:
    """The dense bfloat16 peak in FLOP/s of this device, or of one of that name; None when it is not in the table."""
    name = device_name() if name is None else name
    # The longest name first: an "L40S" is no "L4".
    return next((PEAK_FLOPS[key] for key in sorted(PEAK_FLOPS, key=len, reverse=True) if key in name), None)


def mfu(flops_per_s: float, n_devices: int = 1) -> float | None:
    """The share of the peak of so many devices like this one; None where the peak is not known."""
    peak = peak_flops()
    return flops_per_s / (peak * n_devices) if peak else None


def versions() -> dict[str, str]:
    """Versions that a measured number depends on."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "sentencepiece", "numpy")
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "absent"
    return found
