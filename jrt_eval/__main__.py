"""`python -m jrt_eval`, for launchers such as `accelerate launch -m`."""

from jrt_eval.cli import main

main()
