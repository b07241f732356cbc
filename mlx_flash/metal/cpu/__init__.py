"""The simulator: runs translated kernels on the CPU and checks for errors that a GPU would hide."""
