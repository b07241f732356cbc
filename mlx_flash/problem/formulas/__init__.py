"""The small language of scores and predicates: Metal's expressions over positions, heads and named arrays."""
