"""What every test shares. State of the whole process that is set here, and nowhere else in the tests:

* on a CPU, XLA compiles quickly and makes slow programs: tests run once and compile often;
* hypothesis runs without deadlines (a first call compiles) and from a fixed seed, so that a red run is red again;
* float32 products keep float32 precision on devices that would use TF32 or bfloat16 for them.

Subprocesses that tests start compile quickly too, and see nothing else of this. test_smoke.py, test_packaging.py
and test_bench.py start what a user would, whose compiler has no such flags. Tiny models and their weights: `tiny.py`.
"""

import importlib.metadata
import os

# A tiny train step compiles in 0.2 s of processor time instead of 3.2: 1.7 s are optimisation, 1.1 s the emitters of
# fusions (MLIR), 0.1 s the division into modules for threads. Set before JAX starts; the user's own flags come last.
FLAGS = ["xla_cpu_parallel_codegen_split_count=1", "xla_backend_optimization_level=0"]
FLAGS += ["xla_llvm_disable_expensive_passes=true"]
if tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 11):  # which ends at a flag it has not
    FLAGS += ["xla_cpu_use_fusion_emitters=false"]
if os.environ.get("JAX_PLATFORMS", "cpu") == "cpu":  # on a GPU, tests say which: launch/gpu_speed.sh
    os.environ["XLA_FLAGS"] = " ".join([*(f"--{flag}" for flag in FLAGS), os.environ.get("XLA_FLAGS", "")]).strip()

import hypothesis  # noqa: E402
import jax  # noqa: E402

hypothesis.settings.register_profile("mla_jax", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("mla_jax")
jax.config.update("jax_default_matmul_precision", "highest")
