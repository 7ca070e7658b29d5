"""config.json of a Hugging Face folder -> knobs of `model`; whatever our model would not compute is refused."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from mla_jax.errors import UserError
from mla_jax.interop import families
from mla_jax.interop.families import DEEPSEEK, GPT2, LLAMA
from mla_jax.model.functions import LAYER_NORM_EPS, RMS_EPS

LARGEST = 2**24  # of any size: what is larger is a lie, and would only fail later, for want of memory
_MISSING = object()


class HFConfig:
    """A config.json, read field by field; every complaint is a UserError that names the file and the field."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self.content = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(self.content, dict):
                raise TypeError
        except FileNotFoundError:
            raise UserError(
                f"{path} is missing, so {path.parent} is no Hugging Face model folder: copy it again."
            ) from None
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}): check its permissions.") from None
        except (ValueError, TypeError, RecursionError):
            raise UserError(f"{path} is not a JSON object: copy the folder again.") from None

    def fail(self, field: str, value: Any, rule: str) -> None:
        shown = repr(value) if len(repr(value)) < 100 else f"{repr(value)[:97]}..."
        raise UserError(f"{self.path}: {field} is {shown}; {rule}: mla_jax cannot import this model.")

    def integer(self, field: str, default: Any = _MISSING, least: int = 1) -> int:
        """A whole number >= least; null and absence give the default."""
        value = self.content.get(field)
        if value is None and default is not _MISSING:
            return default
        if type(value) is not int or not least <= value <= LARGEST:
            self.fail(field, value, f"it must be a whole number between {least} and {LARGEST:,}")
        return value

    def number(self, field: str, default: Any) -> float:
        value = self.content.get(field)
        value = default if value is None else value
        if type(value) not in (int, float) or abs(value) > 1e300:  # an int of JSON may be larger than any float
            self.fail(field, value, "it must be a number")
        return float(value)

    def must_be(self, field: str, allowed: Any, default: Any, rule: str) -> None:
        """Raise unless the field (or its default there) is `allowed`."""
        value = self.content.get(field, default)
        if value != allowed or type(value) is not type(allowed):
            self.fail(field, value, rule)

    @property
    def architecture(self) -> str:
        names = self.content.get("architectures")
        if not (isinstance(names, list) and len(names) == 1 and names[0] in list(families.MODEL_TYPES)):
            self.fail("architectures", names, "it must be one of " + ", ".join(families.MODEL_TYPES))
        wanted = families.MODEL_TYPES[names[0]]
        if self.content.get("model_type", wanted) != wanted:
            self.fail("model_type", self.content["model_type"], f"{names[0]} is of the type {wanted}")
        return names[0]

    @property
    def interleaved(self) -> bool:
        """Whether DeepSeek's rotary rows are stored as pairs 0-1, 2-3, ... (else half-split, as ours)."""
        value = self.content.get("rope_interleave", True)
        if type(value) is not bool:
            self.fail("rope_interleave", value, "it must be true or false")
        return value

    def check_head(self, tensors: Collection[str]) -> None:
        """Raise UserError for a model whose output matrix is its own and is not there: transformers would draw one."""
        name, field = self.architecture, "tie_word_embeddings"
        tied = self.content.get(field, families.TIED_UNLESS_SAID[name])
        if tied is not True and "lm_head.weight" not in tensors:
            default = "" if field in self.content else f" (the default of {name})"
            self.fail(field, tied, f"so there must be an lm_head.weight, and there is none{default}")


def model_knobs(config: HFConfig) -> dict[str, Any]:
    """{"attention": ..., ...}: the knobs of `model` that the file determines. Raises UserError."""
    name = config.architecture
    knobs: dict[str, Any] = {"vocab_size": config.integer("vocab_size"), "qk_norm": False, "ffn": "dense"}
    if "quantization_config" in config.content:
        config.fail("quantization_config", "set", "quantised weights are not read")
    return knobs | {DEEPSEEK: _deepseek, LLAMA: _llama, GPT2: _gpt2}[name](config)


def _rotary(config: HFConfig) -> dict[str, Any]:
    config.must_be("hidden_act", "silu", "silu", "our default block has SwiGLU (silu)")
    config.must_be("attention_bias", False, False, "our default block has no biases")
    if config.number("rms_norm_eps", RMS_EPS) != RMS_EPS:
        config.fail("rms_norm_eps", config.content["rms_norm_eps"], f"our norms have {RMS_EPS}")
    # transformers 5 writes rope_parameters, earlier ones rope_theta and rope_scaling.
    for field in ("rope_scaling", "rope_parameters"):
        scaling = config.content.get(field)
        if scaling is None:
            continue
        if not isinstance(scaling, dict) or scaling.get("rope_type", scaling.get("type", "default")) != "default":
            config.fail(field, scaling, "only plain RoPE is known here")
        if scaling.get("partial_rotary_factor", 1.0) != 1.0:
            config.fail(field, scaling, "all of a head is rotated here")
    theta = config.number("rope_theta", 10000.0)
    parameters = config.content.get("rope_parameters") or {}
    if "rope_theta" in parameters:
        if "rope_theta" in config.content and parameters["rope_theta"] != config.content["rope_theta"]:
            config.fail("rope_theta", theta, f"rope_parameters has {parameters['rope_theta']!r}")
        theta = parameters["rope_theta"]
    if type(theta) not in (int, float) or not 1 <= theta < 2**40:
        config.fail("rope_theta", theta, "it must be a number, at least 1")
    return {
        "position": "rope",
        "block": "default",
        "d_model": config.integer("hidden_size"),
        "d_ff": config.integer("intermediate_size"),
        "n_layers": config.integer("num_hidden_layers"),
        "n_heads": config.integer("num_attention_heads"),
        "max_len": config.integer("max_position_embeddings"),
        "rope_theta": float(theta),
    }


def _llama(config: HFConfig) -> dict[str, Any]:
    config.must_be("mlp_bias", False, False, "our default block has no biases")
    knobs = _rotary(config)
    heads = knobs["n_heads"]
    groups = config.integer("num_key_value_heads", heads)
    head_dim = config.integer("head_dim", 0) or knobs["d_model"] // heads
    attention = "mha" if groups == heads else "gqa"
    return knobs | {"attention": attention, "n_kv_heads": groups, "head_dim": head_dim}


def _deepseek(config: HFConfig) -> dict[str, Any]:
    knobs = _rotary(config)
    if config.integer("num_key_value_heads", knobs["n_heads"]) != knobs["n_heads"]:
        config.fail("num_key_value_heads", config.content["num_key_value_heads"], "MLA has as many as query heads")
    query_rank = config.content.get("q_lora_rank")
    return knobs | {
        "attention": "mla",
        "latent": "joint",
        "latent_norm": "rms",
        "rope_placement": "decoupled",
        "kv_lora_rank": config.integer("kv_lora_rank"),
        "q_lora_rank": 0 if query_rank is None else config.integer("q_lora_rank"),
        "qk_nope_head_dim": config.integer("qk_nope_head_dim"),
        "qk_rope_head_dim": config.integer("qk_rope_head_dim"),
        "v_head_dim": config.integer("v_head_dim"),
        **_experts(config, knobs["n_layers"]),
    }


def _experts(config: HFConfig, n_layers: int) -> dict[str, Any]:
    first_k_dense = config.integer("first_k_dense_replace", least=0)
    if first_k_dense >= n_layers:
        return {"ffn": "dense"}
    config.must_be("scoring_func", "sigmoid", "sigmoid", "DeepSeek-V3 scores experts by a sigmoid")
    config.must_be("topk_method", "noaux_tc", "noaux_tc", "DeepSeek-V3 chooses by biased scores")
    groups = config.integer("n_group")
    if config.integer("topk_group") != groups:
        config.fail("topk_group", config.content["topk_group"], f"all of the {groups} groups are open to a token here")
    renormalize = config.content.get("norm_topk_prob")
    if type(renormalize) is not bool:
        config.fail("norm_topk_prob", renormalize, "it must be true or false")
    return {
        "ffn": "moe",
        "first_k_dense": first_k_dense,
        "d_expert": config.integer("moe_intermediate_size"),
        "n_routed_experts": config.integer("n_routed_experts"),
        "n_shared_experts": config.integer("n_shared_experts", least=0),
        "top_k": config.integer("num_experts_per_tok"),
        "router_score": "sigmoid",
        "router_renormalize": renormalize,
        "routed_scaling_factor": config.number("routed_scaling_factor", _MISSING),
    }


def _gpt2(config: HFConfig) -> dict[str, Any]:
    config.must_be("activation_function", "gelu_new", "gelu_new", "our gpt block has the tanh-GELU (gelu_new)")
    config.must_be("scale_attn_weights", True, True, "attention is scaled here")
    config.must_be("scale_attn_by_inverse_layer_idx", False, False, "all layers scale alike here")
    config.must_be("add_cross_attention", False, False, "there is no encoder here")
    if config.number("layer_norm_epsilon", LAYER_NORM_EPS) != LAYER_NORM_EPS:
        config.fail("layer_norm_epsilon", config.content["layer_norm_epsilon"], f"our norms have {LAYER_NORM_EPS}")
    width, heads = config.integer("n_embd"), config.integer("n_head")
    if width % heads:
        config.fail("n_head", heads, f"it must divide n_embd ({width})")
    return {
        "attention": "mha",
        "position": "learned",
        "block": "gpt",
        "d_model": width,
        "n_heads": heads,
        "n_kv_heads": heads,
        "head_dim": width // heads,
        "n_layers": config.integer("n_layer"),
        "d_ff": config.integer("n_inner", 4 * width),
        "max_len": config.integer("n_positions"),
    }
