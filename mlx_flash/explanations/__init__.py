"""Explanations of a call, without computing it: data, tables and Metal text."""
