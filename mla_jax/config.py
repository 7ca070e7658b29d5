"""The one bridge from ml-collections' ConfigDict to a frozen, validated, hashable `Config`.

Nothing past the bridge sees a ConfigDict. The dataclasses declare names and types only: defaults live in
`configs/base.py`, rules in `config_bounds.py` and `config_rules.py`, and the values of knobs that an old run folder
lacks in `migrations.py`.
"""

import dataclasses
import hashlib
import json
from typing import Any

from ml_collections import ConfigDict

from mla_jax import config_bounds, config_derive, config_rules, migrations
from mla_jax.bench.settings import BenchSettings
from mla_jax.errors import UserError
from mla_jax.judge.settings import JudgeSettings
from mla_jax.typed import build


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    n_layers: int
    d_model: int
    n_heads: int
    head_dim: int
    vocab_size: int
    max_len: int
    attention: str
    n_kv_heads: int
    latent: str
    kv_lora_rank: int
    q_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    latent_norm: str
    position: str
    rope_placement: str
    rope_theta: float
    qk_norm: bool
    block: str
    ffn: str
    d_ff: int
    n_routed_experts: int
    n_shared_experts: int
    top_k: int
    d_expert: int
    first_k_dense: int
    router_score: str
    router_renormalize: bool
    routed_scaling_factor: float
    router_bias_rate: float
    router_bias_rule: str
    router_aux_weight: float
    router_sequence_weight: float
    router_z_weight: float
    moe_impl: str
    grouped_impl: str
    dropout: float
    init: str
    init_std: float
    scan_layers: bool
    dtype: str
    attention_impl: str
    train_impl: str
    decode_impl: str

    @property
    def absorbed(self) -> bool:
        """Whether decode can fold the up-projections into the query (design.md's table)."""
        return self.attention == "mla" and self.rope_placement != "decompressed" and not self.qk_norm

    @property
    def n_moe_layers(self) -> int:
        """Layers with experts, L_moe: the last ones."""
        return self.n_layers - self.first_k_dense if self.ffn == "moe" else 0

    @property
    def qk_head_dim(self) -> int:
        """Width of a query head, rotary part included."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim if self.attention == "mla" else self.head_dim


@dataclasses.dataclass(frozen=True)
class DataConfig:
    path: str
    valid_path: str
    valid_fraction: float
    text_field: str
    invalid_utf8: str
    stories: int
    valid_stories: int
    seed: int
    document_mask: bool
    cache_dir: str
    threads: int


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    vocab_size: int
    path: str
    train_bytes: int


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    steps: int
    batch_size: int
    microbatches: int
    remat: str
    loss_chunks: int
    seq_len: int
    seed: int
    log_every: int
    eval_every: int
    on_nonfinite: str
    bad_loss: float
    bad_grad_norm: float
    tensorboard: bool
    profile_steps: int


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    data: int
    fsdp: int
    expert: int
    tensor: int


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    name: str
    learning_rate: float
    warmup_steps: int
    schedule: str
    decay_steps: int
    decay_fraction: float
    final_fraction: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    clip_norm: float
    muon_beta: float
    muon_dtype: str
    adamw_fraction: float
    qk_clip: float
    ema_decay: float


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    batch_size: int


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    every: int
    keep_latest: int
    keep_best: int
    keep_steps: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    prompts: tuple[str, ...]
    num_samples: int
    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    stop: tuple[str, ...]
    seed: int
    cache_dtype: str
    prefill_chunk: int


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run, resolved: every derived value is filled in. Hashable; `to_dict` is JSON-able."""

    init_from: str
    model: ModelConfig
    data: DataConfig
    tokenizer: TokenizerConfig
    train: TrainConfig
    mesh: MeshConfig
    optim: OptimConfig
    eval: EvalConfig
    checkpoint: CheckpointConfig
    sample: SampleConfig
    judge: JudgeSettings
    bench: BenchSettings

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @property
    def hash(self) -> str:
        """12 hex digits that name what was computed: two runs with one hash differ in nothing but place and time."""
        content = self.to_dict()
        for key in ("path", "valid_path", "cache_dir", "threads"):
            del content["data"][key]  # where the data lies is not what it is: rows carry a data fingerprint beside this
        del content["sample"], content["judge"], content["bench"], content["checkpoint"], content["tokenizer"]["path"]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def replace(config: Config, **dotted: Any) -> Config:
    """`replace(config, **{"model.vocab_size": 512})`: a copy with other values, derived and validated again."""
    content = config.to_dict()
    for key, value in dotted.items():
        section, _, field = key.rpartition(".")
        (content[section] if section else content)[field] = value
    return from_dict(content)


def from_config_dict(config_dict: ConfigDict) -> Config:
    """The bridge. Raises UserError for unknown or missing keys, wrong types and every rule of `validate`."""
    return from_dict(config_dict.to_dict())


def from_dict(content: dict[str, Any]) -> Config:
    """As `from_config_dict`, from plain nested dictionaries (JSON)."""
    config = build(Config, content, prefix="")
    config_bounds.check_choices(config)
    config = config_derive.resolve(config)
    validate(config)
    return config


def validate(config: Config) -> None:
    """Raise UserError, a sentence, for the first rule of `config_rules.RULES` that a resolved config breaks."""
    for rule in config_rules.RULES:
        rule(config)


def dumps(config: Config) -> str:
    """The text of a run folder's config.json."""
    return json.dumps({"format": migrations.FORMAT, "config": config.to_dict()}, indent=1)


def loads(text: str, where: str = "config.json") -> Config:
    """Read `dumps`' text, of this or an earlier format. Raises UserError; `where` names the file in it."""
    try:
        content = json.loads(text)
        file_format, values = content["format"], content["config"]
        if type(file_format) is not int or file_format < 1 or not isinstance(values, dict):
            raise TypeError
    except (ValueError, TypeError, KeyError, RecursionError):
        raise UserError(
            f"{where} is not a config of mla_jax (JSON with 'format' and 'config'): copy the run folder again."
        ) from None
    newest = migrations.FORMAT
    if file_format > newest:
        raise UserError(
            f"{where} has format {file_format}, newer than {newest}, the newest this mla_jax reads: upgrade mla_jax."
        )
    migrations.migrate(values, file_format)
    try:
        return from_dict(values)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
