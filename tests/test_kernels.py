"""mla_jax.kernels: values against the plain twins in interpret mode, and lowering for a GPU that is not there."""

import functools
import types
from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gpu_lowering import TRITON_CALL, lower_for_h100
from hypothesis import example, given, settings
from tiny import quick_jit

from mla_jax.kernels import blocks as blocks_lib
from mla_jax.kernels import new_entry
from mla_jax.kernels.flash_decode import combine
from mla_jax.kernels.head_decode import head_decode, head_decode_reference
from mla_jax.kernels.latent_decode import latent_decode, latent_decode_reference
from mla_jax.kernels.operands import Blocks, Entry
from mla_jax.kernels.tiles import pieces
from mla_jax.model.functions import MASKED

SCALE = 0.2
pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")


def draw(seed: int, *shape: int, dtype: Any = jnp.float32) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def ragged(batch: int, capacity: int) -> jax.Array:
    """Lengths 1, capacity, and between."""
    return jnp.asarray([1 + i * (capacity - 1) // max(1, batch - 1) for i in range(batch)], jnp.int32)


def int8_cache(seed: int, *shape: int) -> tuple[jax.Array, jax.Array]:
    """Random int8 latents [B, S, ...] and scales [B, S] float32."""
    rng = np.random.default_rng(seed)
    scale = jnp.asarray(rng.uniform(0.005, 0.02, shape[:2]), jnp.float32)
    return jnp.asarray(rng.integers(-127, 128, shape), jnp.int8), scale


def check_latent(
    batch: int, heads: int, rank: int, rope: int, capacity: int, blocks: Blocks, int8: bool = False
) -> None:
    q, q_rope = draw(0, batch, heads, rank), draw(1, batch, heads, rope) if rope else None
    c_kv, scale = int8_cache(2, batch, capacity, rank) if int8 else (draw(2, batch, capacity, rank), None)
    k_rope = draw(3, batch, capacity, rope) if rope else None
    lengths = ragged(batch, capacity)
    # What lies past a row's length must not matter, whatever it is.
    past = jnp.arange(capacity) >= lengths[:, None]
    dirty = c_kv if int8 else jnp.where(past[..., None], jnp.nan, c_kv)
    dirty_rope = None if k_rope is None else jnp.where(past[..., None], jnp.nan, k_rope)
    run = quick_jit(lambda q, q_rope, c, k, n, s: latent_decode(q, q_rope, c, k, n, SCALE, s, blocks, True)[0])
    out = run(q, q_rope, dirty, dirty_rope, lengths, scale)
    expected = latent_decode_reference(q, q_rope, c_kv, k_rope, lengths, SCALE, scale)
    assert out.shape == (batch, heads, rank)
    np.testing.assert_allclose(out, expected, atol=1e-5)


LATENT_CASES = [
    (2, 8, 32, 16, 40, Blocks(16, 1, 4, 2)),
    (2, 8, 32, 16, 40, Blocks(16, 1, 2, 3, late_sum=True)),
    (3, 3, 48, 0, 50, Blocks(16, 3, 4, 2)),  # 32 + 16 wide, no RoPE, more splits than some rows have blocks
    (1, 12, 80, 6, 33, Blocks(16, 2, 4, 2, late_sum=True)),  # a rotary part that is no block: masked
]
SLOW_LATENT_CASES = [
    (4, heads, rank, rope, 70, Blocks(16, splits, 4, 2))
    for heads, rank, rope, splits in [
        *((1, 48, 32, 1), (3, 80, 64, 2), (8, 96, 128, 3), (12, 256, 0, 5), (16, 512, 32, 8), (70, 16, 16, 2)),
        *((8, 240, 64, 4), (5, 20, 2, 2), (16, 256, 32, 8), (1, 256, 128, 1), (3, 512, 64, 2), (128, 32, 0, 1)),
    ]
]


@pytest.mark.parametrize("case", [*LATENT_CASES, *(pytest.param(c, marks=pytest.mark.slow) for c in SLOW_LATENT_CASES)])
def test_latent_decode_is_its_plain_twin(case: tuple) -> None:
    check_latent(*case)


@pytest.mark.parametrize("splits", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_int8_latents_with_a_scale_per_token(splits: int) -> None:
    check_latent(2, 4, 32, 16, 40, Blocks(16, splits, 4, 2), int8=True)


@pytest.mark.slow
@settings(max_examples=25)
@given(
    batch=st.integers(1, 3),
    heads=st.integers(1, 20),
    rank=st.integers(1, 9).map(lambda n: 16 * n),
    rope=st.sampled_from([0, 2, 8, 16, 24, 32, 64, 128]),
    capacity=st.integers(1, 80),
    splits=st.integers(1, 8),
)
@example(batch=1, heads=1, rank=16, rope=0, capacity=1, splits=8)
def test_latent_decode_at_random_shapes(
    batch: int, heads: int, rank: int, rope: int, capacity: int, splits: int
) -> None:
    check_latent(batch, heads, rank, rope, capacity, Blocks(16, splits, 4, 2, late_sum=bool(capacity % 2)))


HEAD_CASES = [
    pytest.param((2, 4, 4, 16, 16, 0, 40, 1, False), marks=pytest.mark.slow),  # MHA
    (2, 6, 2, 32, 20, 0, 33, 2, False),  # GQA, values of a width of their own
    (2, 2, 2, 16, 16, 8, 20, 2, True),  # per-head latents with decoupled RoPE, int8
    pytest.param((1, 8, 1, 64, 64, 0, 70, 4, False), marks=pytest.mark.slow),  # MQA
    pytest.param((2, 12, 12, 24, 24, 0, 50, 3, False), marks=pytest.mark.slow),
    pytest.param((2, 3, 3, 32, 32, 32, 50, 1, False), marks=pytest.mark.slow),
    pytest.param((2, 40, 2, 16, 16, 0, 50, 2, True), marks=pytest.mark.slow),  # 20 heads a group: a block of 32
]


@pytest.mark.parametrize("case", HEAD_CASES, ids=str)
def test_head_decode_is_its_plain_twin(case: tuple) -> None:
    batch, heads, groups, width, value_width, rope, capacity, splits, int8 = case
    q, q_rope = draw(0, batch, heads, width), draw(1, batch, heads, rope) if rope else None
    k_rope = draw(4, batch, capacity, rope) if rope else None
    k, v, scales = draw(2, batch, capacity, groups, width), draw(3, batch, capacity, groups, value_width), (None, None)
    if int8:
        (k, k_scale), (v, v_scale) = int8_cache(2, *k.shape), int8_cache(3, *v.shape)
        scales = (k_scale, v_scale)
    arguments = (q, k, v, ragged(batch, capacity))
    blocks = Blocks(16, splits, 4, 2)
    run = quick_jit(lambda a, r, s: head_decode(*a, SCALE, *r, *s, blocks=blocks, interpret=True)[0])
    out = run(arguments, (q_rope, k_rope), scales)
    np.testing.assert_allclose(out, head_decode_reference(*arguments, SCALE, q_rope, k_rope, *scales), atol=1e-5)


@pytest.mark.parametrize("splits", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_the_kernel_writes_the_newest_latent_and_attends_to_it(splits: int) -> None:
    batch, heads, rank, rope, capacity = 3, 4, 48, 16, 40
    q, q_rope = draw(0, batch, heads, rank), draw(1, batch, heads, rope)
    full, full_rope = draw(2, batch, capacity, rank), draw(3, batch, capacity, rope)
    rows, last = jnp.arange(batch), jnp.asarray([0, 17, capacity - 1], jnp.int32)
    new = (full[rows, last], full_rope[rows, last])
    before, before_rope = (a.at[rows, last].set(jnp.nan) for a in (full, full_rope))
    run = quick_jit(lambda *a: latent_decode(*a, SCALE, blocks=Blocks(16, splits, 4, 2), interpret=True, new=new))
    out, c_kv, k_rope = run(q, q_rope, before, before_rope, last)
    np.testing.assert_array_equal(c_kv, full)
    np.testing.assert_array_equal(k_rope, full_rope)
    expected = latent_decode_reference(q, q_rope, full, full_rope, last + 1, SCALE)
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_the_kernel_writes_the_newest_key_and_value() -> None:
    batch, heads, groups, capacity = 3, 6, 2, 20
    q, k, v = draw(0, batch, heads, 16), draw(1, batch, capacity, groups, 16), draw(2, batch, capacity, groups, 20)
    new = Entry(draw(3, batch, groups, 16), draw(4, batch, groups, 20), None)
    start = jnp.asarray([0, 11, capacity], jnp.int32)  # the last row is full: its entry goes nowhere
    run = quick_jit(lambda *a: head_decode(*a, SCALE, blocks=Blocks(16, 2, 4, 2), interpret=True, new=new))
    out, cache = run(q, k, v, start)
    rows = jnp.arange(batch)
    after_k, after_v = k.at[rows, start].set(new.k, mode="drop"), v.at[rows, start].set(new.v, mode="drop")
    np.testing.assert_array_equal(cache.k, after_k)
    np.testing.assert_array_equal(cache.v, after_v)
    expected = head_decode_reference(q, after_k, after_v, jnp.minimum(start + 1, capacity), SCALE)
    np.testing.assert_allclose(out[:2], expected[:2], atol=1e-5)


def test_an_entry_past_the_end_is_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter drops such a write by itself, masked or not; a GPU would write into the next row."""
    masks: list[jax.Array] = []
    monkeypatch.setattr(new_entry.plgpu, "store", lambda target, value, mask: masks.append(mask))
    cache = jnp.zeros((2, 20, 1, 16))
    for position in (0, 19, 20):
        place = (0, 0, jnp.int32(position))
        refs, write = types.SimpleNamespace(k=cache), jnp.asarray(True)
        entry = new_entry.Newest(refs, None, None, None, None, place, 0, write, jnp.float32)
        entry._stored([jnp.ones(16)], cache, (0, position, 0), pieces(16))
        assert masks.pop().tolist() == [position < 20] * 16


def test_the_plain_twins_agree_with_each_other() -> None:
    """A latent cache is one group whose values are its keys."""
    q, c_kv, lengths = draw(0, 2, 4, 16), draw(1, 2, 10, 16), ragged(2, 10)
    as_heads = head_decode_reference(q, c_kv[:, :, None], c_kv[:, :, None], lengths, SCALE)
    np.testing.assert_allclose(latent_decode_reference(q, None, c_kv, None, lengths, SCALE), as_heads, atol=1e-6)


@pytest.mark.parametrize("width", [1, 8, 16, 20, 48, 80, 96, 240, 256, 288, 512])
def test_pieces_cover_a_width_once(width: int) -> None:
    found = pieces(width)
    assert all(size & (size - 1) == 0 and size >= 16 for _, size in found)
    assert [offset for offset, _ in found] == list(np.cumsum([0, *(size for _, size in found)])[:-1])
    assert width <= sum(size for _, size in found) < width + 16
    assert pieces(0) == []


def test_combine_is_one_softmax_over_all_splits() -> None:
    scores, values = draw(0, 3, 8), draw(1, 3, 8, 4)  # 3 splits of 8 positions
    top = scores.max(axis=1)
    weights = jnp.exp2(scores - top[:, None])
    empty = (jnp.zeros((1, 4)), jnp.full((1,), MASKED), jnp.zeros((1,)))  # a split that had nothing to read
    total = weights.sum(axis=1)
    parts = (jnp.einsum("ps,psv->pv", weights / total[:, None], values), top, total)
    out = combine(*(jnp.concatenate([a, b]) for a, b in zip(parts, empty, strict=True)))
    expected = jax.nn.softmax(scores.reshape(-1) * np.log(2)) @ values.reshape(-1, 4)
    np.testing.assert_allclose(out, expected, atol=1e-6)


def test_arrays_past_32_bit_addresses_are_refused() -> None:
    def shape(*sizes: int, dtype: str = "bfloat16") -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, dtype)

    rows = 2049
    latents = shape(rows, 4096, 256, dtype="int8"), None, shape(rows, dtype="int32")
    run = functools.partial(jax.eval_shape, lambda q, c, r, n, s: latent_decode(q, None, c, r, n, SCALE, s)[0])
    with pytest.raises(ValueError, match="2\\^31"):
        run(shape(rows, 8, 256), *latents, shape(rows, 4096, dtype="float32"))


def test_splits_fill_the_device_but_no_part_is_short() -> None:
    for numbers, quantized in ((128, False), (288, False), (576, False), (288, True)):
        for batch in (1, 16, 128, 1024):
            for capacity in (1, 64, 512, 4096, 16384):
                found = blocks_lib.choose(numbers, quantized, batch, 1, capacity)
                assert found.splits == 1 or capacity // found.splits >= 128
                assert found.splits == 1 or found.splits * batch <= 4 * 132
    assert blocks_lib.choose(288, False, 1024, 1, 512) == Blocks(32, 1, 2, 3, late_sum=True)
    assert blocks_lib.choose(288, False, 128, 1, 512) == Blocks(64, 1, 4, 2)
    assert blocks_lib.choose(288, False, 64, 1, 4096) == Blocks(64, 2, 4, 3)
    assert blocks_lib.choose(288, False, 1, 1, 16384).splits == 64
    assert blocks_lib.choose(288, False, 1, 1, 512) == Blocks(128, 4, 8, 2)  # parts that one step covers
    assert blocks_lib.choose(384, False, 1, 1, 512).positions == 64  # two such steps would not fit


# Every row of the table, at the shapes that it is for: (rank or head width, rope, int8).
LOWERED = [(64, 0, False), (256, 32, False), (256, 0, False), (512, 64, False), (480, 32, False), (256, 32, True)]


@pytest.mark.parametrize(("rank", "rope", "int8"), LOWERED)
@pytest.mark.parametrize("batch", [1, pytest.param(1024, marks=pytest.mark.slow)])
def test_latent_decode_lowers_for_a_gpu(rank: int, rope: int, int8: bool, batch: int) -> None:
    def like(*shape: int, dtype: Any = jnp.bfloat16) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch, *shape), dtype)

    text = lower_for_h100(
        lambda q, q_rope, c, k, n, s: latent_decode(q, q_rope, c, k, n, SCALE, s)[0],
        like(8, rank),
        like(8, rope) if rope else None,
        like(512, rank, dtype=jnp.int8 if int8 else jnp.bfloat16),
        like(512, rope) if rope else None,
        like(dtype=jnp.int32),
        like(512, dtype=jnp.float32) if int8 else None,
    )
    assert text.count(TRITON_CALL) == 1


@pytest.mark.parametrize("shape", [(8, 8, 64, 0), (8, 1, 64, 0), (12, 4, 80, 0), (8, 8, 32, 32)])
def test_head_decode_lowers_for_a_gpu(shape: tuple[int, int, int, int]) -> None:
    heads, groups, width, rope = shape
    rotary = [jax.ShapeDtypeStruct(s, jnp.bfloat16) if rope else None for s in ((4, heads, rope), (4, 512, rope))]
    q = jax.ShapeDtypeStruct((4, heads, width), jnp.bfloat16)
    k = jax.ShapeDtypeStruct((4, 512, groups, width), jnp.bfloat16)
    lengths = jax.ShapeDtypeStruct((4,), jnp.int32)
    text = lower_for_h100(lambda q, k, n, *r: head_decode(q, k, k, n, SCALE, *r)[0], q, k, lengths, *rotary)
    assert text.count(TRITON_CALL) == 1


def test_every_row_of_the_table_is_lowered_above() -> None:
    used = {blocks_lib.choose(rank + rope, int8, 4, 1, size) for rank, rope, int8 in LOWERED for size in (512, 16384)}
    for row in blocks_lib.TABLE:
        assert any((b.positions, b.warps, b.stages) == (row.positions, row.warps, row.stages) for b in used)
