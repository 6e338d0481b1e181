"""The documents, made by a seeded generator of jrt-eval."""

from jrt_eval.synthetics.tasks import set_disjointness

__all__ = ["set_disjointness"]
