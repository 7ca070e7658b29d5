"""Our parameters <-> tensors of a Hugging Face checkpoint: the table of names, shapes and orders, in numpy.

Each row of the table packs one or several of our parameters into one tensor there, and unpacks it again: permutations
and reshapes only, so that a round trip is exact to the last bit.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from mla_jax.config import ModelConfig
from mla_jax.errors import UserError
from mla_jax.interop.families import DEEPSEEK, LLAMA, family

# Names into our tree {**params, "router_bias": [L_moe, E]}; a number is a place on the first axis of an array.
Path = tuple[str | int, ...]
ROUTER_BIAS = "e_score_correction_bias"  # float32 whatever the dtype of the weights: transformers keeps it so


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor there. paths: of our parameters it is made of; pack(*parameters) -> tensor; unpack(tensor) -> them."""

    name: str
    shape: tuple[int, ...]
    paths: tuple[Path, ...]
    pack: Callable[..., np.ndarray]
    unpack: Callable[[np.ndarray], tuple[np.ndarray, ...]]


def to_tensors(cfg: ModelConfig, params: Any, router_bias: Any = None) -> dict[str, np.ndarray]:
    """Our parameters (a float32 pytree) and, with experts, router_bias [L_moe, E] -> {name: tensor}, C-contiguous.

    Raises UserError as `families.family` does, and for a router bias that masks experts.
    """
    tree = jax.tree.map(np.asarray, dict(params))
    if router_bias is not None:
        tree["router_bias"] = np.asarray(router_bias)
        if not np.isfinite(tree["router_bias"]).all():
            raise UserError("The router bias masks experts (-inf), which DeepseekV3ForCausalLM cannot: unmask them.")
    tensors = {}
    for entry in table(cfg):
        tensor = np.ascontiguousarray(entry.pack(*(_get(tree, path) for path in entry.paths)))
        assert tensor.shape == entry.shape, (entry.name, tensor.shape, entry.shape)
        tensors[entry.name] = tensor
    return tensors


def to_params(
    cfg: ModelConfig, tensors: dict[str, np.ndarray], where: str, interleaved: bool = True
) -> tuple[dict[str, Any], np.ndarray | None]:
    """{name: tensor} -> our parameters and, with experts, router_bias [L_moe, E] (else None); float32 numpy arrays.

    `interleaved`: the order of DeepSeek's rotary rows. Raises UserError, naming the file `where`, for a tensor that is
    missing, has another shape than the config says, has numbers that are not finite, or that the config has no use for.
    """
    tree: dict[str, Any] = {}
    tensors = dict(tensors)
    for entry in table(cfg, interleaved):
        tensor = tensors.pop(entry.name, None)
        if tensor is None:
            raise UserError(
                f"{where} has no tensor {entry.name!r}, which its config.json asks for: copy the folder again."
            )
        if tensor.shape != entry.shape:
            raise UserError(
                f"{where}: {entry.name} has the shape {list(tensor.shape)}, and by config.json it must be "
                f"{list(entry.shape)}: use the config.json that belongs to these weights."
            )
        if not np.isfinite(tensor).all():
            raise UserError(f"{where}: {entry.name} has numbers that are infinite or not numbers: copy the file again.")
        for path, value in zip(entry.paths, entry.unpack(tensor.astype(np.float32)), strict=True):
            _put(tree, path, value)
    params = _stack(tree)
    router_bias = params.pop("router_bias", None)
    _check_rest(tensors, params["embedding"], where)
    return params, router_bias


def _check_rest(tensors: dict[str, np.ndarray], embedding: np.ndarray, where: str) -> None:
    head = tensors.pop("lm_head.weight", None)
    if head is not None and not (head.shape == embedding.shape and np.array_equal(head, embedding)):
        raise UserError(f"{where}: lm_head.weight differs from the embedding; ours are tied: this cannot be imported.")
    if tensors:
        shown = ", ".join(sorted(tensors)[:3])
        raise UserError(
            f"{where} has {len(tensors)} tensors that its config.json has no use for ({shown} ...): use the "
            "config.json that belongs to these weights."
        )


def table(cfg: ModelConfig, interleaved: bool = True) -> Iterator[Entry]:
    """Every tensor of the checkpoint, tied output matrix excepted."""
    name = family(cfg)
    width = cfg.d_model
    if name in (DEEPSEEK, LLAMA):
        yield _same("model.embed_tokens.weight", ("embedding",), (cfg.vocab_size, width))
        for i in range(cfg.n_layers):
            there, here = f"model.layers.{i}", f"layer_{i}"
            yield _same(f"{there}.input_layernorm.weight", (here, "attention_norm", "gain"), (width,))
            yield _same(f"{there}.post_attention_layernorm.weight", (here, "ffn_norm", "gain"), (width,))
            attention = _mla if name == DEEPSEEK else _grouped
            yield from attention(cfg, f"{there}.self_attn", (here, "attention"), interleaved)
            if i >= cfg.n_layers - cfg.n_moe_layers:
                yield from _experts(cfg, f"{there}.mlp", (here, "ffn"), i - (cfg.n_layers - cfg.n_moe_layers))
            else:
                yield from _swiglu(width, cfg.d_ff, f"{there}.mlp", (here, "ffn"))
        yield _same("model.norm.weight", ("final_norm", "gain"), (width,))
        return
    yield _same("transformer.wte.weight", ("embedding",), (cfg.vocab_size, width))
    yield _same("transformer.wpe.weight", ("position_embedding",), (cfg.max_len, width))
    for i in range(cfg.n_layers):
        yield from _gpt_layer(cfg, f"transformer.h.{i}", f"layer_{i}")
    yield from _layer_norm("transformer.ln_f", ("final_norm",), width)


def _grouped(cfg: ModelConfig, there: str, here: Path, _: bool) -> Iterator[Entry]:
    queries, keys = (cfg.n_heads, cfg.head_dim), (cfg.n_kv_heads, cfg.head_dim)
    yield _linear(f"{there}.q_proj.weight", (*here, "w_q"), (cfg.d_model,), queries)
    yield _linear(f"{there}.k_proj.weight", (*here, "w_k"), (cfg.d_model,), keys)
    yield _linear(f"{there}.v_proj.weight", (*here, "w_v"), (cfg.d_model,), keys)
    yield _linear(f"{there}.o_proj.weight", (*here, "w_o"), queries, (cfg.d_model,))


def _mla(cfg: ModelConfig, there: str, here: Path, interleaved: bool) -> Iterator[Entry]:
    width, heads, rank = cfg.d_model, cfg.n_heads, cfg.kv_lora_rank
    nope, rope, value = cfg.qk_nope_head_dim, cfg.qk_rope_head_dim, cfg.v_head_dim
    order = _rope_order(rope, interleaved)
    columns = np.concatenate([np.arange(nope), nope + order])  # of a query head
    if cfg.q_lora_rank:
        yield _linear(f"{there}.q_a_proj.weight", (*here, "w_dq"), (width,), (cfg.q_lora_rank,))
        yield _same(f"{there}.q_a_layernorm.weight", (*here, "q_latent_gain"), (cfg.q_lora_rank,))
        yield _linear(f"{there}.q_b_proj.weight", (*here, "w_uq"), (cfg.q_lora_rank,), (heads, nope + rope), columns)
    else:
        yield _linear(f"{there}.q_proj.weight", (*here, "w_q"), (width,), (heads, nope + rope), columns)
    back = np.argsort(order)
    yield Entry(
        f"{there}.kv_a_proj_with_mqa.weight",
        (rank + rope, width),
        ((*here, "w_dkv"), (*here, "w_kr")),
        lambda down, key: np.concatenate([down.T, key.T[order]]),
        lambda t: (t[:rank].T, t[rank:][back].T),
    )
    yield _same(f"{there}.kv_a_layernorm.weight", (*here, "latent_gain"), (rank,))
    yield Entry(  # rows: for each head its keys, then its values
        f"{there}.kv_b_proj.weight",
        (heads * (nope + value), rank),
        ((*here, "w_uk"), (*here, "w_uv")),
        lambda up_k, up_v: np.concatenate([up_k, up_v], axis=-1).reshape(rank, -1).T,
        lambda t: tuple(np.split(t.T.reshape(rank, heads, nope + value), [nope], axis=-1)),
    )
    yield _linear(f"{there}.o_proj.weight", (*here, "w_o"), (heads, value), (width,))


def _rope_order(rope: int, interleaved: bool) -> np.ndarray:
    """Which of our rotary rows stands at each place there: ours pair (i, i + R/2), DeepSeek's (2i, 2i + 1)."""
    rows = np.arange(rope)
    return rows.reshape(2, rope // 2).T.reshape(-1) if interleaved else rows


def _swiglu(width: int, hidden: int, there: str, here: Path, place: Path = ()) -> Iterator[Entry]:
    """place: (e,) for expert e of a stack."""
    yield _linear(f"{there}.gate_proj.weight", (*here, "w_gate", *place), (width,), (hidden,))
    yield _linear(f"{there}.up_proj.weight", (*here, "w_up", *place), (width,), (hidden,))
    yield _linear(f"{there}.down_proj.weight", (*here, "w_down", *place), (hidden,), (width,))


def _experts(cfg: ModelConfig, there: str, here: Path, moe_layer: int) -> Iterator[Entry]:
    """Experts are single tensors there and a stack [E, ...] here; the router bias lies with its layer there."""
    experts, width = cfg.n_routed_experts, cfg.d_model
    yield _linear(f"{there}.gate.weight", (*here, "w_router"), (width,), (experts,))
    yield _same(f"{there}.gate.{ROUTER_BIAS}", ("router_bias", moe_layer), (experts,))
    for e in range(experts):
        yield from _swiglu(width, cfg.d_expert, f"{there}.experts.{e}", here, (e,))
    hidden = cfg.n_shared_experts * cfg.d_expert
    if hidden:
        yield from _swiglu(width, hidden, f"{there}.shared_experts", (*here, "shared"))
        return
    for name, shape in (("gate_proj", (0, width)), ("up_proj", (0, width)), ("down_proj", (width, 0))):
        yield _empty(f"{there}.shared_experts.{name}.weight", shape)  # there, no shared expert is one without width


def _gpt_layer(cfg: ModelConfig, there: str, layer: str) -> Iterator[Entry]:
    """GPT-2's Conv1D stores (in, out), as we do; queries, keys and values are one matrix."""
    width, heads = cfg.d_model, (cfg.n_heads, cfg.head_dim)
    attention, ffn = (layer, "attention"), (layer, "ffn")
    yield from _layer_norm(f"{there}.ln_1", (layer, "attention_norm"), width)
    yield from _layer_norm(f"{there}.ln_2", (layer, "ffn_norm"), width)
    yield Entry(
        f"{there}.attn.c_attn.weight",
        (width, 3 * width),
        tuple((*attention, name) for name in ("w_q", "w_k", "w_v")),
        lambda *each: np.concatenate([a.reshape(width, width) for a in each], axis=1),
        lambda t: tuple(a.reshape(width, *heads) for a in np.split(t, 3, axis=1)),
    )
    yield Entry(
        f"{there}.attn.c_attn.bias",
        (3 * width,),
        tuple((*attention, name) for name in ("b_q", "b_k", "b_v")),
        lambda *each: np.concatenate([a.reshape(width) for a in each]),
        lambda t: tuple(a.reshape(heads) for a in np.split(t, 3)),
    )
    yield Entry(
        f"{there}.attn.c_proj.weight",
        (width, width),
        ((*attention, "w_o"),),
        lambda a: a.reshape(width, width),
        lambda t: (t.reshape(*heads, width),),
    )
    yield _same(f"{there}.attn.c_proj.bias", (*attention, "b_o"), (width,))
    yield _same(f"{there}.mlp.c_fc.weight", (*ffn, "w_in"), (width, cfg.d_ff))
    yield _same(f"{there}.mlp.c_fc.bias", (*ffn, "b_in"), (cfg.d_ff,))
    yield _same(f"{there}.mlp.c_proj.weight", (*ffn, "w_out"), (cfg.d_ff, width))
    yield _same(f"{there}.mlp.c_proj.bias", (*ffn, "b_out"), (width,))


def _layer_norm(there: str, here: Path, width: int) -> Iterator[Entry]:
    yield _same(f"{there}.weight", (*here, "gain"), (width,))
    yield _same(f"{there}.bias", (*here, "bias"), (width,))


def _same(name: str, path: Path, shape: tuple[int, ...]) -> Entry:
    return Entry(name, shape, (path,), lambda a: a, lambda t: (t,))


def _empty(name: str, shape: tuple[int, ...]) -> Entry:
    return Entry(name, shape, (), lambda: np.zeros(shape, np.float32), lambda _: ())


def _linear(
    name: str, path: Path, inputs: tuple[int, ...], outputs: tuple[int, ...], columns: np.ndarray | None = None
) -> Entry:
    """Ours [*inputs, *outputs] -> torch.nn.Linear's [outputs, inputs]. columns: an order of our last axis."""
    n_in, n_out = math.prod(inputs), math.prod(outputs)

    def pack(a: np.ndarray) -> np.ndarray:
        return (a if columns is None else a[..., columns]).reshape(n_in, n_out).T

    def unpack(tensor: np.ndarray) -> tuple[np.ndarray]:
        a = tensor.T.reshape(*inputs, *outputs)
        return (a if columns is None else a[..., np.argsort(columns)],)

    return Entry(name, (n_out, n_in), (path,), pack, unpack)


def _get(tree: Any, path: Path) -> Any:
    for name in path:
        tree = tree[name]
    return tree


def _put(tree: dict[str, Any], path: Path, value: np.ndarray) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value


def _stack(tree: Any) -> Any:
    """The tree with every {0: a, 1: b, ...} as one array, and every array C-contiguous."""
    if not isinstance(tree, dict):
        return np.ascontiguousarray(tree)
    if 0 in tree:
        return np.stack([tree[i] for i in range(len(tree))])
    return {name: _stack(branch) for name, branch in tree.items()}
