"""`python -m jrt_eval`, for launchers such as `accelerate launch -m`."""

from jrt_eval.cli import main

if __name__ == "__main__":  # processes that multiprocessing starts import this file again
    main()
