"""Finds problems of a data set, and measures how its objects fit a model."""
