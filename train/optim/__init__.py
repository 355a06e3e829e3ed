"""Optimizers by configuration."""

from train.optim.build import OptimizerParts, build_optimizer, optimizer_parts, set_lr

__all__ = ["OptimizerParts", "build_optimizer", "optimizer_parts", "set_lr"]
