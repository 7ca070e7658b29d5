"""Muon (Jordan et al. 2024): momentum, orthogonalized by Newton-Schulz, for every hidden matrix.

The update of a matrix with r rows and c columns is 0.2 sqrt(max(r, c)) times the nearest orthogonal matrix to its
momentum, so that its root mean square is about AdamW's, 0.2, whatever the shape (Liu et al. 2025, arXiv 2502.16982,
section 2.2; paper C, arXiv 2509.24406): one learning rate serves both optimizers.

`optax.contrib.muon` computes the same, leaf by leaf and in the dtype of the momentum; tests hold this to it. Here the
matrices of one shape, of all layers, go through Newton-Schulz together and in bfloat16 where the device has it: some
five batched products a step instead of some sixty small ones.
"""

import collections
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # quintic: steep at 0, singular values end in about 0.7 to 1.2
STEPS = 5
UPDATE_RMS = 0.2  # of AdamW's updates, empirically (Liu et al. 2025)
EPS = 1e-8  # in the denominator of the Frobenius norm


class MuonState(NamedTuple):
    """count int32 []; mu: momentum, float32, of the matrices."""

    count: jax.Array
    mu: Any


def matrix_axes(params: Any) -> Any:
    """For each parameter the axes of the matrix it is, or None where AdamW updates it.

    A parameter is the matrix of the linear map that it is used as: `w_q` [D, H, K] maps D to H K, `w_o` [H, V, D] maps
    H V to D. Axes that index separate maps are batch axes: the experts of [E, D, F], and the heads of per-head latents,
    whose factors paper A defines head by head. Embeddings, gains and biases belong to AdamW; so does `w_router`, an
    output layer (its rows are the experts' logits) as the embedding is. Takes trees with masked leaves.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    modules_per_head = {path[:-1] for path, _ in leaves if path[-1].key == "w_dk"}
    axes = [_axes(path[-1].key, leaf.ndim, path[:-1] in modules_per_head) for path, leaf in leaves]
    return jax.tree.unflatten(structure, axes)


def _axes(name: str, rank: int, per_head: bool) -> MuonDimensionNumbers | None:
    if not name.startswith("w_") or name == "w_router":
        return None
    if rank == 2:
        return MuonDimensionNumbers(0, 1)
    if name == "w_o":  # [H, V, D]
        return MuonDimensionNumbers((0, 1), 2)
    if per_head and name in ("w_dk", "w_dv"):  # [D, H, r]: a matrix [D, r] in every head
        return MuonDimensionNumbers(0, 2)
    if per_head and name in ("w_uk", "w_uv"):  # [H, r, N]
        return MuonDimensionNumbers(1, 2)
    if name in ("w_gate", "w_up", "w_down", "w_in", "w_out"):  # [E, D, F]
        return MuonDimensionNumbers(1, 2)
    if name in ("w_q", "w_k", "w_v", "w_uq", "w_uk", "w_uv"):  # [D, H, K], [C, H, N]
        return MuonDimensionNumbers(0, (1, 2))
    raise ValueError(f"parameter {name!r} of rank {rank} matches no rule of matrix_axes: say which matrix it is.")


def newton_schulz(matrices: jax.Array, dtype: Any) -> jax.Array:
    """About the nearest orthogonal matrix to each of [..., rows, columns], rows <= columns; products in `dtype`."""
    norm = jnp.sqrt(jnp.sum(jnp.square(matrices), axis=(-2, -1), keepdims=True))
    x = (matrices / (norm + EPS)).astype(dtype)
    a, b, c = COEFFICIENTS
    for _ in range(STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.astype(matrices.dtype)


def orthogonalize(tree: Any, dtype: Any) -> Any:
    """Every array of `tree` replaced by its scaled orthogonal one; arrays of one matrix shape in one batch."""
    leaves, structure = jax.tree_util.tree_flatten(tree)
    axes = jax.tree.leaves(matrix_axes(tree), is_leaf=lambda a: isinstance(a, MuonDimensionNumbers))
    forms = [_Form(leaf.shape, a) for leaf, a in zip(leaves, axes, strict=True)]
    groups = collections.defaultdict(list)
    for i, form in enumerate(forms):
        groups[form.shape].append(i)
    done: dict[int, jax.Array] = {}
    for shape, members in groups.items():
        # Stacked, not concatenated: a batch axis of experts that is sharded over devices stays so.
        result = newton_schulz(jnp.stack([forms[i].matrices(leaves[i]) for i in members]), dtype)
        result *= UPDATE_RMS * math.sqrt(shape[-1])
        done |= {i: forms[i].back(result[j]) for j, i in enumerate(members)}
    return jax.tree.unflatten(structure, [done[i] for i in range(len(leaves))])


class _Form:
    """How an array becomes matrices [n, rows, columns] with rows <= columns, and back."""

    def __init__(self, shape: tuple[int, ...], axes: MuonDimensionNumbers):
        rows, columns = ((a,) if isinstance(a, int) else tuple(a) for a in axes)
        batch = tuple(i for i in range(len(shape)) if i not in rows + columns)
        if math.prod(shape[i] for i in rows) > math.prod(shape[i] for i in columns):
            rows, columns = columns, rows
        self._order = batch + rows + columns
        self._unmerged = tuple(shape[i] for i in self._order)
        self.shape = tuple(math.prod(shape[i] for i in part) for part in (batch, rows, columns))

    def matrices(self, array: jax.Array) -> jax.Array:
        return array.transpose(self._order).reshape(self.shape)

    def back(self, matrices: jax.Array) -> jax.Array:
        inverse = sorted(range(len(self._order)), key=self._order.__getitem__)
        return matrices.reshape(self._unmerged).transpose(inverse)


def scale_by_muon(beta: float, dtype: Any) -> optax.GradientTransformation:
    """Nesterov momentum with bias correction (as `optax.contrib.scale_by_muon`), orthogonalized and scaled."""

    def init(params: Any) -> MuonState:
        return MuonState(jnp.zeros((), jnp.int32), optax.tree.zeros_like(params))

    def update(updates: Any, state: MuonState, params: Any = None) -> tuple[Any, MuonState]:
        del params
        mu = optax.tree.update_moment(updates, state.mu, beta, 1)
        count = optax.safe_increment(state.count)
        ahead = optax.tree.bias_correction(mu, beta, optax.safe_increment(count))
        now = optax.tree.bias_correction(updates, beta, count)
        momentum = jax.tree.map(lambda m, g: beta * m + (1 - beta) * g, ahead, now)
        with jax.named_scope("newton_schulz"):
            return orthogonalize(momentum, dtype), MuonState(count, mu)

    return optax.GradientTransformation(init, update)
