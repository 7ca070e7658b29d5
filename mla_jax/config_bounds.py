"""What a single value of a config may be: the choices that exist (`CHOICES`), and the bounds of numbers (`BOUNDS`)."""

from typing import TYPE_CHECKING, Any

from mla_jax.errors import UserError

if TYPE_CHECKING:
    from mla_jax.config import Config

CHOICES = {
    "model.attention": ("mha", "gqa", "mla"),
    "model.latent": ("joint", "per_head", "none"),
    "model.latent_norm": ("auto", "rms", "none"),
    "model.position": ("none", "learned", "rope"),
    "model.rope_placement": ("decoupled", "decompressed", "none"),
    "model.block": ("default", "gpt"),
    "model.ffn": ("dense", "moe"),
    "model.router_score": ("sigmoid", "softmax"),
    "model.router_bias_rule": ("sign", "proportional"),
    "model.moe_impl": ("auto", "reference", "masked_dense", "grouped", "gathered"),
    "model.grouped_impl": ("auto", "tokamax", "pallas", "xla"),
    "model.init": ("product_matched", "naive"),
    "model.dtype": ("auto", "bfloat16", "float32"),
    "model.attention_impl": ("auto", "cudnn", "xla"),
    "model.train_impl": ("auto", "pallas", "xla"),
    "model.decode_impl": ("auto", "pallas", "cudnn", "xla"),
    "data.invalid_utf8": ("refuse", "replace"),
    "train.remat": ("none", "dots", "full"),
    "train.on_nonfinite": ("stop", "skip", "rollback"),
    "optim.name": ("adamw", "muon"),
    "optim.schedule": ("cosine", "wsd"),
    "optim.muon_dtype": ("auto", "bfloat16", "float32"),
    "sample.cache_dtype": ("auto", "bfloat16", "float32", "int8"),
}


LARGEST = 2**40  # of any number in a config: what is larger is a slip, and would only fail later and worse


def get(config: Any, dotted: str) -> Any:
    """The value of a dotted field, e.g. `get(config, "model.d_model")`."""
    for name in dotted.split("."):
        config = getattr(config, name)
    return config


class BrokenRule(UserError):
    """A rule that a config breaks, in one sentence and in its parts.

    field: dotted; value: the field's; rule: what it breaks; remedy: what to do with the field; elsewhere: what to do
    with another one instead, or "".
    """

    def __init__(self, field: str, value: Any, rule: str, remedy: str, elsewhere: str = ""):
        super().__init__(f"{field} is {value!r}; {rule}: {' or '.join(filter(None, (remedy, elsewhere)))}.")
        self.field, self.value, self.rule, self.remedy, self.elsewhere = field, value, rule, remedy, elsewhere


def fail(config: "Config", field: str, rule: str, remedy: str, elsewhere: str = "") -> None:
    """Raise BrokenRule."""
    raise BrokenRule(field, get(config, field), rule, remedy, elsewhere)


def check_choices(config: "Config") -> None:
    """Raise UserError for a field whose value is not among its CHOICES (before anything is derived from it)."""
    for field, allowed in CHOICES.items():
        if get(config, field) not in allowed:
            fail(config, field, "it must be one of the values that exist", "use " + " | ".join(allowed))


_AT_LEAST_ONE = (
    "model.n_layers model.d_model model.n_heads model.head_dim model.max_len model.d_ff data.stories "
    "data.valid_stories tokenizer.train_bytes train.steps train.batch_size train.microbatches "
    "train.seq_len train.log_every train.eval_every optim.decay_steps eval.batch_size checkpoint.every "
    "checkpoint.keep_latest sample.num_samples sample.max_new_tokens sample.prefill_chunk "
    "mesh.fsdp mesh.expert mesh.tensor"
)
_AT_LEAST_ZERO = (
    "model.vocab_size model.n_kv_heads model.kv_lora_rank model.q_lora_rank model.qk_nope_head_dim "
    "model.qk_rope_head_dim model.v_head_dim model.n_routed_experts model.n_shared_experts model.top_k "
    "model.d_expert model.first_k_dense model.router_aux_weight model.router_sequence_weight "
    "model.router_z_weight optim.warmup_steps optim.weight_decay optim.clip_norm "
    "checkpoint.keep_best sample.temperature train.profile_steps train.bad_loss train.bad_grad_norm "
    "train.loss_chunks mesh.data optim.qk_clip"
)
_BETWEEN = {
    "model.dropout": (0, 0.99),
    "model.init_std": (1e-6, 1),
    "model.rope_theta": (1, LARGEST),
    "model.routed_scaling_factor": (1e-6, 1e6),
    "model.router_bias_rate": (-1, 1),
    "data.valid_fraction": (1e-6, 0.5),
    "optim.learning_rate": (1e-12, 10),
    "optim.final_fraction": (0, 1),
    "optim.beta1": (0, 0.99999),
    "optim.beta2": (0, 0.9999999),
    "optim.eps": (1e-20, 1),
    "optim.decay_fraction": (0, 1),
    "optim.muon_beta": (0, 0.99999),
    "optim.adamw_fraction": (0, 100),
    "optim.ema_decay": (0, 0.9999999),
    "tokenizer.vocab_size": (300, 1_000_000),
    "train.seed": (0, 2**32 - 1),
    "data.seed": (0, 2**32 - 1),
    "sample.seed": (0, 2**32 - 1),
    "sample.top_k": (0, 2**31 - 1),
    "sample.top_p": (1e-6, 1),
    "sample.min_p": (0, 1),
    "sample.repetition_penalty": (1e-3, 1000),
    "data.threads": (1, 1024),
}
# Field -> (least, most), bounds included.
BOUNDS: dict[str, tuple[float, float]] = dict.fromkeys(_AT_LEAST_ONE.split(), (1, LARGEST))
BOUNDS |= dict.fromkeys(_AT_LEAST_ZERO.split(), (0, LARGEST))
BOUNDS |= _BETWEEN
assert len(BOUNDS) == len(_AT_LEAST_ONE.split()) + len(_AT_LEAST_ZERO.split()) + len(_BETWEEN), "a field is named twice"


def broken(field: str, value: float) -> str:
    """The rule that a number breaks, "it must be ...", or "" where it is inside the field's bounds; NaN is in none."""
    low, high = BOUNDS[field]
    if low <= value <= high:
        return ""
    if high == LARGEST and not value >= low:
        return f"it must be at least {low}"
    return f"it must be between {low} and {high}"


def ranges(config: "Config") -> None:
    """Numbers inside their bounds."""
    for field in BOUNDS:
        if rule := broken(field, get(config, field)):
            fail(config, field, rule, f"set --config.{field} to such a number")
