"""The simulator: runs translated kernels on the CPU and checks what a GPU would hide."""
