"""The one error of this package."""


class WeightsError(RuntimeError):
    """Weights that cannot be had, read or used; the message says which and why, in one line."""
