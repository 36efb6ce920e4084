"""What is drawn where."""

import numpy as np
import pytest
import torch

from maskrcnn_scratch.inference import draw_detections

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
def test_small_pictures_are_enlarged(side):
    picture = draw_detections(np.zeros((*side, 3), np.uint8), detections((0, 0, 3, 1), side=side))
    factor = picture.width // side[1]
    assert picture.size == (side[1] * factor, side[0] * factor)
    assert 800 <= max(picture.size) < 800 + max(side)


def test_names_stay_in_the_picture():
    corners = [(0, 0, 30, 30), (1170, 0, 1200, 30), (0, 870, 30, 900), (1170, 870, 1200, 900)]
    for corner in corners:
        with_name = changed(draw_detections(GRAY, detections(corner, masks=False)))
        long = draw_detections(GRAY, detections(corner, masks=False), {1: "a much longer name"})
        assert changed(long).sum() > 1.5 * with_name.sum()


def test_names_do_not_cover_each_other(monkeypatch):
    from maskrcnn_scratch.inference import visualize

    written = []
    draw_tag = visualize._draw_tag
    monkeypatch.setattr(visualize, "_draw_tag", lambda *a: (draw_tag(*a), written.append(a[-1])))
    boxes = [(100 + 7 * i, 100 + 5 * i, 180 + 7 * i, 150 + 5 * i) for i in range(40)]
    draw_detections(GRAY, detections(*boxes, masks=False))
    cover = np.zeros((900, 1200), int)
    for x1, y1, x2, y2 in np.array(written[-1], int):
        assert x1 >= 0 and y1 >= 0 and x2 <= 1200 and y2 <= 900
        cover[y1 + 1 : y2 - 1, x1 + 1 : x2 - 1] += 1
    assert cover.max() == 1 and 5 < len(written[-1]) < 40


def test_categories_as_a_list_or_by_label_and_unknown_labels():
    result = detections((200, 300, 600, 700), labels=[2])
    listed = draw_detections(GRAY, result, ["background", "cat", "dog"])
    assert listed == draw_detections(GRAY, result, {2: "dog"})
    assert listed != draw_detections(GRAY, result, {1: "dog"})
    assert draw_detections(GRAY, result, ["background"]) == draw_detections(GRAY, result)
