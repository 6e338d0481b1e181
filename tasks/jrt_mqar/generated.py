"""The documents, made by a seeded generator of jrt-eval."""

from jrt_eval.synthetics.tasks import mqar

__all__ = ["mqar"]
