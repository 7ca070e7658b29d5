"""mla_jax.bench: rows, ratios, sizes counted from arrays, and --mode bench through the real command line."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from run_tools import call
from tiny import REFERENCE, quick_jit, random_params, random_tokens, tiny_config

from mla_jax import accounting
from mla_jax.bench import decode, device, kernels, memory, plan, points, report
from mla_jax.bench.settings import QUICK_CAVEAT, QUICK_MODEL
from mla_jax.bench.timing import Timing, measure
from mla_jax.config_files import load_config
from mla_jax.errors import UserError
from mla_jax.kernels.operands import Blocks
from mla_jax.model.backend import Backend
from mla_jax.model.cache import init_cache
from mla_jax.model.serving import serving_variables
from mla_jax.model.transformer import Transformer, variables_of
from mla_jax.rows import read_rows

SMALL = {"model.vocab_size": 64, "tokenizer.vocab_size": 320, **QUICK_MODEL}


def row(point: str, tokens_per_s: float, suite: str = "decode", label: str = "", **more: Any) -> dict[str, Any]:
    metrics = {"suite": suite, "point": point, "label": label, "batch": 4, "context": 32, "xla_flags": ""}
    return {
        "device": "chip",
        "versions": {"jax": "1", "jaxlib": "1", "flax": "1"},
        "command": "c",
        "metrics": metrics | {"tokens_per_s": tokens_per_s} | more,
    }


def test_ratios_are_over_the_same_shape_and_device() -> None:
    rows = [row("mha_rope", 100.0), row("mla r=d", 150.0), row("mla r=d/2", 300.0), row("mla r=d/2", 50.0, batch=8)]
    rows.append(row("mla r=d/2", 10.0) | {"device": "another chip"})
    rows.append(row("mla r=d/2", 200.0, label="xla"))
    found = [r["metrics"] for r in report.with_ratios(rows)]
    assert [m.get("over_mha") for m in found] == [1.0, 1.5, 3.0, None, None, 2.0]
    assert [m.get("over_full_rank") for m in found] == [100 / 150, 1.0, 2.0, None, None, 200 / 150]


def test_ratios_are_over_the_same_model_but_for_attention() -> None:
    """Sizes xs and s in one folder: the last row of MHA was everybody's reference, and 3.36 times itself."""
    rows = [
        row(point, speed, model=model)
        for model, speeds in (("4 x 256, 64 pieces", (400.0, 200.0)), ("6 x 512, 64 pieces", (100.0, 90.0)))
        for point, speed in zip(("mha_rope", "mla r=d/2"), speeds, strict=True)
    ]
    assert [r["metrics"]["over_mha"] for r in report.with_ratios(rows)] == [1.0, 0.5, 1.0, 0.9]
    text = report.markdown(rows)
    assert "| mha_rope [4 x 256, 64 pieces] |" in text and "| mha_rope [6 x 512, 64 pieces] |" in text
    assert "| mha_rope |" in report.markdown(rows[:2])  # one size: nothing to tell apart


def test_a_size_says_all_that_ratios_must_not_mix() -> None:
    def size(name: str = "mha_rope:xs", **knobs: Any) -> str:
        return points.Point("config", load_config(name, **({"model.vocab_size": 64} | knobs))).size

    for at in ("xs", "m"):
        assert len({p.size for p in points.grid(at, {"model.vocab_size": 64, "tokenizer.vocab_size": 320})}) == 1
    different = [size(), size("mha_rope:s"), size(**{"model.vocab_size": 128}), size(**{"model.d_ff": 128})]
    different += [size("moe_mla_rope:xs"), size("moe_mla_rope:xs", **{"model.top_k": 2})]
    different.append(size(**{"model.block": "gpt", "model.d_ff": 672}))
    assert len(set(different)) == len(different)
    assert size() == "6 x 256, ffn 672, 64 pieces"


def test_two_configs_of_one_name_have_names_of_their_own() -> None:
    """--config twice: both points are called "config"."""
    rows = [row("config", 1.0) | {"config_hash": "aaa"}, row("config", 2.0) | {"config_hash": "bbb"}, row("mha", 3.0)]
    assert report.names(rows) == ["config [aaa]", "config [bbb]", "mha"]
    other = row("config", 4.0) | {"config_hash": "bbb", "device": "card"}
    assert report.names([*rows[1:], other]) == ["config [chip]", "mha [chip]", "config [card]"]


def test_the_reference_of_the_same_process_comes_first() -> None:
    rows = [row("mha_rope", 100.0, copy_bytes_per_s=1.0), row("mla r=d/2", 200.0, copy_bytes_per_s=1.0)]
    rows += [row("mha_rope", 400.0, copy_bytes_per_s=2.0), row("mla r=d", 200.0, copy_bytes_per_s=3.0)]
    assert [r["metrics"]["over_mha"] for r in report.with_ratios(rows)] == [1.0, 2.0, 1.0, 0.5]


def test_the_versions_of_all_rows_are_named() -> None:
    rows = [row("mha", 1.0), row("mha", 1.0) | {"versions": {"jax": "2", "jaxlib": "2", "flax": "1"}}]
    rows.append(row("mha_rope", 1.0, "peers", "torch steps", peer_versions={"torch": "9"}))
    text = report.markdown(rows)
    assert "; jax 1, jaxlib 1, flax 1; jax 2, jaxlib 2, flax 1; jax 1, jaxlib 1, flax 1, torch 9." in text


def test_a_report_is_made_again_from_rows(tmp_path: Path) -> None:
    """Table and all three plots of the committed rows, losses from a study's: nothing is measured."""
    found = Path(__file__).parents[1] / "docs" / "results" / "rows"
    files = [str(found / "decode_h200.jsonl"), str(found / "study_muon_files.jsonl")]
    text = report.again(str(tmp_path / "new" / "out"), files).read_text()
    assert "2.30x" in text and "2.29x" in text  # each loan's MLA over its own MHA
    for name in ("tokens_over_batch", "roofline", "cache_over_loss"):
        assert (tmp_path / "new" / "out" / f"{name}.png").stat().st_size > 1000


def test_losses_are_means_over_seeds_at_the_rate_that_most_seeds_have() -> None:
    def trained(
        loss: float | None, rate: float, name: str = "mla", numbers: int = 5, status: str = "done"
    ) -> dict[str, Any]:
        metrics = {"best_valid_loss": loss, "kv_bytes_per_token": numbers}
        return {"name": name, "metrics": metrics, "study": {"name": "paper", "learning_rate": rate, "status": status}}

    rows = [trained(1.0, 0.1), trained(3.0, 0.2), trained(4.0, 0.2), trained(9.0, 0.3), trained(9.0, 0.3)]
    rows += [trained(None, 0.1, status="diverged"), trained(0.5, 0.2, status="diverged"), trained(2.0, 0.1, "mha", 8)]
    assert report.losses(rows) == {"paper: mla": [(5, 3.5)], "paper: mha": [(8, 2.0)]}


def test_what_no_report_can_be_made_of_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "none.jsonl").write_text('3\n{"metrics": {"loss": 1}}\n')
    (tmp_path / "rows.jsonl").write_text(json.dumps(row("mha", 1.0)) + "\n")
    for out, name, says in (
        ("out", "gone.jsonl", "is no file of rows: give .jsonl files"),
        ("out", "none.jsonl", "no row of --mode bench is in"),
        ("rows.jsonl", "rows.jsonl", "which cannot be written to"),
    ):
        with pytest.raises(UserError, match=says):
            report.again(str(tmp_path / out), [str(tmp_path / name)])
    assert not (tmp_path / "out").exists()


def test_rows_under_other_xla_flags_are_no_reference() -> None:
    flagged = row("mha_rope", 10.0, xla_flags="--xla_something")
    assert "over_mha" not in report.with_ratios([flagged, row("mla r=d/2", 30.0)])[1]["metrics"]


def test_ours_is_compared_with_the_peer_at_the_same_job() -> None:
    rows = [
        row("mha_rope", 60.0, "peers", "ours, whole call"),
        row("mha_rope", 10.0, "peers", "hf llama"),
        row("mha_rope", 30.0, "peers", "hf llama", batch=8),
        row("mha_rope", 80.0, "peers", "ours, steps"),
        row("mha_rope", 40.0, "peers", "torch steps"),
    ]
    assert [r["metrics"].get("over_peer") for r in report.with_ratios(rows)] == [6.0, None, None, 2.0, None]


def test_the_table_shows_what_there_is_and_what_was_skipped() -> None:
    rows = [row("mha_rope", 1234.5, ms=1.5), {**row("mla", 0.0, skipped="needs about 99 GiB")}]
    text = report.markdown(rows)
    assert "1,234" in text and "needs about 99 GiB" in text and "Device: chip" in text
    assert "of copy bandwidth" not in text and "all methods" not in text and "quick" not in text  # no row has it


def test_the_report_says_first_that_quick_figures_say_nothing_and_explains_a_label() -> None:
    rows = [row("mha_rope", 10.0, quick=True), row("mha_rope", 9.0, label="all methods"), row("mla", 8.0)]
    text = report.markdown(rows)
    assert text.startswith(f"1 of 3 rows are of `--quick`, {QUICK_CAVEAT}.\n\n## decode")
    about = '"(all methods)": tokens are drawn at temperature 0.8 with top-k 40, top-p 0.95, min-p 0.02 and repetition'
    assert about in text and text.index(about) < text.index("mha_rope (all methods)")


def test_the_copy_bandwidth_is_that_of_the_median(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure_once(call: Any, prepare: Any, repeats: int) -> Timing:
        call(prepare())
        return Timing(2.0, 1.0, 4.0, repeats, 9.0)

    monkeypatch.setattr(device, "measure", measure_once)
    assert device.copy_bandwidth(4096) == 2 * 4096 * device._COPIES / 2.0


def test_a_timing_is_per_step_and_keeps_compilation_apart() -> None:
    metrics = Timing(0.2, 0.1, 0.4, 5, 3.2).metrics(10)
    assert metrics == pytest.approx(
        {"ms": 20.0, "ms_low": 10.0, "ms_high": 40.0, "repeats": 5, "steps_per_call": 10, "compile_s": 3.0}
    )
    calls: list[int] = []
    timing = measure(lambda argument: calls.append(argument), lambda: len(calls), 3)
    assert calls == [0, 1, 2, 3, 4] and timing.repeats == 3  # two warm-up calls, each prepared anew


def test_the_grid_has_equal_cache_pairs_and_the_headline() -> None:
    grid = {p.name: p.config.model for p in points.grid("m", {"model.vocab_size": 512, "tokenizer.vocab_size": 512})}
    assert {points.MHA, points.FULL_RANK, points.HEADLINE} <= set(grid)
    assert (grid[points.HEADLINE].kv_lora_rank, grid[points.HEADLINE].qk_rope_head_dim) == (256, 32)
    pairs = {"gqa1": 96, "gqa2": 224, "gqa4": 480}
    for name, rank in pairs.items():
        joint = grid[f"mla r={rank} (as {name})"]
        assert accounting.kv_numbers(joint) == accounting.kv_numbers(grid[name])
    assert all(cfg.absorbed for name, cfg in grid.items() if "mla" in name or "per_head" in name)


@pytest.mark.parametrize("name", ["mha_rope", "mla_rope"])
def test_estimated_bytes_are_the_arrays_plus_logits(name: str) -> None:
    config = load_config(name, **SMALL)
    model = Transformer(config.model, Backend("float32", "xla"))
    variables = jax.eval_shape(lambda: decode.random_variables(model))
    store = jax.eval_shape(lambda: init_cache(config.model, 3, 16, jnp.float32))
    logits = 3 * 4 * 3 * 64
    assert decode.estimated_bytes(config, 3, 16, "float32") == decode.nbytes((variables, store)) + logits


def test_a_step_leaves_alone_the_experts_that_no_row_chose() -> None:
    sizes = SMALL | {"model.n_routed_experts": 8, "model.n_shared_experts": 1, "model.top_k": 2, "model.d_expert": 16}

    def unread(batch: int, backend: Backend = REFERENCE, **knobs: Any) -> int:
        config = load_config("moe_mla_rope", **(sizes | {f"model.{name}": value for name, value in knobs.items()}))
        return decode.unread_expert_bytes(Transformer(config.model, backend), batch)

    parts = accounting.params(load_config("moe_mla_rope", **sizes).model)
    alone = 4 * (parts["total"] - parts["active"])
    assert unread(1, moe_impl="gathered") == alone
    assert unread(3, moe_impl="gathered") == int(alone * 0.75**2)
    assert unread(1, moe_impl="gathered", top_k=8) == unread(1, moe_impl="masked_dense") == 0
    packed = Backend("bfloat16", "cudnn", decode_impl="pallas", platform="gpu")
    assert unread(8, packed) == int(alone / 2 * 0.75**7) and unread(9, packed) == 0


def test_a_filled_cache_has_no_zeros_and_no_pattern_along_an_axis() -> None:
    model = Transformer(load_config("mla_rope", **SMALL).model, Backend("bfloat16", "xla"))
    cache = decode.filled_cache(model, 3, 16)
    empty = init_cache(model.cfg, 3, 16, jnp.bfloat16)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), cache) == jax.tree.map(lambda a: (a.shape, a.dtype), empty)
    numbers = np.asarray(cache[0].c_kv, np.float32)
    assert np.abs(numbers).max() <= 1 and 0.5 < numbers.std() < 0.9
    assert all(np.diff(numbers, axis=axis).std() > 0.2 for axis in range(3))


def test_the_largest_batch_fills_the_memory_and_one_more_does_not() -> None:
    point = points.Point("x", load_config("mla_rope", **SMALL))
    limit = 10**8
    batch = memory.closed_form(point, 64, limit, "bfloat16")
    for rows, fits in ((batch, True), (batch + 1, False)):
        needed = decode.estimated_bytes(point.config, rows, 64, "bfloat16")
        assert (needed <= limit * (1 - memory._RESERVE)) == fits
    assert memory.run(point, 64, None)["largest_batch"] > 0


def test_serving_variables_change_no_logit() -> None:
    """In bfloat16 each use rounds its matrix anyway; gains, the router and the position table stay float32."""
    config = tiny_config("mla_rope")
    model = Transformer(config.model, Backend("bfloat16", "xla"))
    variables = variables_of(random_params(model))
    served = serving_variables(config.model, variables, model.backend)
    dtypes = {path[-1].key: leaf.dtype for path, leaf in jax.tree_util.tree_leaves_with_path(served)}
    assert dtypes["w_dkv"] == dtypes["embedding"] == dtypes["w_gate"] == jnp.bfloat16
    assert dtypes["gain"] == dtypes["latent_gain"] == jnp.float32
    tokens = random_tokens(config, 2, 7)
    logits = [np.asarray(quick_jit(model.apply)(v, tokens)[0], np.float32) for v in (variables, served)]
    np.testing.assert_array_equal(*logits)
    learned = Transformer(tiny_config("mla").model, Backend("bfloat16", "xla"))
    served = serving_variables(learned.cfg, variables_of(random_params(learned)), learned.backend)
    assert served["params"]["position_embedding"].dtype == jnp.float32


def test_candidates_are_the_tables_choice_first_and_each_once() -> None:
    chosen = Blocks(64, 4, 4, 2)
    found = list(kernels.candidates(chosen, 512))
    assert found[0] == chosen and len(set(found)) == len(found) > 10


def test_every_suite_has_jobs_and_the_headline_comes_first() -> None:
    config = load_config("base", **{"bench.max_minutes": 1.0})
    grid = points.grid("m", {"model.vocab_size": 512, "tokenizer.vocab_size": 512})
    for suite, make in plan.SUITES.items():
        assert make(grid, config.bench), suite
    jobs = plan.decode_jobs(grid, config.bench)
    assert [(j.point.name, j.batch, j.context) for j in jobs[:2]] == [
        (points.MHA, 1024, 512),
        (points.HEADLINE, 1024, 512),
    ]
    keys = [(j.point.name, j.batch, j.context, j.label) for j in jobs]
    assert len(set(keys)) == len(keys)
    shapes = {(b, c) for b in (1, 16, 128, 1024) for c in (512, 2048, 4096, 16384)}
    assert {(b, c) for _, b, c, _ in keys} == shapes | {(64, 4096)}


def test_a_points_batches_follow_each_other_and_share_their_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = points.grid("m", {"model.vocab_size": 512, "tokenizer.vocab_size": 512})
    jobs = [job for job in plan.decode_jobs(grid, load_config("base").bench) if job.context == 2048]
    assert [job.point.name for job in jobs] == [point.name for point in grid for _ in (1, 16, 128, 1024)]
    decode.forget_variables()  # another test may have measured the same model last
    made: list[str] = []
    real = decode.random_variables
    monkeypatch.setattr(decode, "random_variables", lambda model: made.append(model.cfg.attention) or real(model))
    tiny = SMALL | {"model.vocab_size": 320, "model.n_layers": 1}
    mha, mla = (points.Point(name, load_config(name, **tiny)) for name in ("mha_rope", "mla_rope"))
    for point, batch in ((mha, 1), (mha, 2), (mla, 1), (mha, 1)):
        assert decode.run(point, batch, 32, 4, 1)["tokens_per_s"] > 0
    assert made == ["mha", "mla", "mha"]


def bench(out: Path, cache: Path, *flags: str, **more: Any) -> str:
    return call("--mode=bench", "--quick", f"--out={out}", *flags, cache=cache, **more)


@pytest.mark.parametrize(
    "suites",
    [("decode", "memory"), pytest.param(tuple(plan.SUITES), marks=pytest.mark.slow)],
    ids=lambda s: "+".join(s),
)
def test_quick_through_the_command_line(
    tmp_path: Path, suites: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XLA_FLAGS", raising=False)  # rows under flags are no reference for ratios
    out, flags = tmp_path / "bench", [f"--suite={suite}" for suite in suites]
    text = bench(out, tmp_path / "cache", *flags)
    rows = read_rows(out / "rows.jsonl")
    assert {r["metrics"]["suite"] for r in rows} == set(suites)
    assert not [r for r in rows if "failed" in r["metrics"]], text
    assert "that it runs is all that these figures say" in text
    first = next(r for r in rows if r["metrics"]["suite"] == "decode")
    assert {"device", "versions", "command", "config_hash", "time"} <= set(first)
    assert first["metrics"]["cache_bytes"] == 2 * 32 * first["metrics"]["cache_bytes_per_token"]
    assert first["metrics"]["model"] == "2 x 64, ffn 96, 8192 pieces"
    assert first["metrics"]["of_copy"] > 0 and first["metrics"]["ms"] > 0
    report_text = (out / "report.md").read_text()
    assert "over MHA" in report_text and report_text.startswith(f"{len(rows)} of {len(rows)} rows are of `--quick`")
    assert (out / "tokens_over_batch.png").stat().st_size > 1000
    # Again: nothing is left to do, and a row that a killed run cut off is measured again.
    lines = (out / "rows.jsonl").read_text().splitlines()
    (out / "rows.jsonl").write_text("\n".join([*lines[:-1], lines[-1][:20]]))
    assert "1 to measure" in bench(out, tmp_path / "cache", *flags)
    assert len(read_rows(out / "rows.jsonl")) == len(lines)
    assert all(json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines() if line.endswith("}"))
