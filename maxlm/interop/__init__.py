"""Models of other programs: their configs and weights to ours and back, one table per family."""
