"""Steps timed side by side, the profile's table and the largest batch: through their own command lines, tiny."""

from pathlib import Path

import jax
import pytest

from mla_jax.bench import largest_batch, profile, train_step
from mla_jax.errors import UserError
from mla_jax.rows import read_rows

TINY = ["--knob", "model.n_layers=1", "--knob", "model.d_model=32", "--knob", "model.n_heads=2", "--vocab", "300"]
TINY += ["--batch", "2", "--length", "16", "--steps", "1", "--repeats", "3"]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A session of `bench.train_step`, traced: its folder."""
    folder = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLA_JAX_CACHE", str(folder / "cache"))
        more = ["--config", "mla_rope:xs", "--optimizer", "--trace", str(folder / "trace")]
        train_step.main([*TINY, *more, "--out", str(folder / "rows.jsonl")])
    return folder


def check_timed(m: dict) -> None:
    assert m["step_ms_low"] <= m["step_ms"] <= m["step_ms_high"]
    assert m["repeats"] == 3
    assert m["tokens_per_s"] == pytest.approx(2 * 16 / m["step_ms"] * 1e3)


def test_a_row_comes_when_compiled_and_when_timed(bench: Path) -> None:
    compiled, timed = read_rows(bench / "rows.jsonl")
    assert compiled["name"] == timed["name"] == "mla_rope:xs"
    assert compiled["metrics"]["temp_bytes"] > 0
    assert "step_ms" not in compiled["metrics"]
    check_timed(timed["metrics"])
    assert timed["metrics"]["optimizer_ms"] > 0


@pytest.mark.slow
def test_variants_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setenv("MLA_JAX_CACHE", str(tmp_path / "cache"))
    variants = ["--variant", "", "--variant", "model.attention_impl=xla optim.name=muon"]
    train_step.main([*TINY, "--config", "mla_rope:xs", *variants, "--out", str(tmp_path / "rows.jsonl")])
    rows = read_rows(tmp_path / "rows.jsonl")
    assert [row["name"] for row in rows] == [
        "mla_rope:xs",
        "mla_rope:xs model.attention_impl=xla optim.name=muon",
    ] * 2
    for row in rows[2:]:
        check_timed(row["metrics"])
    assert rows[2]["config_hash"] != rows[3]["config_hash"]
    assert "| mla_rope:xs | " in capsys.readouterr().out


def test_options_of_xla_are_no_knobs(
    bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """They reach the compiler, which refuses what it does not know, and leave the config as it is."""
    monkeypatch.setenv("MLA_JAX_CACHE", str(tmp_path / "cache"))
    run = [*TINY, "--config", "mla_rope:xs", "--out", str(tmp_path / "rows.jsonl"), "--variant"]
    train_step.main([*run, "xla_backend_optimization_level=0"])
    assert {row["config_hash"] for row in read_rows(tmp_path / "rows.jsonl")} == {
        row["config_hash"] for row in read_rows(bench / "rows.jsonl")
    }
    with pytest.raises(UserError, match="no step was measured"):
        train_step.main([*run, "xla_no_such_option=0"])
    assert "xla_no_such_option" in capsys.readouterr().out


def test_the_trace_becomes_a_table(bench: Path, capsys: pytest.CaptureFixture) -> None:
    profile.main([str(bench / "trace"), "--steps", str(train_step.TRACED_STEPS)])
    said = capsys.readouterr().out
    for words in ("| class | ms a step", "| product |", "| part |", "| ffn, backward |", "| optimizer |", "| kernel |"):
        assert words in said, words
    kernels = profile.read_kernels(bench / "trace")
    assert all(kernel.duration_ns >= 0 for kernel in kernels)
    per_op = {}
    for kernel in kernels:
        per_op[kernel.op] = per_op.get(kernel.op, 0) + 1
    assert max(per_op.values()) == train_step.TRACED_STEPS  # every step is there, and once


def kernel(name: str, op: str = "", scope: str = "", start: float = 0.0, length: float = 1.0) -> profile.Kernel:
    return profile.Kernel(name, op, scope, start, length)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_32", "attention"),
        ("nvjet_hsh_192x192_64x4_2x1_v_bz_coopA_NNT", "product"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64", "product"),
        ("cutlass_80_tensorop_bf16_s16816gemm", "product"),
        ("input_add_reduce_fusion", "reduction"),
        ("loop_gelu_fusion_3", "elementwise"),
        ("loop_transpose_fusion", "transpose, copy"),
        ("input_scatter_fusion", "scatter, gather"),
        ("ncclDevKernel_AllReduce_Sum_f32", "collective"),
        ("MemcpyD2D", "transpose, copy"),
        ("something_new", "other"),
    ],
)
def test_kernels_are_classed_by_name(name: str, expected: str) -> None:
    assert profile.kernel_class(kernel(name)) == expected


def test_parts_come_from_the_name_stack() -> None:
    program = '  %fusion.3 = bf16[2]{0} fusion(%a), metadata={op_name="jit(f)/transpose(jvp(T))/layer_0/ffn/dot"}\n'
    scopes = profile.scopes_of(program)
    assert profile.part_of(kernel("k", "fusion.3"), scopes) == "ffn, backward"
    assert profile.part_of(kernel("k", "x", "jit(f)/jvp(T)/layer_0/attention/dot"), scopes) == "attention"
    assert profile.part_of(kernel("k", "x", "jit(f)/optimizer/newton_schulz/dot"), scopes) == "newton_schulz"
    assert profile.part_of(kernel("k", "x"), scopes) == "?"


def test_overlapping_streams_count_once() -> None:
    kernels = [kernel("a", start=0, length=10), kernel("b", start=5, length=10), kernel("c", start=20, length=5)]
    assert profile.busy_ns(kernels) == 20


def test_the_largest_batch_is_what_fits() -> None:
    found = largest_batch.Estimate(fixed_bytes=10, sequence_bytes=3)
    assert found.largest(40.1 / largest_batch.SHARE) == 10
    assert found.largest(5) == 0


@pytest.mark.slow
def test_the_largest_batch_is_estimated_from_a_compiled_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLA_JAX_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "rows.jsonl"
    flags = ["--sizes", "xs", "--remat", "full", "--vocab", "300", "--length", "16", "--batch", "2"]
    largest_batch.main([*flags, "--memory_gb", "0.4", "--config", "mha", "--out", str(out)])
    metrics = read_rows(out)[0]["metrics"]
    parameters = 7_000_000  # about, of size xs at 300 rows: weights, two moments and gradients of 4 bytes
    assert 0.5 < metrics["fixed_bytes"] / (16 * parameters) < 1.5
    assert metrics["largest_batch"] > 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--variant", "faster"], "'faster' changes nothing"),
        (["--variant", "optim.name=sgd"], "optim.name is 'sgd'"),
        (["--knob", "model.n_layer=3"], "n_layer is not a knob"),
    ],
)
def test_bad_input_is_a_sentence(tmp_path: Path, flags: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        train_step.main([*TINY, *flags, "--out", str(tmp_path / "rows.jsonl")])
    assert not (tmp_path / "rows.jsonl").exists()


def test_a_folder_without_a_trace_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no trace"):
        profile.main([str(tmp_path)])
    assert jax.devices()
