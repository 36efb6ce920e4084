"""What every message about a file must be."""

from __future__ import annotations


def check_one_line(error: BaseException, name: object, longest: int = 6000) -> None:
    """Fails unless the message has the name, such as a file's, in one short printable line."""
    message = str(error)
    assert str(name) in message and message.isprintable() and len(message) < longest, message
