"""The public names of mla_jax stay what they are, whatever submodules have been imported; devices; the loop's clock."""

import subprocess
import sys
import types

import pytest

from mla_jax import devices
from mla_jax.train.reporting import Reporting


def test_public_names_survive_the_import_of_submodules() -> None:
    """In a fresh process: importing mla_jax.train.loop binds `train` in the package."""
    program = """
import mla_jax
for _ in range(2):
    assert callable(mla_jax.train) and callable(mla_jax.evaluate) and callable(mla_jax.kv_bytes)
    import mla_jax.train.loop, mla_jax.evaluation, mla_jax.eval_mode
    from mla_jax.train import loop
    assert mla_jax.evaluate is mla_jax.eval_mode.evaluate
    for name in mla_jax.__all__:
        getattr(mla_jax, name)
try:
    mla_jax.train(mla_jax.load_config("smoke", **{"data.path": "nowhere.txt"}), "r")
except mla_jax.UserError as error:
    print("refused:", error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "refused:" in done.stdout and "nowhere.txt" in done.stdout


@pytest.mark.parametrize(
    ("name", "peak"), [("NVIDIA L40S", 362e12), ("NVIDIA L4", 121e12), ("NVIDIA H100 80GB HBM3", 989e12), ("cpu", None)]
)
def test_peak_of_the_device_named(monkeypatch: pytest.MonkeyPatch, name: str, peak: float | None) -> None:
    monkeypatch.setattr(devices, "device_name", lambda: name)
    assert devices.peak_flops() == peak


def test_throughput_is_read_after_the_newest_step_has_ended() -> None:
    """Read before, the clock would divide N steps by the time of N - 1."""
    order: list[str] = []
    report = object.__new__(Reporting)

    class Stop(Exception):
        pass

    class Clock:
        def tokens_per_s(self) -> float:
            order.append("clock")
            raise Stop

    report.clock = Clock()
    report._pending = types.SimpleNamespace(drain=lambda keep: order.append(f"drain {keep}"))
    with pytest.raises(Stop):
        report.log(1, None, {}, 0)
    assert order == ["drain 0", "clock"]
