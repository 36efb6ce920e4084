"""The figures: what they show, with no, one and many classes; failures are warnings."""

import json
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageFont

from maskrcnn_scratch.data.coco import CocoDataset
from maskrcnn_scratch.data.shapes import ShapesDataset, write_coco
from maskrcnn_scratch.dataset_check.checks import check_dataset
from maskrcnn_scratch.dataset_check.report import Objects
from maskrcnn_scratch.evaluation.coco_ap import score
from maskrcnn_scratch.ops import rle
from maskrcnn_scratch.pictures import save
from maskrcnn_scratch.pictures.labels import labels_figure
from maskrcnn_scratch.pictures.objects import Drawn, draw_objects, outline
from maskrcnn_scratch.pictures.predictions import compare, predictions_figure, worst_first
from maskrcnn_scratch.pictures.results import results_figure
from maskrcnn_scratch.pictures.save import save_figure, try_to_save
from maskrcnn_scratch.pictures.scores import confusion_figure, precision_figure
from maskrcnn_scratch.pictures.style import short
from maskrcnn_scratch.pictures.train_batch import train_batch_figure
from maskrcnn_scratch.transform import GeneralizedRCNNTransform

LONG = "a category with a long name, $100"


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return write_coco(ShapesDataset(6, side=64), tmp_path_factory.mktemp("shapes"))


def titles(figure):
    return [axes.get_title() for axes in figure.axes]


def drawn(figure, tmp_path):
    """Writes the figure, which lays it out, and returns the pixels [H, W, 3]."""
    save_figure(figure, tmp_path / "figure.png")
    return np.asarray(Image.open(tmp_path / "figure.png").convert("RGB"))


def test_labels(shapes, tmp_path):
    report = check_dataset(shapes, shapes.parent)
    names = ["circle", "square", "triangle", LONG]
    figure = labels_figure(report.objects, names, "shapes", report.fit)
    classes, per_image, *_, iou, levels = figure.axes
    assert len(figure.axes) == 6
    widths = [bar.get_width() for bar in classes.patches]
    assert len(widths) == 4 and sum(widths) == len(report.objects.names) and widths[-1] == 0
    assert sum(bar.get_height() for bar in per_image.patches) == 6
    for axes, counts in ((iou, report.fit.anchor_iou_histogram), (levels, report.fit.roi_levels)):
        assert [bar.get_height() for bar in axes.patches] == list(counts.values())
    assert drawn(figure, tmp_path).std() > 1


@pytest.mark.parametrize("number", [0, 1, 80])
def test_labels_of_no_one_and_many_classes(number, tmp_path):
    boxes = torch.tensor([[1.0, 2, 30, 40]]).repeat(number, 1)
    names = [f"{LONG} {index}" for index in range(number)]
    objects = Objects(boxes, torch.full((number, 2), 64), names, [number, 0])
    figure = labels_figure(objects, names or ["cell"], "x")
    assert len(figure.axes[0].patches) == min(max(number, 1), 30)
    assert ("50 more classes" in titles(figure)[0]) == (number == 80)
    drawn(figure, tmp_path)


def test_train_batch_shows_the_targets_after_the_resize(tmp_path):
    images, targets = zip(*(ShapesDataset(3, side=64)[index] for index in range(3)), strict=True)
    transform = GeneralizedRCNNTransform(128, 128, [0.4, 0.4, 0.4], [0.2, 0.2, 0.2])
    state = torch.get_rng_state()
    figure = train_batch_figure(images, targets, transform, {1: "circle", 2: LONG})
    assert torch.equal(torch.get_rng_state(), state)
    first = figure.axes[0]
    assert first.get_title() == "00000.png" and "128 x 128" in figure.get_suptitle()
    (x1, y1), box = first.patches[0].get_xy(), targets[0]["boxes"][0] * 2
    assert (x1 + 0.5, y1 + 0.5) == pytest.approx(box[:2].tolist(), abs=1e-4)
    assert len(first.patches) == len(targets[0]["labels"])
    shown = first.images[0].get_array()  # [128, 128, 3]
    outside = (targets[0]["masks"].sum(0) == 0).repeat_interleave(2, 0).repeat_interleave(2, 1)
    resized = torch.nn.functional.interpolate(images[0][None], size=(128, 128), mode="bilinear")
    difference = abs(shown - resized[0].permute(1, 2, 0).numpy())[outside.numpy()]
    assert difference.max() < 1 / 200
    drawn(figure, tmp_path)


def test_results(tmp_path):
    lines = [
        {"step": 1, "loss": 2.0, "loss_mask": 1.0, "learning_rate": 0.1},
        {"step": 2, "loss": 1.0, "loss_mask": 0.5, "learning_rate": 0.2},
        {"step": 2, "val/loss": 1.5, "segm/AP": 0.3, "bbox/AP50": 0.6},
    ]
    figure = results_figure(lines)
    total, _, ap, rate = figure.axes
    assert [line.get_label() for line in total.lines] == ["training", "validation"]
    assert total.lines[0].get_xydata().tolist() == [[1, 2], [2, 1]]
    assert {line.get_label() for line in ap.lines} == {"masks AP", "boxes AP50"}
    assert rate.lines[0].get_ydata().tolist() == [0.1, 0.2]
    drawn(figure, tmp_path)
    drawn(results_figure([]), tmp_path)


def results_of(shapes):
    """Perfect results but for the last image, of which nothing is found, and one false class."""
    content = json.loads(shapes.read_text())
    last = content["images"][-1]["id"]
    found = [
        {**{key: a[key] for key in ("image_id", "category_id", "bbox", "segmentation")}, "score": 1}
        for a in content["annotations"]
        if a["image_id"] != last
    ]
    found[0]["category_id"] = found[0]["category_id"] % 3 + 1
    return found, last


def test_predictions_have_the_worst_first(shapes, tmp_path):
    dataset, (found, last) = CocoDataset(shapes, shapes.parent), results_of(shapes)
    order = worst_first(dataset, found)
    assert dataset.image_ids[order[0][1]] == last
    assert order[0][0].found == 0 and order[0][0].f1 == 0
    (wrong,) = [out for out, i in order if dataset.image_ids[i] == found[0]["image_id"]]
    assert (wrong.missed, wrong.false) == (1, 1)
    assert [outcome.f1 for outcome, _ in order[2:]] == [1] * 4
    figure = predictions_figure(dataset, [*found, {**found[0], "score": 0.4}])
    assert titles(figure)[0] == dataset.file_name(len(dataset) - 1)
    assert f"0 found, {order[0][0].missed} missed, 0 false" == titles(figure)[1]
    drawn(figure, tmp_path)
    drawn(predictions_figure(dataset, []), tmp_path)
    polygon = {"image_id": last, "category_id": 1, "score": "0.9",
               "segmentation": [[5, 6, 15, 6, 15, 26, 5, 26]]}  # fmt: skip
    (outcome,) = [out for out, i in worst_first(dataset, [polygon])
                  if dataset.image_ids[i] == last]  # fmt: skip
    assert outcome.found + outcome.false == 1
    drawn(predictions_figure(dataset, [polygon]), tmp_path)


def test_large_images_are_drawn_with_fewer_pixels():
    axes = Figure().subplots()
    mask = np.zeros((1500, 2500), bool)
    mask[300:600, 900:1500] = True
    box = np.array([[900, 300, 1500, 600]], np.float32)
    for given in (mask, rle.encode(mask)):
        draw_objects(axes, np.zeros((1500, 2500, 3), np.uint8), Drawn(box, [1], [given]), {})
        picture = axes.images[-1]
        assert picture.get_array().shape == (500, 834, 3)
        assert picture.get_extent() == [-0.5, 2499.5, 1499.5, -0.5]
        tinted = np.asarray(picture.get_array()).any(2)  # [H, W]
        assert tinted.sum() == 100 * 200 and tinted[100, 300]


def test_compare_matches_each_object_once():
    box = np.array([[0, 0, 10, 10], [0, 0, 10, 11]], np.float32)
    twice = compare(Drawn(box[:1], [1]), Drawn(box, [1, 1], scores=[0.9, 0.8]))
    assert (twice.found, twice.missed, twice.false) == (1, 0, 1)
    other = compare(Drawn(box[:1], [1]), Drawn(box[:1], [2], scores=[0.9]))
    assert (other.found, other.missed, other.false) == (0, 1, 1)
    assert compare(Drawn(box[:0], []), Drawn(box[:0], [], scores=[])).f1 == 1


def test_scores(shapes, tmp_path):
    found, _ = results_of(shapes)
    options = {"confusion_matrix": True, "precision_recall": True}
    scores = {kind: score(shapes, found, kind, **options) for kind in ("bbox", "segm")}
    for kind, each in scores.items():
        curves = each.precision_recall["precision"]
        for name, values in curves.items():
            assert np.mean(values) == pytest.approx(each.per_class[name]["AP50"], abs=1e-9), kind
        assert "precision_recall" not in each.to_json()
    figure = precision_figure(scores)
    labels = [text.get_text() for text in figure.axes[1].get_legend().get_texts()]
    assert labels[-1] == f"mean of 3 classes  {scores['segm'].stats[1]:.3f}"
    drawn(figure, tmp_path)
    figure = confusion_figure(**scores["segm"].confusion_matrix, title="masks")
    shown = sum(int(text.get_text()) for text in figure.axes[0].texts)
    assert shown == np.sum(scores["segm"].confusion_matrix["matrix"])
    drawn(figure, tmp_path)


@pytest.mark.parametrize("number", [0, 1, 80, 100])
def test_confusion_of_no_one_and_many_classes(number, tmp_path):
    names = [*(f"{LONG} {index}" for index in range(number)), "background"]
    matrix = np.eye(number + 1, dtype=int) * 5
    if number == 100:
        matrix[7, 9] = 3
    figure = confusion_figure(matrix.tolist(), names, "boxes")
    shown = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert len(shown) == min(number + 1, 81) and shown[-1] == "background"
    if number == 100:
        assert {short(names[7], 22), short(names[9], 22)} <= set(shown)
    drawn(figure, tmp_path)


def test_low_scores_are_not_confusions(shapes):
    found, _ = results_of(shapes)
    low = [{**each, "score": 0.3} for each in found]
    matrix = np.array(score(shapes, low, confusion_matrix=True).confusion_matrix["matrix"])
    assert matrix[:, :-1].sum() == 0


def test_a_picture_that_fails_is_a_warning(tmp_path):
    def fail():
        raise RuntimeError("no font\nat all")

    with pytest.warns(UserWarning, match=r"a\.png: the picture could not be drawn \(no font at"):
        assert not try_to_save(tmp_path / "a.png", fail)
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="could not be drawn"):
        assert not try_to_save(tmp_path / "file" / "a.png", Figure)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert try_to_save(tmp_path / "new" / "a.jpg", Figure)


def test_names_get_a_font_that_has_their_letters(monkeypatch, tmp_path):
    other = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSerif.ttf"
    monkeypatch.setattr(save, "font_for", lambda text, size: ImageFont.truetype(str(other), size))
    figure = Figure()
    axes = figure.subplots()
    axes.bar([0, 1], [1, 2])
    axes.set_xticks([0, 1], ["gar\u00e7on", "plain"])
    axes.set_title("\u043a\u0432\u0430\u0434\u0440\u0430\u0442", fontsize=7)
    drawn(figure, tmp_path)
    changed, plain = axes.get_xticklabels()
    assert changed.get_fontproperties().get_file() == str(other)
    assert plain.get_fontproperties().get_file() is None
    assert axes.title.get_fontproperties().get_file() == str(other)
    assert axes.title.get_fontsize() == 7


def test_outline():
    mask = np.zeros((6, 7), bool)
    mask[1:5, 2:7] = True
    expected = mask.copy()
    expected[2:4, 3:6] = False
    assert np.array_equal(outline(mask), expected)


def test_names_end_inside_of_the_image():
    axes = Figure().subplots()
    boxes = np.array([[80.0, 40, 99, 60], [2, 70, 30, 90]])
    draw_objects(axes, np.zeros((100, 100, 3), np.uint8), Drawn(boxes, [1, 1]), {1: "a long name"})
    right, left = (text.get_position()[0] for text in axes.texts)
    assert left == 2 and right < 80
