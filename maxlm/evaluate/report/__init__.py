"""A run's page: one self-contained HTML file with its curves, configuration, data and samples."""

from maxlm.evaluate.report.write import write_report

__all__ = ["write_report"]
