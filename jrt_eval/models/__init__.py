"""Checkpoints as PyTorch modules."""
