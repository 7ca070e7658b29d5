"""mla_jax.collectives and mesh_model: what is read from a partitioned program, and what rings make of it, by hand."""

import re
import subprocess
import sys

import pytest
from run_tools import REPOSITORY

from mla_jax import accounting
from mla_jax.collectives import COMBINED, Collective, Links, parse, seconds
from mla_jax.config_files import load_config

LINKS = Links(devices_per_host=4, inside=100e9, between=10e9, latency=1e-5, efficiency=0.5)
PAIRS, ALL = ((0, 1), (2, 3)), ((0, 1, 2, 3, 4, 5, 6, 7),)


@pytest.mark.parametrize(
    "groups, expected",
    [
        ("{{0,1},{2,3}}", PAIRS),
        ("[2,2]<=[4]", PAIRS),
        ("[2,2]<=[2,2]T(1,0)", ((0, 2), (1, 3))),
        ("mesh['data'=2,'fsdp'=2] {'fsdp'}", PAIRS),
        ("mesh['data'=2,'fsdp'=2] {'data'}", ((0, 2), (1, 3))),
        ("mesh['data'=2,'fsdp'=2] {'data','fsdp'}", ((0, 1, 2, 3),)),
        ("mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}", ((0, 2), (1, 3))),
    ],
)
def test_replica_groups_in_every_form(groups: str, expected: tuple) -> None:
    line = f"  %all-gather.1 = bf16[8,4]{{1,0}} all-gather(%p), channel_id=1, replica_groups={groups}, dimensions={{0}}"
    assert parse(line) == [Collective("all-gather", 64, expected)]


def test_unknown_groups_are_an_error() -> None:
    with pytest.raises(ValueError, match="unknown form"):
        parse("%a = f32[4] all-reduce(%p), replica_groups=<new>")


def test_operations_of_a_program() -> None:
    program = """
  %all-reduce.1 = f32[10,10]{1,0} all-reduce(%dot.1), replica_groups={{0,1},{2,3}}, to_apply=%add
  %dynamic-slice.1 = f32[5,10]{1,0} dynamic-slice(%all-reduce.1, %i, %zero), dynamic_slice_sizes={5,10}
  %all-reduce.10 = f32[10,10]{1,0} all-reduce(%dot.2), replica_groups={{0,1},{2,3}}, to_apply=%add
  %dynamic-slice.2 = f32[5,10]{1,0} dynamic-slice(%all-reduce.10, %i, %zero), dynamic_slice_sizes={5,10}
  %negate = f32[10,10]{1,0} negate(%all-reduce.10)
  %all-reduce.2 = (f32[], bf16[6]{0}) all-reduce(%a, %b), replica_groups={{0,1},{2,3}}, to_apply=%add
  %reduce-scatter = f32[5]{0} reduce-scatter(%c), replica_groups={{0,1},{2,3}}, dimensions={0}, to_apply=%add
  %all-to-all.3 = f32[1,8]{1,0} all-to-all(%d), replica_groups={{0,1},{2,3}}, dimensions={1}
  %alone = f32[99]{0} all-reduce(%e), replica_groups={{0},{1}}, to_apply=%add
  %collective-permute = f32[7]{0} collective-permute(%f), source_target_pairs={{0,1},{1,0}}
"""
    found = [(c.kind, c.size) for c in parse(program)]
    assert found == [
        ("reduce-scatter", 400),  # read by slices only
        ("all-reduce", 400),
        ("all-reduce", 16),
        ("reduce-scatter", 40),
        ("all-to-all", 32),
        ("collective-permute", 28),
    ]


def test_rings_by_hand() -> None:
    assert Collective("all-reduce", 800, ALL).wire_bytes() == 2 * 7 / 8 * 800
    assert Collective("all-gather", 800, ALL).wire_bytes() == 7 / 8 * 800
    assert Collective("collective-permute", 800, ((0, 1), (1, 0))).wire_bytes() == 800
    assert LINKS.rate((0, 1, 2, 3)) == 50e9  # inside a host
    assert LINKS.rate(ALL[0]) == 4 * 10e9 * 0.5  # four members on each of two hosts share four cards
    assert LINKS.rate((0, 4)) == 10e9 * 0.5
    assert Links(2, 20e9, 50e9, 0, 1).rate((0, 1, 2, 3)) == 20e9  # never faster than inside


def test_small_operations_are_joined() -> None:
    one = Collective("all-gather", 1000, PAIRS)
    assert seconds([one], LINKS) == pytest.approx(500 / 50e9 + 1e-5)
    assert seconds([one] * 10, LINKS) == pytest.approx(5000 / 50e9 + 1e-5)
    large = Collective("all-gather", 4 * COMBINED, PAIRS)
    assert seconds([large], LINKS) == pytest.approx(2 * COMBINED / 50e9 + 2e-5)
    assert seconds([Collective("all-reduce", 0, ALL)] * 3, LINKS) == 0


def model(*arguments: str, code: int = 0) -> str:
    command = [sys.executable, "-m", "mla_jax.mesh_model", *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def test_a_mesh_of_a_wrong_form_is_a_sentence() -> None:
    assert "--mesh is '8x1'; it must be data x fsdp x expert x tensor" in model("--mesh=8x1", code=2)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_predictions_of_a_small_model() -> None:
    """Data parallel sends every gradient once around; FSDP halves the state; efficiencies are what the times say."""
    text = model("--config=mha:xs", "--rows=8", "--mesh=2x1x1x1", "--mesh=1x2x1x1", "--step_ms=10")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "x1x1 |" in line]
    data, fsdp = rows
    assert data[1] == fsdp[1] == "2" and "Predicted, not measured" in text
    knobs = {"model.vocab_size": 8192, "tokenizer.vocab_size": 8192}
    parameters = accounting.params(load_config("mha:xs", **knobs).model)["total"]
    state = 3 * 4 * parameters
    assert float(data[6]) == pytest.approx(state / 1e6, rel=0.01) and float(fsdp[6]) == pytest.approx(
        state / 2e6, rel=0.01
    )
    sent = float(re.search(r"all-reduce ([\d.]+)", data[2])[1])
    embedding, rest = 8192 * 256, parameters - 8192 * 256
    # Ring of two: each byte once. bfloat16 but for the embedding's gather; gains and biases are float32 and few.
    assert sent == pytest.approx((2 * rest + 6 * embedding) / 1e6, rel=0.03)
    assert "all-gather" in fsdp[2] and "reduce-scatter" in fsdp[2]
    low, high = (float(x) for x in data[4].split(" ... "))
    assert 10.0 <= low <= high and high == pytest.approx(10 + float(data[3]), abs=0.1)
