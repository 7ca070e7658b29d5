"""Exports in transformers itself: logits, greedy decoding, tokenizer and the way back, for random configs.

Needs pip install '.[hf]' in the checkout; `launch/test.sh --full` installs it.
"""

import os
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hf_tools import assert_trees_equal, untrained_run
from run_tools import story_texts

from mla_jax.config import Config
from mla_jax.config_files import load_config
from mla_jax.data.tokenizer import Tokenizer, train_tokenizer
from mla_jax.interop import hf
from mla_jax.model.cache import init_cache
from mla_jax.model.moe import MoE
from mla_jax.runs import Run

os.environ["HF_HUB_OFFLINE"] = "1"
REASON = "needs pip install '.[hf]' in the checkout"
torch = pytest.importorskip("torch", reason=REASON)
transformers = pytest.importorskip("transformers", reason=REASON)
pytestmark = pytest.mark.slow

TINYSTORIES = Path(__file__).resolve().parents[2] / "shared" / "data" / "tinystories" / "valid.txt"
NEW_TOKENS = 64
FAMILIES = ["deepseek", "deepseek_q_lora", "deepseek_moe", "llama_mha", "llama_gqa", "gpt2"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(train_tokenizer(story_texts(60), 340))


def random_config(family: str, seed: int, vocab_size: int) -> Config:
    """Widths, depths, heads and bases drawn at random; what makes the family is fixed."""
    rng = np.random.default_rng([seed, len(family)])

    def pick(*values: Any) -> Any:
        return values[rng.integers(len(values))]

    heads = pick(1, 2, 3, 4)
    model: dict[str, Any] = {
        "n_layers": pick(1, 2, 3),
        "n_heads": heads,
        "d_model": heads * pick(8, 12, 16),
        "d_ff": pick(20, 32, 56),
        "vocab_size": vocab_size,
        "max_len": 96,
        "rope_theta": pick(100.0, 10000.0, 500000.0),
    }
    if family == "gpt2":
        model |= {"attention": "mha", "position": "learned", "block": "gpt"}
    elif family == "llama_mha":
        model |= {"attention": "mha", "position": "rope", "head_dim": pick(0, 6, 16)}
    elif family == "llama_gqa":
        model |= {"attention": "gqa", "position": "rope", "n_heads": 4, "d_model": 32, "n_kv_heads": pick(1, 2, 4)}
    else:
        model |= {
            "attention": "mla",
            "position": "rope",
            "kv_lora_rank": pick(5, 8),
            "q_lora_rank": {"deepseek": 0, "deepseek_q_lora": pick(3, 7)}.get(family, pick(0, 5)),
            "qk_nope_head_dim": pick(4, 7, 10),
            "qk_rope_head_dim": pick(2, 6, 8),
            "v_head_dim": pick(5, 8, 11),
        }
    if family == "deepseek_moe":
        model |= {
            "ffn": "moe",
            "n_layers": 3,
            "n_routed_experts": pick(4, 7, 16),
            "n_shared_experts": seed % 3,
            "top_k": pick(1, 2, 4),
            "d_expert": pick(5, 8),
            "first_k_dense": pick(0, 1, 2),
            "router_renormalize": pick(True, False),
            "routed_scaling_factor": pick(1.0, 2.5),
        }
    values = {f"model.{name}": value for name, value in model.items()}
    return load_config("base", **values, **{"train.seq_len": 96, "sample.max_new_tokens": 8})


def greedy(run: Run, prompt: np.ndarray) -> list[int]:
    """NEW_TOKENS tokens by our prefill and decode over the cache."""
    store = init_cache(run.config.model, 1, len(prompt) + NEW_TOKENS, run.model.backend.jnp_dtype)
    lengths = jnp.asarray([len(prompt)], jnp.int32)
    logits, store = run.model.apply(run.variables, jnp.asarray(prompt)[None], lengths, store, method="prefill")
    decode = jax.jit(lambda token, start, store: run.model.apply(run.variables, token, start, store, method="decode"))
    tokens = [int(jnp.argmax(logits[0]))]
    for i in range(NEW_TOKENS - 1):
        logits, store = decode(jnp.asarray([[tokens[-1]]]), lengths + i, store)
        tokens.append(int(jnp.argmax(logits[0, -1])))
    return tokens


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_computes_the_same(family: str, seed: int, tokenizer: Tokenizer, tmp_path: Path, capsys) -> None:
    config = random_config(family, seed, tokenizer.vocab_size)
    run = untrained_run(tmp_path / "run", config, tokenizer, seed)
    folder = hf.export(run, tmp_path / "out")
    plain = {"attn_implementation": "eager"}
    if family == "deepseek_moe" and int(transformers.__version__.partition(".")[0]) >= 5:
        plain["experts_implementation"] = "eager"  # the default one wants widths that are multiples of 4
    model, report = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **plain)
    assert not any(report.values()), report
    tokens = np.random.default_rng(seed).integers(0, tokenizer.vocab_size, (3, 40)).astype(np.int32)
    ours, _ = jax.jit(run.model.apply)(run.variables, tokens)
    with torch.no_grad():
        theirs = model(torch.tensor(tokens).long()).logits.numpy()
    error = float(np.abs(np.asarray(ours) - theirs).max())
    with capsys.disabled():
        print(f"\n{family} {seed}: logits up to {np.abs(theirs).max():.2f}, largest difference {error:.1e}", end=" ")
    assert error < 1e-4

    prompt = tokens[0, :9]
    generated = model.generate(
        torch.tensor(prompt).long()[None], do_sample=False, max_new_tokens=NEW_TOKENS, eos_token_id=None
    )[0, len(prompt) :].tolist()
    assert len(generated) == NEW_TOKENS and greedy(run, prompt) == generated

    back = hf.load(folder)
    assert_trees_equal(dict(back.params), dict(run.params))
    assert_trees_equal({"bias": back.router_bias}, {"bias": run.router_bias})


@pytest.mark.parametrize("seed", range(5))
def test_a_layer_of_experts_is_transformers_own(seed: int, tokenizer: Tokenizer, tmp_path: Path, capsys) -> None:
    """Shared and routed experts alone, each layer on random inputs; the bias as large as differences of scores."""
    config = random_config("deepseek_moe", seed, tokenizer.vocab_size)
    run = untrained_run(tmp_path / "run", config, tokenizer, seed)
    assert float(np.abs(run.router_bias).max()) > 0.05
    plain = {"attn_implementation": "eager"}
    if int(transformers.__version__.partition(".")[0]) >= 5:
        plain["experts_implementation"] = "eager"
    folder = hf.export(run, tmp_path / "out")
    model, largest, first = transformers.AutoModelForCausalLM.from_pretrained(folder, **plain), 0.0, 0.0
    module = MoE(config.model, run.model.backend)
    x = np.random.default_rng(seed).standard_normal((3, 40, config.model.d_model)).astype(np.float32)
    for index, bias in enumerate(run.router_bias):
        layer = config.model.first_k_dense + index
        ours, _ = jax.jit(module.apply)({"params": run.params[f"layer_{layer}"]["ffn"]}, x, jnp.asarray(bias))
        with torch.no_grad():
            theirs = model.model.layers[layer].mlp(torch.tensor(x)).numpy()
        largest, first = max(largest, float(np.abs(ours - theirs).max())), max(first, float(np.abs(theirs).max()))
    with capsys.disabled():
        print(f"\nlayer of experts {seed}: values up to {first:.2f}, largest difference {largest:.1e}", end=" ")
    assert largest < 1e-4


@pytest.mark.parametrize("family", ["deepseek_moe", "llama_gqa", "gpt2"])
def test_what_transformers_saves_comes_back(family: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Loaded there, saved there by save_pretrained (its config.json, no manifest), loaded here."""
    config = random_config(family, 0, tokenizer.vocab_size)
    run = untrained_run(tmp_path / "run", config, tokenizer)
    folder = hf.export(run, tmp_path / "out")
    transformers.AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path / "saved")
    back = hf.load(tmp_path / "saved", tokenizer=folder / "tokenizer.model")
    assert_trees_equal(dict(back.params), dict(run.params))
    assert_trees_equal({"bias": back.router_bias}, {"bias": run.router_bias})


@pytest.mark.parametrize("family", ["deepseek", "llama_mha", "gpt2"])
def test_auto_tokenizer_encodes_to_our_ids(family: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    config = random_config(family, 0, tokenizer.vocab_size)
    folder = hf.export(untrained_run(tmp_path / "run", config, tokenizer), tmp_path / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert (theirs.bos_token_id, theirs.eos_token_id, len(theirs)) == (1, 1, tokenizer.vocab_size)
    check_texts(theirs, tokenizer)
    assert theirs("<|endoftext|>a").input_ids == [tokenizer.separator_id, *tokenizer.encode("a")]


@pytest.mark.real_data
@pytest.mark.skipif(not TINYSTORIES.is_file(), reason="no ../shared/data/tinystories")
@pytest.mark.parametrize("vocab_size", [512, 4096])
def test_auto_tokenizer_on_all_of_tinystories(vocab_size: int, tmp_path: Path) -> None:
    stories = TINYSTORIES.read_text(encoding="utf-8").split("<|endoftext|>")
    tokenizer = Tokenizer(train_tokenizer(stories, vocab_size))
    config = random_config("llama_mha", 0, tokenizer.vocab_size)
    folder = hf.export(untrained_run(tmp_path / "run", config, tokenizer), tmp_path / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert theirs(stories).input_ids == tokenizer.encode_batch(stories)
    whole = "".join(stories)
    assert theirs(whole).input_ids == tokenizer.encode(whole)
    check_texts(theirs, tokenizer)


def check_texts(theirs: Any, ours: Tokenizer) -> None:
    """Equal ids and exact decoding for 1,000 hypothesis strings, among them every trap that is known."""
    pieces = st.sampled_from(["a", "aa", "ha", " ", "  ", ".", "\n", "\r", "\t", "\u2581", "\u00e9", "e\u0301", "\0"])
    traps = st.sampled_from(["<0x41>", "<unk>", "<s>", "</s>", "\ufeff", "\u00a0", "\U0001f600", "\ufb01", "\u65e5"])
    mixed = st.lists(st.one_of(pieces, traps, st.sampled_from(story_texts(3))), max_size=25).map("".join)
    texts = st.one_of(st.text(st.characters(codec="utf-8"), max_size=60), mixed)

    @hypothesis.settings(max_examples=1000)
    @hypothesis.given(texts)
    def same(text: str) -> None:
        ids = theirs(text).input_ids
        assert ids == ours.encode(text)
        assert theirs.decode(ids) == text

    same()
