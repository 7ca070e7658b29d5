"""The torch peer is our `block=gpt`: the same weights and batches give the same losses, step after step."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import reference_model

from mla_jax.bench.peers.torch_train import peer_config
from mla_jax.config import replace
from mla_jax.model.initial import init_params
from mla_jax.train.optim import make_optimizer, schedule
from mla_jax.train.state import init_state
from mla_jax.train.step import make_train_step

STEPS = 20


@pytest.mark.slow
def test_twenty_adamw_steps_have_the_losses_of_torch() -> None:
    """Issue 6: within 1e-4 each step. A step so large that a wrong sign or scale would show at once."""
    torch = pytest.importorskip("torch", reason="the peer needs torch: pip install 'mla-jax[hf]'")
    from mla_jax.bench.peers import torch_gpt

    small = {"model.n_layers": 3, "model.d_model": 64, "model.n_heads": 4, "model.head_dim": 16, "model.d_ff": 256}
    small |= {"model.n_kv_heads": 4, "optim.warmup_steps": 5, "optim.decay_steps": 40, "optim.learning_rate": 3e-3}
    config = replace(peer_config("xs", 512, 8, 32), **small)
    model, optimizer = reference_model(config), make_optimizer(config.optim)
    params = init_params(model, 0)
    noise = iter(jax.random.split(jax.random.key(1), 1000))
    # Biases and gains at their start would hide what is swapped among them.
    params = jax.tree.map(lambda p: p + 0.02 * jax.random.normal(next(noise), p.shape), params)
    peer = torch_gpt.Gpt(config.model)
    torch_gpt.load_params(peer, params)
    peer_optimizer = torch_gpt.adamw(peer, config, fused=False)
    state, step, rate = (
        init_state(model, optimizer, params),
        make_train_step(model, optimizer, config),
        schedule(config.optim),
    )
    rng = np.random.default_rng(0)
    ours, theirs = [], []
    for i in range(STEPS):
        tokens = rng.zipf(1.3, (8, 33)) % 512
        batch = {"tokens": jnp.asarray(tokens, jnp.int32), "segment_ids": jnp.ones((8, 33), jnp.int32)}
        state, metrics = step(state, batch)
        ours.append(float(metrics["loss"]))
        loss = torch_gpt.step(peer, peer_optimizer, torch.from_numpy(tokens), float(rate(i)), config.optim.clip_norm)
        theirs.append(float(loss))
    difference = np.abs(np.asarray(ours) - np.asarray(theirs))
    print(f"largest difference {difference.max():.2e} nats over {STEPS} steps, loss {ours[0]:.4f} -> {ours[-1]:.4f}")
    assert difference.max() < 1e-4
    assert ours[-1] < ours[0] - 0.3  # they learned, so that the optimizers are compared as well


@pytest.mark.slow
def test_the_peer_is_measured_by_one_command(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the peer needs torch: pip install 'mla-jax[hf]'")
    command = [
        sys.executable,
        "-m",
        "mla_jax.bench.peers.torch_train",
        "--size",
        "xs",
        "--vocab",
        "512",
        "--batch",
        "1",
    ]
    command += [
        "--length",
        "16",
        "--steps",
        "1",
        "--repeats",
        "2",
        "--no_compile",
        "--out",
        str(tmp_path / "rows.jsonl"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    row = json.loads((tmp_path / "rows.jsonl").read_text())
    assert row["metrics"]["step_ms"] > 0
    assert row["metrics"]["params"] > 4e6


def test_without_torch_there_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mla_jax.bench.peers import torch_train
    from mla_jax.errors import UserError

    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"pip install 'mla-jax\[hf\]'"):
        torch_train.main(["--size", "xs", "--out", str(tmp_path / "rows.jsonl")])
    assert not (tmp_path / "rows.jsonl").exists()
