"""Exported folders and what comes back from them: bit-equal weights, checksums, and a sentence for every damage."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import rich.console
from hf_tools import FINGERPRINT, assert_trees_equal, edit_json, edit_tensors, fixture, untrained_run
from run_tools import listing
from tiny import grid_config

from mla_jax import config as config_lib
from mla_jax import runs
from mla_jax.data.tokenizer import Tokenizer
from mla_jax.errors import UserError
from mla_jax.interop import hf, import_hf, manifest, tensor_files
from mla_jax.main import main
from mla_jax.runs import Run
from mla_jax.sample import sample_mode

pytest.importorskip("safetensors", reason="pip install safetensors, or '.[dev]'")
pytest_plugins = ["run_fixtures", "hf_fixtures"]
FILES = {
    "README.md",
    "config.json",
    "generation_config.json",
    "mla_jax.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
}


def test_an_export_comes_back_bit_for_bit(hf_run: Run, exported: Path) -> None:
    assert {path.name for path in exported.iterdir()} == FILES
    assert all(path.stat().st_mode & 0o044 for path in exported.iterdir()), "others may read it"
    back = hf.load(exported)
    assert_trees_equal(dict(back.params), dict(hf_run.params))
    assert (back.config, back.step, back.tokenizer.sha256) == (hf_run.config, hf_run.step, hf_run.tokenizer.sha256)
    assert [p.name for p in exported.parent.iterdir()] == [exported.name], "a temporary folder was left"


def test_a_router_bias_travels_with_its_experts(hf_tokenizer: Tokenizer, tmp_path: Path) -> None:
    """In float32 beside bfloat16 weights too, and into the checkpoint of a run folder."""
    experts = {
        "ffn": "moe",
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "top_k": 2,
        "d_expert": 6,
        "first_k_dense": 1,
    }
    knobs = {f"model.{name}": value for name, value in (experts | {"vocab_size": hf_tokenizer.vocab_size}).items()}
    run = untrained_run(tmp_path / "run", grid_config("joint-decoupled-norm_rms", **knobs), hf_tokenizer)
    assert run.router_bias.shape == (1, 4)
    out = hf.export(run, tmp_path / "out")
    assert "4 routed of width 6, 2 of them a token; 1 shared" in (out / "README.md").read_text()
    loaded = runs.load_run(import_hf.to_run(out, tmp_path / "imported"))
    for back in (hf.load(out), loaded):
        assert_trees_equal({"params": dict(back.params), "bias": back.router_bias}, both(run))
    rounded = hf.load(hf.export(run, tmp_path / "rounded", dtype="bfloat16"))
    assert_trees_equal({"bias": rounded.router_bias}, {"bias": run.router_bias})


def both(run: Run) -> dict:
    return {"params": dict(run.params), "bias": run.router_bias}


def test_surplus_rows_are_cut_and_said_so(hf_tokenizer: Tokenizer, tmp_path: Path) -> None:
    config = grid_config("gqa-rope", **{"model.vocab_size": hf_tokenizer.vocab_size + 10})
    run = untrained_run(tmp_path / "run", config, hf_tokenizer)
    back = hf.load(hf.export(run, tmp_path / "out"))
    assert back.config.model.vocab_size == hf_tokenizer.vocab_size
    np.testing.assert_array_equal(back.params["embedding"], run.params["embedding"][: hf_tokenizer.vocab_size])


def test_bfloat16_rounds_to_the_nearest(hf_run: Run, tmp_path: Path) -> None:
    out = hf.export(hf_run, tmp_path / "out", dtype="bfloat16")
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    assert (out / "model.safetensors").stat().st_size < 0.6 * 4 * sum(t.size for t in tensor_files.read(out).values())
    back = hf.load(out).params["embedding"]
    np.testing.assert_allclose(back, hf_run.params["embedding"], rtol=2**-8)
    assert back.dtype == np.float32 and not np.array_equal(back, hf_run.params["embedding"])
    with pytest.raises(UserError, match="dtype is 'int8'"):
        hf.export(hf_run, tmp_path / "other", dtype="int8")


def test_shards_and_tied_heads_of_other_programs_are_read(hf_run: Run, exported: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(exported, out)
    tensors = tensor_files.read(out)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        tensor_files.write(out / file, {name: tensors[name] for name in part}, "float32")
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (out / tensor_files.INDEX).write_text(json.dumps(index))
    for name in (tensor_files.NAME, manifest.NAME):
        (out / name).unlink()
    assert_trees_equal(dict(hf.load(out).params), dict(hf_run.params))

    tensor_files.write(out / "a.safetensors", {name: tensors[name] for name in names}, "float32")
    with pytest.raises(UserError, match="in two files"):
        hf.load(out)
    for path in ("../a.safetensors", "a.bin", "c.safetensors"):
        (out / tensor_files.INDEX).write_text(json.dumps({"weight_map": {"x": path}}))
        with pytest.raises(UserError, match="index"):
            hf.load(out)


@pytest.mark.parametrize("point", ["joint-decoupled-norm_rms", "gqa-rope", "mha-learned-gpt"])
def test_whether_a_silent_config_means_a_tied_head_is_the_familys(
    hf_tokenizer: Tokenizer, tmp_path: Path, point: str
) -> None:
    """transformers ties the head of a silent GPT-2, and would draw one for a silent Llama or DeepSeek-V3."""
    config = grid_config(point, **{"model.vocab_size": hf_tokenizer.vocab_size})
    run = untrained_run(tmp_path / "run", config, hf_tokenizer)
    out = hf.export(run, tmp_path / "out")
    (out / manifest.NAME).unlink()
    edit_json(out / "config.json", lambda c: c.pop("tie_word_embeddings"))
    if point != "mha-learned-gpt":
        with pytest.raises(UserError, match=r"tie_word_embeddings is False; so .* an lm_head.weight.*default"):
            hf.load(out)
        embedding = tensor_files.read(out)["model.embed_tokens.weight"]
        edit_tensors(out / tensor_files.NAME, lambda t: t.update({"lm_head.weight": embedding}))
    assert_trees_equal(dict(hf.load(out).params), dict(run.params))


@pytest.mark.parametrize("temperature", [0.7, 0.0])
def test_the_runs_sampling_settings_are_there_under_the_names_of_transformers(
    hf_run: Run, tmp_path: Path, temperature: float
) -> None:
    """Greedy, the penalty alone has an effect, there as here."""
    drawn = {"temperature": temperature, "top_k": 12, "top_p": 0.9, "min_p": 0.03}
    settings = drawn | {"repetition_penalty": 1.3, "max_new_tokens": 7}
    config = config_lib.replace(hf_run.config, **{f"sample.{name}": value for name, value in settings.items()})
    out = hf.export(dataclasses.replace(hf_run, config=config), tmp_path / "out")
    found = json.loads((out / "generation_config.json").read_text())
    separator = hf_run.tokenizer.separator_id
    wanted = {"do_sample": temperature > 0, "repetition_penalty": 1.3, "max_new_tokens": 7}
    wanted |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), separator)
    assert found == wanted | (drawn if temperature else {})


def test_a_foreign_folder_needs_a_tokenizer_and_becomes_a_run(hf_tokenizer: Tokenizer, tmp_path: Path) -> None:
    """As transformers' save_pretrained writes it: no manifest, no sentencepiece model."""
    golden = fixture("llama_gqa")
    folder, model = tmp_path / "foreign", tmp_path / "t.model"
    folder.mkdir()
    rows = hf_tokenizer.vocab_size  # a golden model's 40 rows are too few for any of our tokenizers
    embedding = np.random.default_rng(0).standard_normal((rows, 24)).astype(np.float32)
    tensor_files.write(
        folder / "model.safetensors", golden.tensors | {"model.embed_tokens.weight": embedding}, "float32"
    )
    (folder / "config.json").write_text(json.dumps(json.loads(golden.config) | {"vocab_size": rows}))
    model.write_bytes(hf_tokenizer.model)
    before = listing(tmp_path)
    with pytest.raises(UserError, match="no tokenizer.model.*--tokenizer"):
        import_hf.to_run(folder, tmp_path / "run")
    assert listing(tmp_path) == before

    loaded = runs.load_run(import_hf.to_run(folder, tmp_path / "run", model))
    assert loaded.step == 0 and loaded.config.model.n_kv_heads == 2
    np.testing.assert_array_equal(loaded.params["embedding"], embedding)
    again = hf.export(loaded, tmp_path / "again")
    assert "imported from a Hugging Face folder" in (again / "README.md").read_text()
    found, wanted = tensor_files.read(again), tensor_files.read(folder)
    assert set(found) == set(wanted) and all(np.array_equal(found[name], wanted[name]) for name in wanted)


def test_an_imported_run_folder_loads_as_any_other(hf_run: Run, exported: Path, tmp_path: Path) -> None:
    workdir = import_hf.to_run(exported, tmp_path / "run")
    assert (workdir / "checkpoints" / "3" / "checksums.json").is_file()
    loaded = runs.load_run(workdir)
    assert_trees_equal(dict(loaded.params), dict(hf_run.params))
    assert loaded.config == hf_run.config and runs.read_data(loaded.folder)["fingerprint"] == FINGERPRINT
    assert loaded.folder.imported
    console = rich.console.Console(record=True, width=200)
    for step, said in ((None, False), (3, True)):  # where it was trained, nobody here knows of
        sample_mode.run(str(workdir), {"max_new_tokens": 2}, step, console)
        text = console.export_text()
        assert ("weights of step 3" in text) == said and "not finished" not in text


def test_a_folder_of_others_is_not_overwritten_and_ours_is_replaced(
    hf_run: Run, exported: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()  # an empty one is fine
    hf.export(hf_run, out)
    first = listing(out)
    (out / "model.safetensors").write_bytes(b"old")
    hf.export(hf_run, out)
    assert listing(out) == first == listing(exported)
    (out / "thesis.txt").write_text("do not touch")
    before = listing(tmp_path)
    for action in (lambda: hf.export(hf_run, out), lambda: import_hf.to_run(exported, out)):
        with pytest.raises(UserError, match=r"README.md.*would be lost"):
            action()
    with pytest.raises(UserError, match="is no folder"):
        hf.export(hf_run, out / "thesis.txt")
    with pytest.raises(UserError, match="is no folder"):
        hf.export(hf_run, out / "thesis.txt" / "out")
    with pytest.raises(UserError, match="no such folder"):
        hf.load(tmp_path / "nowhere")
    assert listing(tmp_path) == before


def test_a_disk_that_fills_up_leaves_the_old_export(
    monkeypatch: pytest.MonkeyPatch, hf_run: Run, tmp_path: Path
) -> None:
    out = hf.export(hf_run, tmp_path / "out")
    before = listing(tmp_path)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensor_files, "write", full)
    with pytest.raises(UserError, match="No space left"):
        hf.export(hf_run, out)
    assert listing(tmp_path) == before


def test_a_run_exports_through_the_command_line(run_env: Path, trained_run: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    assert main(["mla_jax", "--mode=export", f"--workdir={trained_run}", f"--out={out}", "--step=5"]) == 0
    assert "DeepseekV3ForCausalLM" in capsys.readouterr().out
    trained = runs.load_run(trained_run, 5)
    back = hf.load(out)
    assert_trees_equal(dict(back.params), {**trained.params})
    assert back.config.model == trained.config.model and back.step == 5
    text = "".join((out / name).read_text() for name in ("mla_jax.json", "README.md", "config.json"))
    assert str(trained_run.parent) not in text and str(tmp_path) not in text, "a path of this machine is in the export"
    loss = runs.checkpoint_losses(trained.folder)[5]
    card = (out / "README.md").read_text()
    for figure in (
        f"{loss:.4f} nats",
        f"{runs.read_data(trained.folder)['baselines']['unigram']:.4f}",
        "5 steps of 4 x 32",
    ):
        assert figure in card, figure


def test_a_variant_without_an_equal_is_refused_by_the_command_line(
    run_env: Path, trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(trained_run, workdir)
    config = runs.read_config(runs.RunFolder(workdir))
    for knob, value, words in (("latent", "per_head", "one joint latent"), ("latent_norm", "none", "normalises")):
        changes = {"kv_lora_rank": 4, "latent_norm": "none"} if knob == "latent" else {}
        changed = config_lib.replace(config, **{f"model.{k}": v for k, v in (changes | {knob: value}).items()})
        (workdir / "config.json").write_text(config_lib.dumps(changed))
        before = listing(tmp_path)
        assert main(["mla_jax", "--mode=export", f"--workdir={workdir}", f"--out={tmp_path / 'out'}"]) == 2
        err = capsys.readouterr().err
        assert f"model.{knob} is {value!r}" in err and words in err and err.count("\n") == 1, err
        assert listing(tmp_path) == before
