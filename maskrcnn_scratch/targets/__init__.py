"""What the losses compare the predictions with: matching, sampling, targets."""
