"""mla_jax.main, cli: bad input gives one sentence on stderr, exit code 2, no traceback, and nothing is written."""

import shutil
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from run_tools import REPOSITORY, edit_json, listing, train_flags, write_stories

from mla_jax import main as main_module
from mla_jax.main import main

pytest_plugins = ["run_fixtures", "refusals"]
pytestmark = pytest.mark.usefixtures("run_env")


CONFIG_VALUES = [
    ("model.attention=mqa", "model.attention", "'mqa'", "mha | gqa | mla"),
    ("model.n_heads=0", "model.n_heads", "0"),
    ("model.d_model=-16", "model.d_model", "-16", "at least 1"),
    ("model.n_kv_heads=2", "model.n_kv_heads", "2", "gqa"),
    ("model.kv_lora_rank=1000", "model.kv_lora_rank", "1000", "d_model"),
    ("model.qk_rope_head_dim=7", "model.qk_rope_head_dim", "7", "even"),
    ("model.dropout=1.5", "model.dropout", "1.5"),
    ("model.top_k=3", "model.top_k", "3", "ffn=dense"),
    ("model.router_score=softmax", "model.router_score", "'softmax'", "ffn=dense", "--config.model.ffn=moe"),
    ("model.ffn=moe", "model.n_routed_experts", "0", "at least 1"),
    ("model.vocab_size=300", "model.vocab_size", "300", "tokenizer"),
    ("train.microbatches=3", "train.microbatches", "3", "train.batch_size"),
    ("train.seq_len=100", "train.seq_len", "100", "model.max_len"),
    ("train.steps=0", "train.steps", "0", "at least 1"),
    ("train.seed=-1", "train.seed", "-1"),
    ("optim.learning_rate=nan", "optim.learning_rate", "nan"),
    ("optim.warmup_steps=50", "optim.warmup_steps", "50", "optim.decay_steps"),
    ("tokenizer.vocab_size=100", "tokenizer.vocab_size", "100"),
    ("sample.max_new_tokens=64", "sample.max_new_tokens", "64", "model.max_len"),
    ("sample.prompts=('word ' * 80,)", "sample.prompts"),
    ("checkpoint.keep_steps=(1.5,)", "checkpoint.keep_steps", "1.5"),
    ("checkpoint.keep_steps=('a',)", "checkpoint.keep_steps", "'a'"),
    ("data.valid_fraction=0.9", "data.valid_fraction", "0.9"),
]


@pytest.mark.parametrize(("override", "w"), [(row[0], row[1:]) for row in CONFIG_VALUES], ids=lambda v: str(v)[:30])
def test_a_bad_config_value_is_refused(refused, stories_file: Path, tmp_path: Path, override: str, w: tuple) -> None:
    workdir = tmp_path / "run"
    if "*" in override:  # the command line takes literals, not expressions
        override = f"sample.prompts=({'word ' * 80!r},)"
    refused(*train_flags(stories_file, workdir), f"--config.{override}", words=w)
    assert not workdir.exists()


FLAGS = [
    ((), "--config is missing", "mla_rope"),
    (("--config",), "--config has no value"),
    (("--config=",), "no named config"),
    (("--config=smokey", "--workdir=W"), "'smokey'", "did you mean smoke"),
    (("--config=W/none.py", "--workdir=W"), "no such file"),
    (("--config=W/stories.txt", "--workdir=W"), "stories.txt", ".py"),
    (("--config=W/broken.py", "--workdir=W"), "broken.py", "ZeroDivisionError"),
    (("--config=W/empty.py", "--workdir=W"), "empty.py", "get_config"),
    (("--config=W/dict.py", "--workdir=W"), "dict.py", "dict", "ConfigDict"),
    (("--config=smoke:huge", "--workdir=W"), "smoke takes no argument", "leave out ':huge'"),
    (("--config=mla_rope:huge", "--workdir=W"), "--config is 'mla_rope:huge'", "'huge'", "xs, s, m, l, xl"),
    (("--mode=study", "--config=study_sizes:q", "--dry_run"), "'study_sizes:q'", "short, long"),
    (("--mode=study", "--config=study_smoke", "--workdir=W/new", "--sharing=0"), "--sharing is 0", "1 or more"),
    (("--config=smoke", "--workdir=W", "--sharing=2"), "--sharing", "study", "leave it out"),
    (("--config=smoke", "--config=mha", "--workdir=W"), "--config", "once"),
    (("--config=smoke",), "--workdir is missing", "the folder to train in, e.g. --workdir runs/mla_rope"),
    (("--config=smoke", "--workdir="), "--workdir is missing or empty"),
    (("--config=smoke", "--workdir=W/a", "--workdir=W/b"), "--workdir", "2 times"),
    (("--config=smoke", "--workdir=W", "--config.train.stepz=5"), "train.stepz", "did you mean train.steps"),
    (("--config=smoke", "--workdir=W", "-config.train.stepz=5"), "train.stepz", "did you mean train.steps"),
    (
        ("--config=smoke", "--workdir=W", "--config.train.steps=many"),
        "train.steps is 'many'",
        "a whole number: e.g. 2000.",
    ),
    (("--config=smoke", "--workdir=W", "--config.train.steps=1.5"), "train.steps", "1.5"),
    (("--config=smoke", "--workdir=W", "--config.train.steps"), "train.steps", "no value"),
    (("--config=smoke", "--workdir=W", "--config.train=5"), "train", "section"),
    (
        ("--config=smoke", "--workdir=W", "--config.train.tensorboard=perhaps"),
        "tensorboard is 'perhaps'",
        "true or false",
    ),
    (("--config=smoke", "--workdir=W", "--config.optim.beta1=x"), "beta1 is 'x'", "a number: e.g. 0.9."),
    (("--config=smoke", "--workdir=W", "--config.sample.prompts=no quotes"), "prompts"),
    (("--config=smoke", "--workdir=W", "--steps=5"), "--steps", "did you mean --config.train.steps"),
    (("--hlep",), "did you mean help"),
    (("--config=smoke", "--workdir=W", "--train.steps=5"), "--train.steps", "--config.SECTION.KNOB"),
    (("--config=smoke", "--workdir=W", "--top_k=5"), "--top_k", "sample.top_k"),
    (("--config=smoke", "--workdir=W", "--data.path=x"), "--data.path", "--config.data.path"),
    (("--config=smoke", "--workdir=W", "stray"), "'stray'"),
    (("--workdir=W", "--config.train.steps=5"), "--config.train.steps=5", "--config"),
    (("--mode=trian", "--workdir=W"), "--mode is 'trian'", "one of train, eval"),
    (("--mode=sample",), "--workdir is missing", "of a trained run"),
    (("--mode=study", "--config=study_smoke"), "--workdir is missing", "of the study"),
    (("--mode=eval",), "--workdir"),
    (("--mode=sample", "--workdir=W", "--config=smoke"), "--config", "leave it out"),
    (("--mode=eval", "--workdir=W", "--top_k=5"), "--top_k", "eval", "leave it out"),
    (("--mode=sample", "--workdir=W", "--data.path=x"), "--data.path", "sample", "leave it out"),
    (("--mode=sample", "--workdir=W", "--temperature=hot"), "--temperature is 'hot'", "a number: e.g. 0.5."),
    (("--mode=sample", "--workdir=W", "--num_samples"), "num_samples"),
    (("--mode=eval", "--workdir=W", "--stream"), "--stream", "eval", "leave it out"),
    (("--config=smoke", "--workdir=W", "--cache_dtype=int8"), "--cache_dtype", "sample.cache_dtype"),
    (("--mode=sample", "--workdir=W", "--stream=perhaps"), "stream", "perhaps"),
    (("--mode=bench",), "--out is missing"),
    (("--mode=bench", "--out=W/b", "--suite=speed"), "'speed'", "decode, prefill, memory"),
    (("--mode=bench", "--out=W/b", "--quick", "--point=mlaa"), "'mlaa'", "mha_rope"),
    (("--mode=bench", "--out=W/b", "--quick", "--only=magic"), "'magic'", "plain"),
    (("--mode=bench", "--out=W/b", "--batch=0"), "bench.batches", "(0,)"),
    (("--mode=bench", "--out=W/b", "--batch=two"), "--batch is 'two'", "a whole number: e.g. 5."),
    (("--mode=bench", "--out=W/b", "--context=-1"), "bench.contexts", "(-1,)"),
    (("--mode=bench", "--out=W/b", "--size=huge"), "bench.size", "'huge'"),
    (("--mode=bench", "--out=W/b", "--max_minutes=-1"), "bench.max_minutes", "-1"),
    (("--mode=bench", "--out=W/b", "--max_minutes=nan"), "bench.max_minutes", "nan"),
    (("--mode=bench", "--out=W/b", "--workdir=W"), "config.json", "no run folder"),
    (("--mode=bench", "--out=W/b", "--workdir=W/none"), "no such folder"),
    (("--mode=bench", "--out=W/b", "--workdir=W", "--config=smoke"), "--config and --workdir", "not both"),
    (("--mode=bench", "--out=W/stories.txt", "--quick"), "--out", "cannot be written"),
    (("--mode=bench", "--out=W/b", "--top_k=5"), "--top_k", "bench"),
    (("--mode=train", "--config=smoke", "--workdir=W", "--quick"), "--quick", "leave it out"),
    (
        ("--config=smoke", "--workdir=W/new", "--config.mesh.fsdp=2"),
        "mesh is 1 x 2 x 1 x 1",
        "there are 1",
        "mesh.data",
    ),
    (("--config=smoke", "--workdir=W", "--config.mesh.tensor=3"), "mesh.tensor", "model.n_heads", "divide"),
    (("--config=smoke", "--workdir=W", "--config.mesh.expert=2"), "mesh.expert", "dense", "set it to 1"),
    (("--config=smoke", "--workdir=W", "--num_processes=2"), "--coordinator_address and --process_id missing"),
    (("--config=smoke", "--workdir=W", "--process_id=one"), "process_id", "one"),
    (("--mode=sample", "--workdir=W", "--num_processes=2"), "--num_processes", "sample", "leave it out"),
    (("--flagfile=W/none",), "none"),
    (("--mode=export",), "--workdir is missing", "of a trained run"),
    (("--mode=export", "--workdir=W"), "--out", "exports/mla_rope"),
    (("--mode=export", "--workdir=W", "--out="), "--out"),
    (("--mode=export", "--workdir=W", "--out=W/x", "--top_k=5"), "--top_k", "export", "leave it out"),
    (("--mode=sample", "--workdir=W", "--out=W/x"), "--out", "export", "sample"),
    (("--config=smoke", "--workdir=W", "--dtype=bfloat16"), "--dtype", "--config.model.dtype"),
]


@pytest.mark.parametrize(("arguments", "w"), [(row[0], row[1:]) for row in FLAGS], ids=lambda v: str(v)[:60])
def test_a_bad_flag_is_refused(refused, tmp_path: Path, arguments: tuple, w: tuple) -> None:
    write_stories(tmp_path / "stories.txt", 3)
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "empty.py").write_text("")
    (tmp_path / "dict.py").write_text("def get_config():\n    return {}\n")
    before = listing(tmp_path)
    refused(*(argument.replace("=W", f"={tmp_path}") for argument in arguments), words=w)
    assert listing(tmp_path) == before


SAMPLES = [
    (("--temperature=-1",), "temperature", "-1"),
    (("--temperature=nan",), "temperature", "nan"),
    (("--temperature=inf",), "temperature", "inf"),
    (("--top_k=-5",), "top_k", "-5"),
    (("--num_samples=0",), "num_samples", "0"),
    (("--max_new_tokens=0",), "max_new_tokens", "0"),
    (("--trace_experts",), "trace_experts", "ffn=dense"),
    (("--max_new_tokens=64",), "--max_new_tokens is 64", "max_len (64): lower it."),
    (("--seed=-1",), "seed", "-1"),
    (("--seed=99999999999",), "seed", "99999999999"),
    (("--prompt=" + "word " * 80,), "prompt", "max_len"),
    (("--top_p=0",), "top_p", "0.0", "set --top_p"),
    (("--top_p=1.5",), "top_p", "1.5"),
    (("--top_p=nan",), "top_p", "nan"),
    (("--min_p=-0.5",), "min_p", "-0.5"),
    (("--repetition_penalty=0",), "repetition_penalty", "0.0"),
    (("--stop=",), "stop", "empty string"),
    (("--cache_dtype=int4",), "cache_dtype", "'int4'", "auto | bfloat16 | float32 | int8"),
    (("--max_new_tokens=64", "--stream"), "max_new_tokens", "64", "max_len"),
    (("--prompt=" + "word " * 80, "--stream"), "prompt", "max_len"),
    (("--prompt=\udcff",), "UTF-8"),
]


@pytest.mark.parametrize(("arguments", "w"), [(row[0], row[1:]) for row in SAMPLES], ids=lambda v: repr(v)[:30])
def test_a_bad_sampling_setting_is_refused(refused, trained_run: Path, arguments: tuple, w: tuple) -> None:
    refused("--mode=sample", f"--workdir={trained_run}", *arguments, words=w)


def test_eval_refuses_a_cache_that_the_model_cannot_have(refused, trained_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    before = listing(tmp_path)
    refused("--mode=eval", f"--workdir={run}", "--cache_dtype=int4", words=("cache_dtype", "'int4'", "int8"))
    edit_json(run / "config.json", lambda c: c["config"]["data"].update(document_mask=True))
    arguments = (f"--workdir={trained_run}", f"--workdir={run}", "--cache_dtype=int8")
    edited = listing(tmp_path)
    refused("--mode=eval", *arguments, words=("cache_dtype", "data.document_mask"))
    assert listing(tmp_path) == edited != before


def test_a_streamed_story_is_the_same_story(trained_run: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = [f"--workdir={trained_run}", "--prompt=once upon", "--prompt=", "--num_samples=2", "--seed=3"]
    arguments += ["--top_p=0.9", "--min_p=0.01", "--repetition_penalty=1.1", "--stop=zebra"]
    outs = []
    for more in ((), ("--stream",)):
        capsys.readouterr()
        assert main(["mla_jax", "--mode=sample", *arguments, *more]) == 0
        outs.append(capsys.readouterr().out)
    assert outs[0] == outs[1] and outs[0].count("once upon") >= 2 and "4 of 4 (seed 6)" in outs[0]


def test_ctrl_c_before_training_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys, stories_file, tmp_path) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mla_jax.train.setup.prepare", interrupted)
    assert main(["mla_jax", *train_flags(stories_file, tmp_path / "run")]) == 130
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["RESOURCE_EXHAUSTED: Out of memory", "INTERNAL: Error dispatching: Out of memory"])
def test_too_little_device_memory_is_one_line(
    monkeypatch: pytest.MonkeyPatch, refused, stories_file, tmp_path, kind: str
) -> None:
    def exhausted(*_: object) -> None:
        raise jax.errors.JaxRuntimeError(f"{kind} allocating 4677632028868 bytes.\nmore")

    monkeypatch.setattr("mla_jax.train.loop.train", exhausted)
    words = ("4677632028868 bytes", "train.microbatches")
    refused(*train_flags(stories_file, tmp_path / "run"), words=words)


def test_other_errors_are_not_hidden(monkeypatch: pytest.MonkeyPatch, stories_file, tmp_path) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr("mla_jax.train.loop.train", broken)
    with pytest.raises(RuntimeError, match="a defect"):
        main(["mla_jax", *train_flags(stories_file, tmp_path / "run")])


@pytest.mark.parametrize("shell", ["--help | true", "--mode=nonsense 2>&1 | true"])
def test_a_reader_that_goes_ends_it_without_a_word(shell: str) -> None:
    command = f'set -o pipefail; "{sys.executable}" -m mla_jax.main {shell}'
    done = subprocess.run(["bash", "-c", command], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


def test_a_broken_pipe_elsewhere_is_an_error_like_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(argv: list[str]) -> int:
        raise BrokenPipeError("a connection of its own")

    monkeypatch.setattr("mla_jax.main.main", breaks)
    with pytest.raises(BrokenPipeError, match="of its own"):
        main_module.console_main()
