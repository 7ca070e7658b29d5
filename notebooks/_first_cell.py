# %%
# Install mla_jax where it is missing. A JAX that is there (Colab brings its own, made for its device) is never replaced.
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import tempfile

# A checkout, a wheel or git+https://...; on Colab, write one of them here.
SOURCE = os.environ.get("MLA_JAX_SOURCE", "..")
if importlib.util.find_spec("mla_jax") is None:
    if SOURCE == ".." and not os.path.exists("../pyproject.toml"):
        raise SystemExit("mla_jax is not installed and not beside this notebook: say in SOURCE where it is to be had.")
    installed = [d.metadata["Name"] for d in importlib.metadata.distributions()]
    pinned = {name: importlib.metadata.version(name) for name in installed if name and name.lower().startswith("jax")}
    with tempfile.NamedTemporaryFile("w", suffix=".txt", delete=False) as constraints:
        constraints.writelines(f"{name}=={version}\n" for name, version in pinned.items())
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "-c", constraints.name, SOURCE], check=True)
QUICK = os.environ.get("MLA_JAX_QUICK", "") == "1"  # a few steps only: how the tests run this notebook
