"""Training targets: matching, sampling, and the values that the losses compare predictions with."""
