"""What a compiled program's text says: memory, seconds of each operation, collectives."""
