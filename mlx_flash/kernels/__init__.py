"""Which kernel serves a problem: table rows, Metal text and launches, as pure functions."""
