"""Sizes that annotation files declare."""

from __future__ import annotations

from pathlib import Path

import pytest

from maskrcnn_scratch.data.formats.collect import Collected


def test_a_whole_number_may_be_written_as_a_float() -> None:
    image = Collected(Path("data"), Path("data")).add_image("a.png", (640.0, 480))  # type: ignore[arg-type]
    assert (image["height"], image["width"]) == (640, 480)
    assert type(image["height"]) is int


@pytest.mark.parametrize("side", [1.5, 0, -3, "12", float("nan"), float("inf"), [8]])
def test_other_sizes_name_the_image(side: object) -> None:
    data = Collected(Path("data"), Path("data"))
    with pytest.raises(ValueError, match=r"^a\.png: its height or width is no whole number: "):
        data.add_image("a.png", (8, side))  # type: ignore[arg-type]
