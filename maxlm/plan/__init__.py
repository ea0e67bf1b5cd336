"""What a run will take before it is paid for: memory, step time and cost on hardware that need not exist."""
