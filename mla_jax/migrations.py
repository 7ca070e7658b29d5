"""The format of a run folder's config, and what older folders lack: one line a knob."""

from typing import Any

FORMAT = 4
# format -> {dotted knob: value that runs of that format behaved as}; applied in order up to FORMAT.
MIGRATIONS: dict[int, dict[str, Any]] = {
    1: {
        "judge.base_url": "",
        "judge.model": "",
        "judge.rubric": "paper_a",
        "judge.num_prompts": 100,
        "judge.builtin_prompts": 50,
        "judge.stories_per_prompt": 1,
        "judge.max_new_tokens": 256,
        "judge.temperature": 0.8,
        "judge.top_k": 40,
        "judge.seed": 0,
        "judge.num_controls": 40,
        "judge.repeats": 2,
        "judge.repeat_share": 0.1,
        "judge.pairwise": False,
        "judge.judge_temperature": 0.7,
        "judge.max_reply_tokens": 300,
        "judge.concurrency": 8,
        "judge.timeout_s": 60.0,
        "judge.max_retries": 5,
        "judge.give_up_after": 20,
        "judge.budget_usd": 5.0,
        "judge.price_in": 0.0,
        "judge.price_out": 0.0,
        "judge.yes": False,
        "judge.cache_dir": "",
        "judge.resamples": 2000,
    },
    2: {
        "bench.size": "m",
        "bench.vocab_size": 8192,
        "bench.batches": (1, 16, 128, 1024),
        "bench.contexts": (512, 2048, 4096, 16384),
        "bench.steps": 64,
        "bench.repeats": 5,
        "bench.copy_bytes": 2**30,
        "bench.memory_context": 4096,
        "bench.train_batch": 128,
        "bench.peer_batches": (1, 128),
        "bench.peer_prompt": 256,
        "bench.peer_new": 256,
        "bench.max_minutes": 0.0,
        "model.decode_impl": "auto",  # as attention_impl: a choice of speed
        "train.remat": "none",
        "train.loss_chunks": 1,
        "optim.schedule": "cosine",
        "optim.decay_fraction": 0.2,
        "optim.muon_beta": 0.95,
        "optim.muon_dtype": "auto",
        "optim.adamw_fraction": 1.0,
        "optim.qk_clip": 0.0,
        "optim.ema_decay": 0.0,
        "train.bad_loss": 0.0,
        "train.bad_grad_norm": 0.0,
        "data.text_field": "",
        "model.n_routed_experts": 0,
        "model.n_shared_experts": 0,
        "model.top_k": 0,
        "model.d_expert": 0,
        "model.first_k_dense": 0,
        "model.router_score": "sigmoid",
        "model.router_renormalize": True,
        "model.routed_scaling_factor": 1.0,
        "model.router_bias_rate": -1.0,
        "model.router_bias_rule": "sign",
        "model.router_aux_weight": 0.0,
        "model.router_sequence_weight": 0.0,
        "model.router_z_weight": 0.0,
        "model.moe_impl": "auto",
        "model.grouped_impl": "auto",
        "sample.top_p": 1.0,
        "sample.min_p": 0.0,
        "sample.repetition_penalty": 1.0,
        "sample.stop": (),
        "sample.cache_dtype": "auto",
        "sample.prefill_chunk": 1024,
        "mesh.data": 1,
        "mesh.fsdp": 1,
        "mesh.expert": 1,
        "mesh.tensor": 1,
    },
    3: {
        "model.train_impl": "auto",  # as decode_impl: a choice of speed
    },
}


# Knobs of `model` that a dense model never read and that were not refused beside one at first. Such runs are what they
# would be without them, and go on with the values that they behaved as.
UNREAD_IF_DENSE = (
    "router_score",
    "router_renormalize",
    "routed_scaling_factor",
    "router_bias_rate",
    "router_bias_rule",
)
UNREAD_IF_DENSE += ("moe_impl", "grouped_impl")


def migrate(values: dict[str, Any], file_format: int) -> None:
    """Give a stored config, in place, the knobs that its format lacks, up to FORMAT; take those that it never read."""
    for step in range(file_format, FORMAT):
        for dotted, value in MIGRATIONS[step].items():
            section, _, field = dotted.rpartition(".")
            target = values.setdefault(section, {}) if section else values
            if isinstance(target, dict):  # the bridge says what is wrong with it otherwise
                target.setdefault(field, value)
    model = values.get("model")
    if isinstance(model, dict) and model.get("ffn") == "dense":
        model |= {name: MIGRATIONS[2][f"model.{name}"] for name in UNREAD_IF_DENSE}
