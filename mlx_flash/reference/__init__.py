"""The mathematics of attention in plain mx operations, in blocks: the fallback, and the kernels' documentation."""
