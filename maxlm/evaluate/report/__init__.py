"""A run's page: one self-contained HTML file with its curves, configuration, data and samples."""
