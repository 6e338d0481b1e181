"""`jrt-eval bench`: the speed of the kernels and the models on this machine, and of other implementations."""
