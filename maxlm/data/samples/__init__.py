"""Text that comes with the package: `sample:NAME` names it."""
