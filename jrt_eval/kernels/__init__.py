"""The Python face of the compiled kernels: one function per operator, each with a PyTorch reference."""
