"""Perplexity, and the reports of runs."""
