"""`jrt-eval bench`: how fast the kernels and the models are on this machine, next to what else computes the same."""
