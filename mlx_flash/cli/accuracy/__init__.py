"""Commands that compare attention with float64."""
