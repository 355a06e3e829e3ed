"""Training: data sets, models, the loop, evaluation and export. Never imports ``serve``."""
