"""Reading XML files with errors that name them."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree


def read_xml(path: Path) -> ElementTree.Element:
    """The root element. Files that define entities are refused: they can expand without limit.

    Raises:
        ValueError: the file is not XML.
    """
    content = path.read_bytes()
    if b"<!ENTITY" in content:
        raise ValueError(f"{path}: XML with entities is not read")
    try:
        return ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise ValueError(f"{path}: not XML ({error})") from None


def text(element: ElementTree.Element, key: str) -> str:
    """The text of a child, empty where there is none."""
    return (element.findtext(key) or "").strip()


def number(element: ElementTree.Element, key: str, path: Path) -> float:
    """The number in a child, or in an attribute.

    Raises:
        ValueError: there is none, naming the file.
    """
    value = element.get(key) or element.findtext(key)
    try:
        return float(value or "")
    except ValueError:
        raise ValueError(f"{path}: <{element.tag}> needs a number {key!r}, got {value!r}") from None
