"""What `!function jrt_eval.prompts.task.*` means to lm-eval before 0.4.12: a file of that name beside the YAML."""

from jrt_eval.prompts.task import OtherDocuments, ReadTwiceTask, score

__all__ = ["OtherDocuments", "ReadTwiceTask", "score"]
