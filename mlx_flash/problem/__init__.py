"""What is asked of one call of attention: plain, checked data."""
