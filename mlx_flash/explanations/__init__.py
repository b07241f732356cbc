"""What a call would do and why, as data, tables and Metal text."""
