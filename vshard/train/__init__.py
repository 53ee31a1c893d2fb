"""Networks, losses, the training loop, evaluation, checkpoints."""
