"""Lowering for a GPU on a machine that has none: Pallas' Triton lowering runs in full, the GPU's compiler does not."""

from collections.abc import Callable
from typing import Any

import jax


def lower_for_h100(function: Callable, *arguments: Any) -> str:
    """The StableHLO of `function`, jitted, for an H100; arguments may be ShapeDtypeStructs."""
    device = jax.sharding.AbstractDevice(device_kind="NVIDIA H100", platform="gpu", num_cores=None)
    mesh = jax.sharding.AbstractMesh((), (), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        return jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()


TRITON_CALL = "__gpu$xla.gpu.triton"  # the custom call that holds a kernel
