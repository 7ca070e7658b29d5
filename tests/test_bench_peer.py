"""The torch peers are our models: the same weights give the same losses of `block=gpt`, and the same tokens of MHA."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import quick_jit, random_params, reference_model, tiny_config

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
    torch = pytest.importorskip("torch", reason="the peer needs torch: pip install '.[hf]'")
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
def test_the_decoding_peer_draws_our_tokens() -> None:
    """A prompt token by token, then greedy: each step's token is the argmax of our forward pass over all up to there.

    What stands in its cache ahead of the position, random numbers, would show.
    """
    torch = pytest.importorskip("torch", reason="the peer needs torch: pip install '.[hf]'")
    from mla_jax.bench.peers import torch_decode

    config = tiny_config("mha_rope", **{"model.max_len": 32})
    model, batch, context = reference_model(config), 3, 32
    params = random_params(model)
    peer = torch_decode.build(config.model, batch, context).eval()
    load_decoder(torch, peer, params)
    prompt = np.random.default_rng(0).integers(0, config.model.vocab_size, (batch, 24))  # alone they soon repeat one
    read, drawn = list(torch.from_numpy(prompt).unbind(1)), []
    with torch.inference_mode():
        for position in range(context):
            drawn.append(peer(read[position], torch.tensor(position), True).clone())
            read += drawn[-1:] if len(read) == position + 1 else []
    tokens = jnp.asarray(np.stack(read[:context], axis=1), jnp.int32)
    logits = np.asarray(quick_jit(model.apply)({"params": params}, tokens)[0])
    np.testing.assert_array_equal(np.stack(drawn, axis=1), logits.argmax(-1))
    assert len(np.unique(drawn)) > 10


def load_decoder(torch: Any, peer: Any, params: Any) -> None:
    """Copy the params of our mha_rope into `torch_decode.build`'s module, whose matrices are [out, in]."""

    def rows(*matrices: Any) -> np.ndarray:
        """[D, ...] each -> [..., D], side by side."""
        return np.concatenate([np.asarray(w).reshape(len(w), -1).T for w in matrices])

    weights = {"embedding.weight": params["embedding"], "norm.weight": params["final_norm"]["gain"]}
    for i in range(len(peer.layers)):
        layer = params[f"layer_{i}"]
        attention, ffn = layer["attention"], layer["ffn"]
        weights |= {
            f"layers.{i}.norm.weight": layer["attention_norm"]["gain"],
            f"layers.{i}.ffn_norm.weight": layer["ffn_norm"]["gain"],
            f"layers.{i}.qkv.weight": rows(attention["w_q"], attention["w_k"], attention["w_v"]),
            f"layers.{i}.out.weight": np.asarray(attention["w_o"]).reshape(-1, len(params["embedding"][0])).T,
            f"layers.{i}.gate_up.weight": rows(ffn["w_gate"], ffn["w_up"]),
            f"layers.{i}.down.weight": rows(ffn["w_down"]),
        }
    named = dict(peer.named_parameters())
    assert named.keys() == weights.keys()
    with torch.no_grad():
        for name, value in weights.items():
            named[name].copy_(torch.tensor(np.asarray(value)))


@pytest.mark.slow
def test_the_peer_is_measured_by_one_command(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the peer needs torch: pip install '.[hf]'")
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
    with pytest.raises(UserError, match=r"pip install '.\[hf\]' in the checkout"):
        torch_train.main(["--size", "xs", "--out", str(tmp_path / "rows.jsonl")])
    assert not (tmp_path / "rows.jsonl").exists()
