"""`tune`: the fastest rows of this GPU by the clock, kept for later calls."""
