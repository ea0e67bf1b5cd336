"""Training: optimizers, schedules, the step, the loop, checkpoints, metrics and their sinks."""
