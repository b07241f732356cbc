"""Runs single kernels on tiny problems and compares them with the reference: the child process of backends/guard.py."""
