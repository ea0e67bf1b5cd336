"""The typed config: schema, presets, overrides, checks and derived values."""
