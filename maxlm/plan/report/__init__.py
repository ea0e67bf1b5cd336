"""Plans as people read them: terminal, page, JSON, advice."""
