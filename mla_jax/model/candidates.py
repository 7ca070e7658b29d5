"""Faster forms of the training step that have not been measured yet, switched on by an environment variable.

    MLA_JAX_CANDIDATES=attn_cudnn_mla,mla_products bash launch/gpu_speed.sh OUT

Each computes the same function (tests). One that pays on a GPU becomes the only form, with its figure in
docs/architecture.md; one that does not pay is deleted. No config has them: they say nothing about a run's meaning.
"""

import os

from mla_jax.errors import UserError

VARIABLE = "MLA_JAX_CANDIDATES"

# name -> what it does, and what it is predicted to save at size m, 128 x 512, on an H100 (step: about 43 ms).
CANDIDATES = {
    "lean_gelu": "block=gpt: the feed-forward keeps its pre-activations for the backward pass and no second array of "
    "their size: 2 x 268 MB of traffic a layer and 2.2 GiB less: -1.8 ms",
    "gelu_kernel": "block=gpt: bias and GELU in one pass over the hidden units each way, with the GPU's own tanh, and "
    "the bias' gradient added up on the way. Goes before lean_gelu, which it includes: -1.5 ms on an H200",
    "norm_kernel": "norms in one pass over the stream each way, the stream's own gradient added in it: 163 MB a norm "
    "less: -1.1 ms",
    "loss_kernel": "the loss and its gradient in one pass over the logits, written over them (on an H200): -0.65 ms at "
    "vocabulary 8,192, -4 ms at 50,304",
    "attn_pad128": "MLA: q, k and v padded to 128 instead of 96, which cuDNN's tiles may like better: -1 to +3 ms",
    "attn_cudnn_mla": "MLA: cuDNN with its own unequal head sizes (Hopper, cuDNN 9.10 on), v not padded: -3 ms",
    "attn_tokamax": "tokamax' attention (its Mosaic kernels on sm90, which take v of its own size) instead of cuDNN's, "
    "whose 130 TFLOP/s at head size 64 are the weakest part of the step: unknown",
    "joined_products": "queries, latents and rotary key of MLA (q and k of MHA+RoPE) from one product of x, with one "
    "product back, for 0.9 GiB more memory: MLA -2 ms",
    "rope_kernel": "RoPE: what joined_products and mla_products do, with one kernel each way from the product of x to "
    "attention (for MLA the latent's norm too) that leaves nothing for XLA to join, for 0.9 GiB more memory: MLA -2.6 "
    "ms, MHA -1.2 ms",
    "mla_products": "joint MLA: products write k joined and v padded, and read the padded output, so that no pass "
    "over [B, T, H, K] only pads, cuts or joins: -2 ms",
}


def from_environment() -> tuple[str, ...]:
    """The names in MLA_JAX_CANDIDATES, sorted. Raises UserError for one that does not exist."""
    names = sorted(filter(None, os.environ.get(VARIABLE, "").replace(" ", "").split(",")))
    for name in names:
        if name not in CANDIDATES:
            raise UserError(f"{VARIABLE} has {name!r}, which is none of them: use {', '.join(CANDIDATES)}.")
    return tuple(names)
