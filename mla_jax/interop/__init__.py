"""Hugging Face: runs go out as folders that transformers loads, and come back bit for bit."""
