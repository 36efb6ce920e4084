"""The errors of ``weights``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class WeightsError(RuntimeError):
    """Weights that cannot be downloaded, read or used; one line says which and why."""


class ForbiddenGlobal(Exception):
    """A pickle asks for a name that weights have no use for; the message is the name."""


@contextmanager
def naming(source: object) -> Iterator[None]:
    """Puts the name of the source at the start of the message of a WeightsError raised inside."""
    try:
        yield
    except WeightsError as error:
        raise WeightsError(f"{source}: {error}") from None
