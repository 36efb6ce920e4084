"""Pictures of a data set, of training and of results: each function returns a matplotlib figure."""
