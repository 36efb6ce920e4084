"""What is wrong with a data set, and how its objects fit a model."""
