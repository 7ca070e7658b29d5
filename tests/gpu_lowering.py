"""Lowering for a GPU on a machine that has none: Pallas' Triton lowering runs in full, the GPU's compiler does not."""

from collections.abc import Callable
from typing import Any

import jax


def lower_for_h100(function: Callable, *arguments: Any) -> str:
    """The StableHLO of `function`, jitted, for an H100; arguments may be ShapeDtypeStructs."""
    return lowered_for_h100(jax.jit(function), *arguments)


def lowered_for_h100(jitted: Any, *arguments: Any) -> str:
    """The same of what is jitted already."""
    device = jax.sharding.AbstractDevice(device_kind="NVIDIA H100", platform="gpu", num_cores=None)
    mesh = jax.sharding.AbstractMesh((), (), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        return jitted.trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()


TRITON_CALL = "__gpu$xla.gpu.triton"  # the custom call that holds a kernel
