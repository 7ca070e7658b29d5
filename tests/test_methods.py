"""mla_jax.sample.methods, threshold: what is kept is what sorting keeps, draws follow the probabilities."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from draw_tools import KERNEL, METHODS, N_TOKENS, SEEN, VOCAB, draw_with, random_logits, with_ties
from tiny import QUICK, REFERENCE

from mla_jax.errors import UserError
from mla_jax.model.backend import Backend
from mla_jax.sample import reference, threshold
from mla_jax.sample.methods import GREEDY, Form, Method, Values, draw, kept_weights

pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")
both_ways = pytest.mark.parametrize("backend", [KERNEL, REFERENCE], ids=["kernel", "xla"])


@functools.partial(jax.jit, static_argnums=(2, 3), compiler_options=QUICK)
def kept(logits: jax.Array, values: Values, form: Form, platform: str) -> jax.Array:
    """`platform` keeps the programs of two platforms apart."""
    valid = jnp.arange(VOCAB) < N_TOKENS
    return kept_weights(jnp.where(valid, logits, jnp.asarray(-1e30, logits.dtype)), form, values, N_TOKENS) > 0


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize("method", [m for m in METHODS if m.repetition_penalty == 1], ids=str)
def test_what_is_kept_is_what_sorting_keeps(method: Method, platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactly the same tokens, for float32 and bfloat16, ties, and both widths of the search's digits."""
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    floats = jnp.concatenate([random_logits(20, jnp.float32), with_ties(20)])
    for logits in (floats, random_logits(20, jnp.bfloat16)):
        found = np.asarray(kept(logits, method.values, method.form, platform))
        for row, x in zip(found, np.asarray(logits, np.float32), strict=True):
            wanted = reference.probabilities(x, set(), method, N_TOKENS) > 0
            np.testing.assert_array_equal(row[:N_TOKENS], wanted)
            assert not row[N_TOKENS:].any()


@hypothesis.settings(max_examples=40)
@hypothesis.given(
    values=st.lists(
        st.floats(-(2.0**99), 2.0**99, width=32, allow_subnormal=False) | st.sampled_from([0.0, -0.0, 1.0]),
        min_size=9,
        max_size=9,
    ),
    k=st.integers(1, 9),
)
def test_the_search_finds_the_kth_largest(values: list[float], k: int) -> None:
    x = jnp.asarray([values], jnp.float32)
    keys, bits = threshold.ordered_keys(x)
    found = np.asarray(keys >= _search(keys, bits, jnp.asarray([k], jnp.int32))[:, None])[0]
    np.testing.assert_array_equal(found, np.asarray(x[0]) >= np.sort(np.asarray(x[0]))[-k])


_search = jax.jit(threshold.search, static_argnums=1)


def test_a_target_out_of_reach_keeps_all() -> None:
    keys, bits = threshold.ordered_keys(random_logits(2, jnp.float32))
    assert (_search(keys, bits, jnp.asarray([VOCAB, VOCAB + 1], jnp.int32)) <= keys.min(axis=1)).all()


@pytest.mark.parametrize("size", [1, 2**17, 2**17 + 1, 2**24])
def test_digits_divide_the_bits(size: int) -> None:
    for platform in ("cpu", "gpu", "tpu"):
        assert 16 % threshold.digit_bits(size, platform) == 0
    assert threshold.digit_bits(2**13, "gpu") == 8 and threshold.digit_bits(2**23, "gpu") == 2


DRAWS = 10_000


@functools.partial(jax.jit, static_argnums=1, compiler_options=QUICK)
def shares(values: Values, form: Form) -> jax.Array:
    """How often each token is drawn from one row of logits in DRAWS draws, [VOCAB]."""
    keys = jax.vmap(jax.random.key)(jnp.arange(DRAWS))
    logits = jnp.broadcast_to(random_logits(1, jnp.float32), (DRAWS, VOCAB))
    seen = jnp.zeros(VOCAB, bool).at[jnp.asarray(SEEN)].set(True)
    ids = draw(logits, keys, form, values, N_TOKENS, jnp.broadcast_to(seen, logits.shape))
    return jnp.bincount(ids, length=VOCAB)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_draws_follow_the_probabilities(method: Method) -> None:
    """Chi-square of 10,000 draws, and never a token that is not kept."""
    counts = np.asarray(shares(method.values, method.form), np.float64)
    logits = np.asarray(random_logits(1, jnp.float32))[0]
    p = np.pad(reference.probabilities(logits, set(SEEN), method, N_TOKENS), (0, VOCAB - N_TOKENS))
    assert counts.sum() == DRAWS and (counts[p == 0] == 0).all()
    expected = DRAWS * p
    rare = expected < 5  # together one cell, as chi-square wants
    cells = [(counts[i], expected[i]) for i in np.flatnonzero(~rare)]
    if expected[rare].sum() > 0:
        cells.append((counts[rare].sum(), expected[rare].sum()))
    statistic, freedom = sum((o - e) ** 2 / e for o, e in cells), len(cells) - 1
    assert statistic <= freedom + 5 * (2 * freedom) ** 0.5 + 1e-9  # mean + five standard deviations


def test_the_penalty_takes_from_what_was_seen() -> None:
    plain, penalised = (
        np.asarray(shares(m.values, m.form)) for m in (Method(1.0, 0), Method(1.0, 0, repetition_penalty=1.5))
    )
    assert penalised[list(SEEN)].sum() < 0.9 * plain[list(SEEN)].sum()


@pytest.mark.parametrize(("temperature", "top_k"), [(0.0, 0), (0.0, 1), (0.0, 3), (1e-40, 3), (1e-50, 0)])
def test_temperature_0_is_greedy_of_equals_the_lowest_and_never_a_surplus_row(temperature: float, top_k: int) -> None:
    """So is what float32 rounds to 0 or divides by to infinity."""
    method = Method(temperature, top_k, 0.5, 0.5)
    assert method.form == GREEDY.form
    for logits in (random_logits(8, jnp.float32), with_ties(8)):
        ids = draw(logits, jax.vmap(jax.random.key)(jnp.arange(8)), method.form, method.values, N_TOKENS)
        np.testing.assert_array_equal(ids, np.asarray(logits)[:, :N_TOKENS].argmax(axis=1))


JUST_BELOW_1 = float(np.nextafter(np.float32(1), np.float32(0)))


@both_ways
def test_the_coldest_draw_is_the_likeliest_token(backend: Backend) -> None:
    method, logits = Method(1e-30, 0), 1e6 * random_logits(8, jnp.float32)
    assert method.form.draws
    for uniform in (0, 0.5, JUST_BELOW_1):
        ids = draw_with([uniform] * 8, logits, method, backend)
        np.testing.assert_array_equal(ids, np.asarray(logits)[:, :N_TOKENS].argmax(axis=1))


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_uniform_numbers_evenly_apart_give_each_token_its_share(method: Method) -> None:
    """To less than one draw: between two numbers is where its weights begin, and where they end."""
    logits, count = random_logits(1, jnp.float32), 4096
    found = draw_with((np.arange(count) + 0.5) / count, jnp.broadcast_to(logits, (count, VOCAB)), method, REFERENCE)
    p = reference.probabilities(np.asarray(logits)[0], set(SEEN), method, N_TOKENS)
    assert (np.abs(np.bincount(found, minlength=N_TOKENS) - count * p) < 1.001).all()


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_number_draws_the_token_of_the_plain_twin(method: Method) -> None:
    logits, uniform = random_logits(200, jnp.float32, 4), np.random.default_rng(5).random(200, np.float32)
    rows = zip(np.asarray(logits), uniform, strict=True)
    wanted = [reference.draw(row, float(u), set(SEEN), method, N_TOKENS) for row, u in rows]
    np.testing.assert_array_equal(draw_with(uniform, logits, method, REFERENCE), wanted)


_ENDS = {  # the first and the last token that can be drawn from `_middle`
    Method(1.0, 0): (0, N_TOKENS - 1),
    Method(0.01, 0): (5, N_TOKENS - 6),  # the others' weights are 0 in float32
    Method(1.0, 50): (5, N_TOKENS - 6),
    Method(1.0, 0, top_p=0.99): (5, N_TOKENS - 6),
    Method(1.0, 0, min_p=0.1): (5, N_TOKENS - 6),
    Method(1.0, 0, min_p=0.001): (0, N_TOKENS - 1),
}


def _middle(dtype: jnp.dtype) -> jax.Array:
    """[2, VOCAB]: the first and the last five tokens are unlikely, those in between alike; surplus rows the largest."""
    inner = (np.arange(VOCAB) >= 5) & (np.arange(VOCAB) < N_TOKENS - 5)
    row = np.where(np.arange(VOCAB) < N_TOKENS, np.where(inner, 0.0, -6.0), 50.0)
    return jnp.asarray(np.stack([row, row]), dtype)


@both_ways
@pytest.mark.parametrize("method", _ENDS, ids=str)
def test_the_smallest_and_the_largest_number_draw_the_first_and_the_last_kept_token(
    method: Method, backend: Backend
) -> None:
    """Never one that is not kept, a surplus row, or one whose weight is 0."""
    for dtype in (jnp.float32, jnp.bfloat16):
        assert tuple(draw_with([0, JUST_BELOW_1], _middle(dtype), method, backend)) == _ENDS[method]


@both_ways
@pytest.mark.parametrize("higher", [0, 1])
def test_sums_that_rise_and_fall_by_roundings_draw_what_is_kept(
    higher: int, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As parallel sums may: every other one is too large, the rest too small, and none is 0 before the first weight."""
    real = jnp.cumsum

    def uneven(x: jax.Array, axis: int = -1) -> jax.Array:
        return real(x, axis=axis) * jnp.where(jnp.arange(x.shape[axis]) % 2 == higher, 1 + 1e-6, 1 - 1e-6) + 1e-7

    monkeypatch.setattr(jnp, "cumsum", uneven)
    for method, (first, _) in _ENDS.items():
        found = draw_with([0, JUST_BELOW_1], _middle(jnp.float32), method, backend)
        p = reference.probabilities(np.asarray(_middle(jnp.float32))[1], set(), method, N_TOKENS)
        assert found[0] == first
        assert p[found[1]] > 1e-30 and p[found[1] + 1 :].sum() < 1e-5


def test_greedy_meets_the_penalty_too() -> None:
    """Positive logits are divided (3 -> 2 < 2.5), negative ones multiplied (-2.5 -> -3.75 < -3)."""
    method, keys = Method(0.0, 0, repetition_penalty=1.5), jax.vmap(jax.random.key)(jnp.arange(2))
    logits, seen = jnp.asarray([[3.0, 2.5], [-3.0, -2.5]]), jnp.asarray([[True, False], [False, True]])
    assert draw(logits, keys, method.form, method.values, 2, seen).tolist() == [1, 0]
    assert draw(logits, keys, method.form, method.values, 2, ~seen).tolist() == [0, 1]


@both_ways
def test_weights_are_float32_whatever_the_logits_are(backend: Backend) -> None:
    """In bfloat16 neither the logits over the temperature nor the sums would be the same."""
    logits, uniform = random_logits(200, jnp.bfloat16), np.random.default_rng(6).random(200, np.float32)
    ids = [draw_with(uniform, logits.astype(dtype), Method(0.7, 0), backend) for dtype in (jnp.bfloat16, jnp.float32)]
    assert ids[0].dtype == np.int32
    np.testing.assert_array_equal(*ids)


@both_ways
@pytest.mark.parametrize("method", [Method(1.0, 0), Method(0.9, 30, 0.9, 0.02, 1.2)], ids=str)
def test_a_draw_does_not_depend_on_the_other_rows(method: Method, backend: Backend) -> None:
    """Alone, or in another order beside rows of far larger logits."""
    logits, uniform = random_logits(6, jnp.float32), np.random.default_rng(7).random(6, np.float32)
    together = draw_with(uniform, logits, method, backend)
    assert len(set(together)) > 1
    alone = [draw_with(uniform[i : i + 1], logits[i : i + 1], method, backend)[0] for i in range(6)]
    np.testing.assert_array_equal(alone, together)
    mates = jnp.concatenate([100 * logits, logits[::-1]])
    found = draw_with(np.concatenate([uniform, uniform[::-1]]), mates, method, backend)
    np.testing.assert_array_equal(found[6:], together[::-1])


@both_ways
def test_logits_that_are_no_numbers_draw_an_id_of_the_vocabulary(backend: Backend) -> None:
    for method in (Method(1.0, 0), Method(0.9, 30, 0.9, 0.02)):
        ids = draw_with([0, JUST_BELOW_1], jnp.full((2, VOCAB), jnp.nan), method, backend)
        assert ((ids >= 0) & (ids < N_TOKENS)).all()


def test_a_number_is_no_reason_to_compile() -> None:
    """Only the form is static."""
    one, other = Method(0.8, 40, 0.9, 0.05, 1.1), Method(0.7, 30, 0.8, 0.01, 1.2)
    assert one.form == other.form and one != other
    assert Method(1.0, 0).form == Form(True, False, False, False, False)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("temperature", x) for x in (-0.1, NAN, INF)],
        *[("top_k", x) for x in (-1, 2**31)],
        *[("top_p", x) for x in (0.0, 1e-50, -0.5, 1.5, NAN)],
        *[("min_p", x) for x in (-0.1, 1.1, NAN)],
        *[("repetition_penalty", x) for x in (0.0, 9e-4, 1001.0, -1.0, NAN, INF)],
    ],
)
def test_a_method_out_of_range_is_refused(field: str, value: float) -> None:
    with pytest.raises(UserError, match=f"^{field} is {value}; it must be"):
        Method(**({"temperature": 0.8, "top_k": 40} | {field: value}))
