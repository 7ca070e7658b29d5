"""mla_jax: small language models with a compressed KV cache, in JAX/Flax."""

__version__ = "0.1.0"
