"""The mathematics of attention in plain mx operations, block by block: the fallback and the documentation."""
