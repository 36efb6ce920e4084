"""What is drawn where."""

import warnings

import numpy as np
import pytest
import torch
from PIL import ImageFont

from maskrcnn_scratch.inference import draw_detections
from maskrcnn_scratch.inference import labels as module
from maskrcnn_scratch.ops import rle
from maskrcnn_scratch.pictures.fonts import font_for

GRAY = np.full((900, 1200, 3), 128, np.uint8)


def detections(*boxes, labels=None, masks=True, side=(900, 1200)):
    """Detections with masks that fill the left half of their boxes."""
    result = {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels or [1] * len(boxes), dtype=torch.int64),
        "scores": torch.linspace(0.9, 0.5, len(boxes)),
    }
    if masks:
        result["masks"] = torch.zeros(len(boxes), 1, *side)
        for mask, (x1, y1, x2, y2) in zip(result["masks"], boxes, strict=True):
            mask[0, y1:y2, x1 : (x1 + x2) // 2] = 0.9
    return result


def changed(picture):
    return (np.asarray(picture) != GRAY).any(axis=2)


def test_mask_is_tinted_its_edge_drawn_and_the_rest_left():
    picture = np.asarray(draw_detections(GRAY, detections((200, 300, 600, 700))))
    inside, edge, beside = picture[500, 300], picture[500, 400], picture[500, 500]
    color = edge.astype(int)
    np.testing.assert_allclose(inside, 128 + 0.4 * (color - 128), atol=2)
    assert np.ptp(color) > 100
    assert np.array_equal(beside, [128, 128, 128])
    assert np.array_equal(picture[300, 500], color), "the box has another colour"
    outside = changed(picture)
    outside[260:704, 196:604] = False
    assert not outside.any()


def test_without_masks_only_the_box_and_name_are_drawn():
    drawn = changed(draw_detections(GRAY, detections((200, 300, 600, 700), masks=False)))
    assert drawn[300, 400] and not drawn[310:690, 210:590].any()


def test_nothing_found_changes_nothing_and_the_image_is_not_written_on():
    image = GRAY.copy()
    assert not changed(draw_detections(image, detections())).any()
    draw_detections(image, detections((10, 10, 500, 500)))
    assert np.array_equal(image, GRAY)


def test_every_picture_of_a_class_has_the_same_colors():
    def color(result, box):
        return np.asarray(draw_detections(GRAY, result))[box[1], box[2] - 5].tolist()

    first, second = (100, 300, 300, 600), (700, 300, 900, 600)
    both = detections(first, second)
    assert color(both, first) != color(both, second), "instances look alike"
    assert color(both, first) == color(detections(second), second)
    assert color(detections(first, labels=[2]), first) != color(both, first)


@pytest.mark.parametrize("side", [(60, 90), (1, 400), (799, 20), (3, 3)])
@pytest.mark.parametrize("labels", ["auto", "all", "none"])
def test_pictures_keep_their_size(side, labels):
    found = detections((0, 0, 3, 1), (0, 0, 2, 2), side=side)
    picture = draw_detections(np.zeros((*side, 3), np.uint8), found, labels=labels)
    assert picture.size == (side[1], side[0])


def test_names_stay_in_the_picture():
    corners = [(0, 0, 30, 30), (1170, 0, 1200, 30), (0, 870, 30, 900), (1170, 870, 1200, 900)]
    for corner in corners:
        with_name = changed(draw_detections(GRAY, detections(corner, masks=False)))
        long = draw_detections(GRAY, detections(corner, masks=False), {1: "a much longer name"})
        assert changed(long).sum() > 1.5 * with_name.sum()


@pytest.fixture
def label_rects(monkeypatch):
    """Draws detections; returns the picture, and the rectangles of its labels as int [N, 4]."""
    rects = []
    free_rect = module._free_rect

    def record(*args):
        rect = free_rect(*args)
        if rect is not None:
            rects.append(rect)
        return rect

    monkeypatch.setattr(module, "_free_rect", record)

    def draw(*args, **options):
        rects.clear()
        return draw_detections(*args, **options), np.array(rects).reshape(-1, 4).astype(int)

    return draw


def cover(rects, inset=1):
    """How many rectangles lie on each pixel of GRAY."""
    count = np.zeros((900, 1200), int)
    for x1, y1, x2, y2 in rects:
        assert x1 >= 0 and y1 >= 0 and x2 <= 1200 and y2 <= 900
        count[y1 + inset : y2 - inset, x1 + inset : x2 - inset] += 1
    return count


def test_names_do_not_cover_each_other(label_rects):
    boxes = [(100 + 7 * i, 100 + 5 * i, 180 + 7 * i, 150 + 5 * i) for i in range(40)]
    _, rects = label_rects(GRAY, detections(*boxes, masks=False))
    assert cover(rects).max() == 1 and 2 < len(rects) < 40


def test_every_name_is_drawn_on_request_and_none_too(label_rects):
    boxes = [(100 + 7 * i, 100 + 5 * i, 180 + 7 * i, 150 + 5 * i) for i in range(40)]
    found = detections(*boxes, masks=False)
    assert len(label_rects(GRAY, found, labels="all")[1]) == 40
    picture, rects = label_rects(GRAY, found, labels="none")
    assert len(rects) == 0
    outside = changed(picture)
    for x1, y1, x2, y2 in boxes:
        outside[y1 - 3 : y2 + 4, x1 - 3 : x2 + 4] = False
    assert not outside.any()


def test_names_leave_many_small_objects_visible(label_rects):
    """66 objects of 12 pixels in a picture of 256: labels of readable size would bury them."""
    boxes = [(20 + 20 * (i % 11), 20 + 30 * (i // 11)) for i in range(66)]
    found = detections(*((x, y, x + 12, y + 12) for x, y in boxes), masks=False, side=(256, 256))
    picture, rects = label_rects(GRAY[:256, :256], found, {1: "nucleus"})
    assert len(rects) == 0
    assert changed_share(picture) < 0.2
    every, rects = label_rects(GRAY[:256, :256], found, {1: "nucleus"}, labels="all")
    assert len(rects) == 66 and changed_share(every) > 0.5


def changed_share(picture):
    return (np.asarray(picture) != 128).any(axis=2).mean()


def test_names_get_smaller_where_there_are_many(label_rects):
    few = [(300 * i, 400, 300 * i + 40, 440) for i in range(4)]
    many = [(60 + 100 * (i % 11), 60 + 60 * (i // 11)) for i in range(121)]
    _, large = label_rects(GRAY, detections(*few, masks=False))
    boxes = [(x, y, x + 40, y + 30) for x, y in many]
    _, small = label_rects(GRAY, detections(*boxes, masks=False))
    height = lambda rects: (rects[:, 3] - rects[:, 1]).max()
    assert height(small) < 0.8 * height(large)


def test_lines_follow_the_size_of_the_picture_and_of_the_objects():
    def width(side, box):
        image = np.full((*side, 3), 128, np.uint8)
        result = detections(box, masks=False, side=side)
        picture = np.asarray(draw_detections(image, result, labels="none"))
        return int((picture[:, (box[0] + box[2]) // 2] != 128).any(axis=1)[: box[3] - 5].sum())

    assert width((300, 400), (50, 50, 250, 250)) == 1
    assert width((2700, 3600), (500, 500, 2500, 2500)) == 6
    assert width((2700, 3600), (500, 500, 540, 540)) == 2


def test_one_color_per_class_on_request():
    boxes = [(100, 300, 300, 600), (700, 300, 900, 600), (400, 300, 600, 600)]
    found = detections(*boxes, labels=[1, 1, 2])
    picture = np.asarray(draw_detections(GRAY, found, color_by="class"))
    first, second, other = (picture[300, x2 - 5].tolist() for _, _, x2, _ in boxes)
    assert first == second != other


def test_masks_may_be_rle():
    found = detections((200, 300, 600, 700))
    encoded = {**found, "masks": [rle.encode(mask[0] > 0.5) for mask in found["masks"]]}
    assert draw_detections(GRAY, found) == draw_detections(GRAY, encoded)


@pytest.mark.parametrize("text", ["é", "Ñandú", "дом", "αβγ"])
def test_names_beyond_ascii_have_glyphs(text):
    try:
        ImageFont.truetype("DejaVuSans.ttf", 20)
    except OSError:
        pytest.skip("DejaVu Sans is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        font = font_for(text, 20)
    absent = bytes(font.getmask("\uffff"))
    assert all(bytes(font.getmask(char)) != absent for char in text)


def test_missing_glyphs_are_named_once():
    with pytest.warns(UserWarning, match="no font has the glyphs .*ue123"):
        font_for("a\ue123", 20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        font_for("a\ue123", 20)


def test_categories_as_a_list_or_by_label_and_unknown_labels():
    result = detections((200, 300, 600, 700), labels=[2])
    listed = draw_detections(GRAY, result, ["background", "cat", "dog"])
    assert listed == draw_detections(GRAY, result, {2: "dog"})
    assert listed != draw_detections(GRAY, result, {1: "dog"})
    assert draw_detections(GRAY, result, ["background"]) == draw_detections(GRAY, result)
