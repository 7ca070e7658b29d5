"""Sampling: separate from training, jitted on its own."""
