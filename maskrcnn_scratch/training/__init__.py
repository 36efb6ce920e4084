"""The training loop: configuration, schedule, checkpoints, log, several processes."""
