"""lm-eval output as tidy data frames, comparisons, tables and plots."""
