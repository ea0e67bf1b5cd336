"""Compute kernels: per kernel a plain reference and what is faster where it can run."""
