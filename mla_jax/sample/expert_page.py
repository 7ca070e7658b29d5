"""The page of a trace: the texts of each layer coloured by expert. No script, nothing fetched; CSS does what moves.

Styles are scoped to one element, so that a notebook can show the page between other things.
"""

import colorsys
import html
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from mla_jax.sample.expert_trace import Trace

TOP_PAIRS = 12  # of each two neighbouring layers; the JSON has all
_GOLDEN = 0.381966  # of a turn of the colour wheel: experts with neighbouring numbers look different
# Three saturations and lightnesses by turns: (saturation, lightness) on a light and on a dark page.
_LIGHT = ((0.85, 0.86), (0.70, 0.77), (0.80, 0.69))
_DARK = ((0.55, 0.17), (0.45, 0.24), (0.65, 0.27))
INK = {"light": "#111111", "dark": "#f4f4f4"}

_STYLE = """
.experts { color-scheme: light; --ink: #111111; --page: #ffffff; --dim: #5a5a5a; --line: #c8c8c8;
  font: 16px/1.8 Georgia, serif; max-width: 60em; margin: 0 auto; padding: 1em; box-sizing: border-box;
  color: var(--ink); background: var(--page); overflow-wrap: anywhere; print-color-adjust: exact; }
.experts h1, .experts summary, .experts label, .experts table, .experts .note { font-family: sans-serif; }
.experts h1 { font-size: 1.5em; } .experts summary { cursor: pointer; font-weight: bold; }
.experts .note, .experts caption { color: var(--dim); font-size: 13px; line-height: 1.5; text-align: left; }
.experts .layer p { border-left: 2px solid var(--line); padding-left: .6em; }
.experts span { border-radius: 3px; padding: 2px 0; white-space: pre-wrap; background: var(--c); }
.experts .given { text-decoration: underline dotted; }
.experts .mark { font: 12px monospace; margin-inline-end: .4em; }
.experts .legend { border: 0; margin: .5em 0; padding: 0; display: flex; flex-wrap: wrap; gap: 3px; }
.experts .legend label { background: var(--c); border: 1px solid var(--line); border-radius: 3px; padding: 0 6px;
  font-size: 12px; line-height: 1.6; white-space: nowrap; cursor: pointer; }
.experts .legend label:has(:checked), .experts label:has(:focus-visible) { outline: 2px solid var(--ink); }
.experts .legend label { position: relative; } .experts .legend input { position: absolute; opacity: 0; }
.experts .legend small { color: var(--ink); opacity: .8; } .experts .unused { opacity: .5; }
.experts .layer:has([name=expert]:not([value=all]):checked) p span { background: none; opacity: .6; }
.experts table { border-collapse: collapse; font-size: 13px; }
.experts td, .experts th { padding: 0 10px; text-align: right; }
.experts:has(.numbers:checked) p span::after { font: 9px sans-serif; vertical-align: sub; margin: 0 1px; }
"""
_DARK_STYLE = "color-scheme: dark; --ink: #f4f4f4; --page: #15171a; --dim: #b0b0b0; --line: #4a4d52;"


def colour(expert: int, scheme: str = "light") -> str:
    """ "#rrggbb" of an expert; scheme: light | dark. INK on it has a contrast of 4.5 or more (WCAG AA)."""
    saturation, lightness = (_LIGHT if scheme == "light" else _DARK)[expert % 3]
    parts = colorsys.hls_to_rgb(expert * _GOLDEN % 1, lightness, saturation)
    return "#" + "".join(f"{round(255 * part):02x}" for part in parts)


def page(name: str, traces: Sequence["Trace"], load: np.ndarray, pairs: np.ndarray, first_layer: int) -> str:
    """The HTML document.

    load [L_moe, E] and pairs [L_moe - 1, E, E] are those of `expert_trace`; first_layer: the model's layer that is the
    first with experts.
    """
    n_layers, n_experts = load.shape
    title = f"Experts of {html.escape(name)}"
    parts = [
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title><style>html, body {{ margin: 0; }}",
        "@media (prefers-color-scheme: dark) { html { background: #15171a; } }",
        f'{_style(n_experts)}</style></head><body><div class="experts">',
        f"<h1>{title}</h1>",
        '<p class="note">A token has the colour of the expert that its layer chose first; rest the pointer on it for '
        "all of them and their weights. What was given is underlined. Choose an expert to see every token that it "
        "worked on, first choice or not; behind its number stands how many of them there are.</p>",
        '<label class="note"><input type="checkbox" class="numbers"> write the number behind each token</label>',
    ]
    for layer in range(n_layers):
        shown = " open" if layer in (0, n_layers - 1) else ""
        parts.append(f"<details{shown}><summary>layer {first_layer + layer}</summary>")
        parts.append(f'<form class="layer" autocomplete="off">{_legend(load[layer])}')
        parts += [f'<p dir="auto">{_text(each, layer)}</p>' for each in traces]
        if layer + 1 < n_layers:
            n_tokens = sum(len(each.tokens) for each in traces)
            parts.append(_pair_table(pairs[layer], load[layer : layer + 2], first_layer + layer, n_tokens))
        parts.append("</form></details>")
    return "\n".join([*parts, "</div></body></html>\n"])


def _style(n_experts: int) -> str:
    experts = range(n_experts)
    rules = [_STYLE]
    for scheme, wrap in (("light", "{}"), ("dark", "@media (prefers-color-scheme: dark) {{ {} }}")):
        own = "" if scheme == "light" else _DARK_STYLE
        colours = "".join(f"--c{e}:{colour(e, scheme)};" for e in experts)
        rules.append(wrap.format(f".experts {{ {own}{colours} }}"))
    for e in experts:
        rules.append(f".experts .e{e} {{ --c: var(--c{e}); }}")
        chosen = f'.experts .layer:has([value="{e}"]:checked) p span[data-x~="{e}"]'  # outweighs the rule that dims
        rules.append(f"{chosen} {{ background: var(--c{e}); opacity: 1; }}")
        rules.append(f'.experts:has(.numbers:checked) p .e{e}::after {{ content: "{e}"; }}')
    return "\n".join(rules)


def _legend(load: np.ndarray) -> str:
    """All experts of a layer with the number of tokens that each worked on; one of them can be chosen."""
    labels = ['<label><input type="radio" name="expert" value="all" checked>all</label>']
    for expert, count in enumerate(load):
        kind = f"e{expert}" if count else "unused"
        off = "" if count else " disabled"
        labels.append(
            f'<label class="{kind}"><input type="radio" name="expert" value="{expert}"{off}>{expert} '
            f"<small>({count})</small></label>"
        )
    return f'<fieldset class="legend">{"".join(labels)}</fieldset>'


def _text(each: "Trace", layer: int) -> str:
    spans = []
    for t, token in enumerate(each.tokens):
        chosen, weight = each.experts[layer, t], each.weights[layer, t]
        title = ", ".join(f"{e} ({w:.2f})" for e, w in zip(chosen, weight, strict=True))
        kind = f"e{chosen[0]}" + " given" * (t < each.n_prompt) + " mark" * (t == 0)
        used = " ".join(map(str, chosen))
        spans.append(f'<span class="{kind}" data-x="{used}" title="{title}">{visible(token)}</span>')
    return "".join(spans)


def visible(token: str) -> str:
    """A token as HTML: line breaks have a sign, characters that show nothing or turn the text are named."""
    shown = []
    for character in token:
        if character == "\n":
            shown.append("↵\n")
        elif character == "\t":
            shown.append("⇥\t")
        elif unicodedata.category(character) in ("Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp"):
            shown.append(f"[U+{ord(character):04X}]")
        else:
            shown.append(html.escape(character))
    return "".join(shown)


def _pair_table(pairs: np.ndarray, load: np.ndarray, layer: int, n_tokens: int) -> str:
    """The pairs that occur most beyond what independent choices would give."""
    expected = np.outer(load[0], load[1]) / n_tokens
    more = pairs - expected
    order = [index for index in np.argsort(-more.reshape(-1), kind="stable")[:TOP_PAIRS] if more.flat[index] > 0]
    rows = "".join(
        f"<tr><td>{i}</td><td>{j}</td><td>{pairs[i, j]}</td><td>{expected[i, j]:.1f}</td></tr>"
        for i, j in (np.unravel_index(index, pairs.shape) for index in order)
    )
    caption = (
        f"Experts of layers {layer} and {layer + 1} that share more tokens than they would if the layers chose "
        f"independently (the {TOP_PAIRS} pairs with the largest difference)"
    )
    heads = (f"expert of layer {layer}", f"of layer {layer + 1}", "tokens", "if independent")
    head = "".join(f'<th scope="col">{text}</th>' for text in heads)
    return f"<table><caption>{caption}</caption><tr>{head}</tr>{rows}</table>"
