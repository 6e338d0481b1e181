"""lm-eval `LM` classes for the models of jrt_eval.models."""
