"""Pallas kernels, each with its plain twin beside it."""
