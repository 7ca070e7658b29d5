"""mla_jax.interop without torch: logits of transformers from golden fixtures, names and orders both ways, refusals."""

import json
import subprocess
import sys
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from hf_tools import FIXTURES, assert_trees_equal, fixture, random_bias
from run_tools import story_texts
from tiny import GRID, abstract_params, grid_config, quick_jit, random_params, reference_model

from mla_jax import config as config_lib
from mla_jax.config import Config
from mla_jax.data.tokenizer import Tokenizer, train_tokenizer
from mla_jax.errors import UserError
from mla_jax.interop import families, weights
from mla_jax.interop.hf import _foreign_config
from mla_jax.interop.hf_config import HFConfig, model_knobs
from mla_jax.interop.tokenizer import tokenizer_config, tokenizer_json
from mla_jax.model.transformer import variables_of

# Every point of the grid that has an equal; for each of the others, words of the reason.
EXPORTED = {
    "mha-rope": "LlamaForCausalLM",
    "mha-rope-head_dim": "LlamaForCausalLM",
    "gqa-rope": "LlamaForCausalLM",
    "mqa-rope": "LlamaForCausalLM",
    "joint-decoupled-norm_rms": "DeepseekV3ForCausalLM",
    "joint-decoupled-q_lora-norm_rms": "DeepseekV3ForCausalLM",
    "mha-learned-gpt": "GPT2LMHeadModel",
}
REFUSED = {
    "mha-none": "model.position is 'none'",
    "mha-learned": "model.position is 'learned'",
    "gqa-learned": "model.position is 'learned'",
    "joint-none-norm_rms": "model.position is 'none'",
    "joint-learned-norm_rms": "model.position is 'learned'",
    "joint-decoupled-norm_none": "model.latent_norm is 'none'",
    "joint-decompressed-norm_rms": "model.rope_placement is 'decompressed'",
    "per_head-decoupled-norm_rms": "model.latent is 'per_head'",
    "joint-decoupled-q_lora-norm_none": "model.latent_norm is 'none'",
    "mha-rope-qk_norm": "model.qk_norm is True",
    "joint-decoupled-qk_norm": "model.qk_norm is True",
    "gqa-rope-gpt": "model.attention is 'gqa'",
    "joint-decoupled-gpt": "model.block is 'gpt'",
}


def read_config(text: str, folder: Path) -> HFConfig:
    (folder / "config.json").write_text(text)
    return HFConfig(folder / "config.json")


@pytest.mark.parametrize("name", FIXTURES)
def test_logits_of_transformers_from_its_own_weights(name: str, tmp_path: Path) -> None:
    golden = fixture(name)
    hf_config = read_config(golden.config, tmp_path)
    config = _foreign_config(model_knobs(hf_config), "config.json")
    params, router_bias = weights.to_params(config.model, golden.tensors, name, hf_config.interleaved)
    model = reference_model(config)
    assert jax.tree.structure(params) == jax.tree.structure(dict(abstract_params(model)))
    logits, _ = quick_jit(model.apply)(variables_of(params, router_bias), golden.tokens)
    np.testing.assert_allclose(logits, golden.logits, atol=1e-4, rtol=0)
    assert np.abs(golden.logits).max() > 1  # and not because all is near zero


def test_the_order_of_rotary_rows_matters(tmp_path: Path) -> None:
    """Rows read in the other order give other logits: the tests above would not miss it."""
    golden = fixture("deepseek_half_split")
    config = _foreign_config(model_knobs(read_config(golden.config, tmp_path)), "config.json")
    wrong, _ = weights.to_params(config.model, golden.tensors, "there", interleaved=True)
    logits, _ = quick_jit(reference_model(config).apply)({"params": wrong}, golden.tokens)
    assert np.abs(logits - golden.logits).max() > 1e-2


def test_the_router_bias_matters(tmp_path: Path) -> None:
    """Without it, or with that of other layers or experts, tokens go elsewhere."""
    golden = fixture("deepseek_moe_raw")
    config = _foreign_config(model_knobs(read_config(golden.config, tmp_path)), "config.json")
    params, bias = weights.to_params(config.model, golden.tensors, "there")
    apply = quick_jit(reference_model(config).apply)
    for wrong in (0 * bias, bias[::-1], bias[:, ::-1]):
        logits, _ = apply(variables_of(params, wrong), golden.tokens)
        assert np.abs(logits - golden.logits).max() > 1e-2


@pytest.mark.parametrize("name", FIXTURES)
def test_export_gives_back_the_tensors_of_transformers(name: str, tmp_path: Path) -> None:
    golden = fixture(name)
    hf_config = read_config(golden.config, tmp_path)
    if not hf_config.interleaved:
        pytest.skip("an export always writes DeepSeek's interleaved order")
    config = _foreign_config(model_knobs(hf_config), "config.json")
    loaded = weights.to_params(config.model, golden.tensors, name)
    assert_trees_equal(weights.to_tensors(config.model, *loaded), golden.tensors)


@pytest.mark.parametrize("name", FIXTURES)
def test_the_config_reads_back_as_what_was_written(name: str, tmp_path: Path) -> None:
    knobs = model_knobs(read_config(fixture(name).config, tmp_path))
    config = _foreign_config(knobs, "config.json")
    written = families.hf_config(config.model, separator_id=1)
    assert written["architectures"] == json.loads(fixture(name).config)["architectures"]
    assert model_knobs(read_config(json.dumps(written), tmp_path)) == knobs


EXPERTS = {
    "model.ffn": "moe",
    "model.n_routed_experts": 5,
    "model.n_shared_experts": 1,
    "model.top_k": 2,
    "model.d_expert": 7,
}
WITH_EXPERTS = {
    "one_dense_layer": {"model.first_k_dense": 1, "model.routed_scaling_factor": 2.0},
    "two_shared": {"model.n_shared_experts": 2, "model.router_renormalize": False},
    "none_shared": {"model.n_shared_experts": 0},
}


@pytest.mark.parametrize("point", [*EXPORTED, *WITH_EXPERTS])
def test_parameters_survive_the_way_there_and_back(point: str) -> None:
    config = grid_config(point) if point in EXPORTED else moe_config(WITH_EXPERTS[point])
    assert families.family(config.model) == EXPORTED.get(point, "DeepseekV3ForCausalLM")
    params, bias = random_params(reference_model(config)), random_bias(config)
    tensors = weights.to_tensors(config.model, params, bias)
    assert sum(t.size for t in tensors.values()) == sum(a.size for a in jax.tree.leaves((params, bias)))
    back, back_bias = weights.to_params(config.model, tensors, "there")
    assert_trees_equal(back, dict(params))
    assert_trees_equal({"bias": back_bias}, {"bias": bias})


def moe_config(changes: dict) -> Config:
    return grid_config("joint-decoupled-norm_rms", **(EXPERTS | changes))


def test_experts_without_an_equal_are_refused() -> None:
    for config, words in (
        (grid_config("mha-rope", **EXPERTS), "its attention is MLA"),
        (moe_config({"model.router_score": "softmax"}), "by a sigmoid"),
        (moe_config({"model.n_routed_experts": 1, "model.top_k": 1}), "among two or more"),
    ):
        with pytest.raises(UserError, match=words):
            families.family(config.model)
    config = moe_config({})
    masked = np.zeros((2, 5), np.float32)
    masked[1, 3] = -np.inf
    with pytest.raises(UserError, match="masks experts"):
        weights.to_tensors(config.model, random_params(reference_model(config)), masked)


@pytest.mark.parametrize("point", sorted(set(GRID) - set(EXPORTED)))
def test_a_variant_without_an_equal_is_refused_with_the_reason(point: str) -> None:
    with pytest.raises(UserError, match="cannot be exported: .*") as refused:
        families.hf_config(grid_config(point).model, separator_id=1)
    assert REFUSED.get(point, "model.") in str(refused.value)


def test_every_reason_was_seen() -> None:
    assert set(EXPORTED) | set(REFUSED) <= set(GRID)


def test_a_width_that_heads_do_not_divide_is_refused() -> None:
    for point, words in (("mha-rope-head_dim", "divisor of d_model"), ("mha-learned-gpt", "d_model / n_heads")):
        config = grid_config(point, **{"model.n_heads": 3, "model.head_dim": 6})
        with pytest.raises(UserError, match=words):
            families.family(config.model)


CONFIG_LIES = {
    "no_json": ("llama_gqa", None, "not a JSON object"),
    "no_architecture": ("llama_gqa", {"architectures": None}, "architectures is None"),
    "other_architecture": ("llama_gqa", {"architectures": ["MistralForCausalLM"]}, "MistralForCausalLM", "Llama"),
    "type_of_another": ("llama_gqa", {"model_type": "gpt2"}, "model_type is 'gpt2'"),
    "no_width": ("llama_gqa", {"hidden_size": None}, "hidden_size is None", "between 1 and"),
    "text_for_a_number": ("llama_gqa", {"num_hidden_layers": "2"}, "num_hidden_layers is '2'"),
    "negative": ("llama_gqa", {"num_hidden_layers": -1}, "num_hidden_layers is -1"),
    "huge": ("llama_gqa", {"vocab_size": 10**12}, "vocab_size is 1000000000000"),
    "other_activation": ("llama_gqa", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    "biases": ("llama_gqa", {"attention_bias": True}, "attention_bias is True"),
    "other_eps": ("llama_gqa", {"rms_norm_eps": 1e-5}, "rms_norm_eps is 1e-05", "1e-06"),
    "scaled_rope": (
        "llama_gqa",
        {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 500.0}},
        "plain RoPE",
    ),
    "old_scaled_rope": ("llama_gqa", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "plain RoPE"),
    "theta_is_zero": ("llama_gqa", {"rope_parameters": {"rope_type": "default", "rope_theta": 0}}, "rope_theta"),
    "two_thetas": ("llama_gqa", {"rope_theta": 7.0}, "rope_theta is 7.0", "500.0"),
    "quantised": ("llama_gqa", {"quantization_config": {"bits": 4}}, "quantization_config"),
    "fewer_key_heads": ("deepseek", {"num_key_value_heads": 1}, "num_key_value_heads is 1"),
    "half_rotated": (
        "deepseek",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5}},
        "all of a head",
    ),
    "odd_rope": ("deepseek", {"qk_rope_head_dim": 5}, "even"),
    "grouped_experts": ("deepseek_moe", {"n_group": 2}, "topk_group is 1", "2 groups"),
    "softmax_router": ("deepseek_moe", {"scoring_func": "softmax"}, "scoring_func is 'softmax'"),
    "more_chosen_than_there_are": ("deepseek_moe", {"num_experts_per_tok": 7}, "top_k", "7"),
    "no_experts": ("deepseek_moe", {"n_routed_experts": 0}, "n_routed_experts is 0"),
    "a_huge_head": ("deepseek", {"qk_rope_head_dim": 2**31 - 2}, "qk_rope_head_dim is 2147483646"),
    "no_scale": ("deepseek_moe", {"routed_scaling_factor": None}, "routed_scaling_factor"),
    "exact_gelu": ("gpt2", {"activation_function": "gelu"}, "activation_function is 'gelu'", "gelu_new"),
    "scaled_by_layer": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    "heads_do_not_divide": ("gpt2", {"n_head": 5}, "n_head is 5", "24"),
}


@pytest.mark.parametrize("lie", CONFIG_LIES)
def test_a_config_json_that_ours_does_not_compute_is_refused(lie: str, tmp_path: Path) -> None:
    name, change, *words = CONFIG_LIES[lie]
    text = "[1]" if change is None else json.dumps(json.loads(fixture(name).config) | change)
    with pytest.raises(UserError) as refused:
        _foreign_config(model_knobs(read_config(text, tmp_path)), str(tmp_path / "config.json"))
    for word in ("config.json", *words):
        assert word in str(refused.value), refused.value


def bpe(content: dict, text: str) -> list[int]:
    """A `tokenizers` BPE with byte fallback, written from its documentation: lowest rank first, then the leftmost."""
    vocab, ranks = content["model"]["vocab"], {tuple(m): i for i, m in enumerate(content["model"]["merges"])}
    parts = []
    for character in text:
        known = character in vocab
        parts += [character] if known else [f"<0x{byte:02X}>" for byte in character.encode("utf-8")]
    while True:
        pairs = [(ranks[pair], i) for i, pair in enumerate(zip(parts, parts[1:], strict=False)) if pair in ranks]
        if not pairs:
            return [vocab[part] for part in parts]
        _, i = min(pairs)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    extra = ["\u00e9t\u00e9  aaa aaaa aaaaaa hahaha hahahaha ... ......\n\n\u2581x"] * 4
    return Tokenizer(train_tokenizer(story_texts(60) + extra, 380))


def test_the_tokenizer_there_encodes_to_the_same_ids(tokenizer: Tokenizer) -> None:
    content = tokenizer_json(tokenizer)
    assert content["model"]["byte_fallback"] and content["normalizer"] is None and content["pre_tokenizer"] is None
    pieces = st.sampled_from(
        ["a", "aa", "ha", " ", "  ", ".", "\n", "\u2581", "\u00e9", "<0x41>", "<unk>", "the ", "\0"]
    )
    texts = st.one_of(st.text(max_size=30), st.lists(pieces, max_size=25).map("".join))

    @hypothesis.settings(max_examples=250)
    @hypothesis.given(texts.filter(lambda text: not any("\ud800" <= c <= "\udfff" for c in text)))
    def same(text: str) -> None:
        assert bpe(content, text) == tokenizer.encode(text)

    same()
    for story in story_texts(20, seed=5):
        assert bpe(content, story) == tokenizer.encode(story)


def test_the_tokenizer_there_knows_the_separator_and_no_other_symbol(tokenizer: Tokenizer) -> None:
    content = tokenizer_json(tokenizer)
    assert [token["content"] for token in content["added_tokens"]] == ["<|endoftext|>"]
    assert content["model"]["vocab"]["<|endoftext|>"] == tokenizer.separator_id
    assert content["model"]["unk_token"] is None
    settings = tokenizer_config(tokenizer, 64)
    assert settings["bos_token"] == settings["eos_token"] == "<|endoftext|>" and settings["model_max_length"] == 64


def test_a_tokenizer_that_would_encode_otherwise_is_refused(tmp_path: Path) -> None:
    import io

    import sentencepiece as spm

    def train(**changes: object) -> Tokenizer:
        model = io.BytesIO()
        options = dict(model_type="bpe", add_dummy_prefix=False, user_defined_symbols=["\n"]) | changes
        spm.SentencePieceTrainer.train(
            sentence_iterator=iter(story_texts(50)),
            model_writer=model,
            vocab_size=330,
            hard_vocab_limit=False,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            required_chars="\u2581",
            unk_id=0,
            eos_id=1,
            eos_piece="<|endoftext|>",
            bos_id=-1,
            pad_id=-1,
            minloglevel=2,
            **options,
        )
        return Tokenizer(model.getvalue())

    assert tokenizer_json(train())["version"] == "1.0"
    with pytest.raises(UserError, match="not a BPE model"):
        tokenizer_json(train(model_type="unigram"))
    with pytest.raises(UserError, match="user-defined symbols"):
        tokenizer_json(train(user_defined_symbols=["\n", "old key"]))


def test_interop_needs_no_optimizer_no_trainer_and_no_torch() -> None:
    program = """
import sys
import mla_jax.interop.hf, mla_jax.interop.import_hf, mla_jax.interop.export_mode
print(sorted({name.split(".")[0] for name in sys.modules} & {"torch", "transformers", "optax", "grain"}))
print([name for name in sys.modules if name.startswith("mla_jax.train")])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[1] == "[]", done.stdout
    assert "torch" not in done.stdout and "transformers" not in done.stdout and "optax" not in done.stdout, done.stdout


def test_a_config_is_kept_whole_by_its_manifest_without_paths() -> None:
    from mla_jax.interop.manifest import _without_corpus_path, _without_paths

    config = config_lib.replace(
        grid_config("mha-rope"),
        **{"data.path": "/home/me/a.txt", "data.valid_path": "/home/me/b.txt", "init_from": "/r"},
    )
    kept = _without_paths(config)
    assert (kept.data.path, kept.data.valid_path, kept.init_from) == ("a.txt", "b.txt", "")
    assert "/home/me" not in json.dumps(kept.to_dict())
    assert _without_corpus_path({"stats": {"corpus": "/x/a.txt, /x/b.txt"}})["stats"]["corpus"] == "a.txt, b.txt"
