"""To and from Hugging Face checkpoint folders; needs `safetensors`, but neither torch nor transformers.

    hf.export(load_run("runs/mla_rope"), "exports/mla_rope")     # --mode export --workdir ... --out ...
    run = hf.load("exports/mla_rope")                            # a Run: Sampler.from_run(run), run.model.apply(...)

`families` says what has an equal there, `weights` names the tensors, `import_hf` makes a run folder of a model folder.
"""

import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from mla_jax import config as config_lib
from mla_jax import runs
from mla_jax.config import Config
from mla_jax.config_files import load_config
from mla_jax.data.tokenizer import Tokenizer
from mla_jax.errors import UserError
from mla_jax.interop import card, families, folders, manifest, tensor_files, weights
from mla_jax.interop import tokenizer as tokenizer_lib
from mla_jax.interop.hf_config import HFConfig, model_knobs
from mla_jax.model import backend as backend_lib
from mla_jax.model.transformer import Transformer
from mla_jax.runs import Run, RunFolder

DTYPES = ("float32", "bfloat16")


def export(run: Run, out: str | os.PathLike, dtype: str = "float32") -> Path:
    """Write a folder that transformers' AutoModelForCausalLM and AutoTokenizer load, without a network.

    It holds model.safetensors, config.json, generation_config.json, tokenizer.json, tokenizer_config.json, our own
    tokenizer.model, README.md (the model card) and mla_jax.json (checksums, and what `load` needs to be exact).
    Surplus embedding rows, which loss and sampler mask, are cut: transformers would draw them.

    Args:
      run: from `runs.load_run`.
      out: a new or empty folder, or an earlier export, which is replaced.
      dtype: of the weights, "float32" (exact) or "bfloat16".

    Returns:
      Path of the folder.

    Raises:
      UserError: the model has no equal there, its tokenizer would encode otherwise, or `out` cannot be used; nothing
        has been written then.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype is {dtype!r}; weights are written as {' or '.join(DTYPES)}: use one of them.")
    tensor_files.library()
    out = Path(out)
    tokenizer = run.tokenizer
    config = config_lib.replace(run.config, **{"model.vocab_size": tokenizer.vocab_size})
    params = dict(run.params) | {"embedding": run.params["embedding"][: tokenizer.vocab_size]}
    texts: dict[str, Any] = {
        "config.json": families.hf_config(config.model, tokenizer.separator_id, dtype),
        "generation_config.json": _generation_config(config, tokenizer),
        "tokenizer.json": tokenizer_lib.tokenizer_json(tokenizer),
        "tokenizer_config.json": tokenizer_lib.tokenizer_config(tokenizer, config.model.max_len),
    }
    folders.check_place(out, "--out", manifest.is_export)
    data = runs.read_data(run.folder)
    tensors = weights.to_tensors(config.model, params, run.router_bias)
    readme = card.text(run, config, data, dtype)
    with folders.built_aside(out, "--out") as building:
        tensor_files.write(building / tensor_files.NAME, tensors, dtype, exact=weights.ROUTER_BIAS)
        for name, content in texts.items():
            text = json.dumps(content, indent=2, ensure_ascii=False)
            (building / name).write_text(text + "\n", encoding="utf-8")
        (building / "tokenizer.model").write_bytes(tokenizer.model)
        (building / "README.md").write_text(readme, encoding="utf-8")
        manifest.write(building, run.folder.name, run.step, run.config.hash, config, data)
    return out


def load(folder: str | os.PathLike, tokenizer: str | os.PathLike | None = None) -> Run:
    """Read a local Hugging Face folder: one of ours, or any Llama, DeepSeek-V3 or GPT-2 that our model computes.

    Args:
      folder: with config.json and safetensors files; `run.folder` is this folder.
      tokenizer: a sentencepiece model, where the folder has no tokenizer.model.

    Returns:
      A Run in float32. After an export in float32 its parameters equal the exported ones bit for bit.

    Raises:
      UserError: the folder is missing, damaged, contradicts itself, or holds a model that ours does not compute.
    """
    folder = Path(folder)
    if not os.path.isdir(folder):
        raise UserError(f"--hf is {str(folder)!r}, but there is no such folder: download or export a model first.")
    told = manifest.read(folder)
    hf_config = HFConfig(folder / "config.json")
    config = _config(hf_config, told)
    found = _tokenizer(folder, tokenizer, config, told)
    tensors = tensor_files.read(folder)
    hf_config.check_head(tensors)
    loaded = weights.to_params(config.model, tensors, str(folder), hf_config.interleaved)
    params, router_bias = jax.tree.map(jnp.asarray, loaded)  # None, without experts, is no leaf
    model = Transformer(config.model, backend_lib.choose(config.model))
    return Run(RunFolder(folder), config, found, model, params, router_bias, told.step if told else 0)


def _config(hf_config: HFConfig, told: manifest.Manifest | None) -> Config:
    """The run's own config where the folder is an export and config.json agrees with it, else one from config.json."""
    knobs = model_knobs(hf_config)
    if told is None:
        return _foreign_config(knobs, str(hf_config.path))
    for name, value in knobs.items():
        known = getattr(told.config.model, name)
        if name == "attention" and {known, value} == {"mha", "gqa"}:
            continue  # gqa with as many key heads as queries; n_kv_heads is compared too
        if known != value:
            raise UserError(
                f"{hf_config.path} says that model.{name} is {value!r}, and {manifest.NAME} beside it {known!r}: "
                f"copy the folder again, or delete {manifest.NAME} to import what is there."
            )
    return told.config


def _foreign_config(knobs: dict[str, Any], where: str) -> Config:
    """configs/base.py with the model of `knobs`; what concerns training is only made to fit."""
    max_len = knobs["max_len"]
    overrides: dict[str, Any] = {f"model.{name}": value for name, value in knobs.items()}
    overrides |= {"train.seq_len": min(512, max_len), "sample.max_new_tokens": max(1, min(256, max_len - 1))}
    try:
        return load_config("base", **overrides)
    except UserError as error:
        raise UserError(f"{where} describes a model that mla_jax has no config for: {error}") from None


def _tokenizer(
    folder: Path, given: str | os.PathLike | None, config: Config, told: manifest.Manifest | None
) -> Tokenizer:
    path = Path(given) if given else folder / "tokenizer.model"
    if not given and not path.is_file():
        raise UserError(
            f"{folder} has no tokenizer.model, and mla_jax reads sentencepiece models only: give one with --tokenizer."
        )
    tokenizer = Tokenizer.load(path, chosen=False)
    if told and tokenizer.sha256 != told.data["tokenizer_sha256"]:
        raise UserError(f"{path} is not the tokenizer that the model was trained with: leave --tokenizer out.")
    if tokenizer.vocab_size > config.model.vocab_size:
        raise UserError(
            f"{path} has {tokenizer.vocab_size} pieces and the model {config.model.vocab_size} embedding rows: "
            "give the tokenizer that belongs to these weights."
        )
    return tokenizer


def _generation_config(config: Config, tokenizer: Tokenizer) -> dict[str, Any]:
    cfg, separator = config.sample, tokenizer.separator_id
    content: dict[str, Any] = {
        "bos_token_id": separator,
        "eos_token_id": separator,
        "pad_token_id": separator,
        "max_new_tokens": cfg.max_new_tokens,
        "do_sample": cfg.temperature > 0,
        "repetition_penalty": cfg.repetition_penalty,
    }
    if cfg.temperature > 0:  # transformers warns of numbers that greedy search would not read
        content |= {name: getattr(cfg, name) for name in ("temperature", "top_k", "top_p", "min_p")}
    return content
