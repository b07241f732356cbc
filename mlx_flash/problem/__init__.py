"""One call of attention as plain, checked data."""
