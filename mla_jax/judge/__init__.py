"""Scores for generated stories: an LLM judge with controls and error bars, and checkers that need no LLM."""
