"""From detections of a model to its scores, on one process and on two."""

import json
import os

import numpy as np
import pytest
import torch
from torch import nn

from maskrcnn_scratch.builders.small import small_maskrcnn
from maskrcnn_scratch.data.coco import CocoDataset
from maskrcnn_scratch.data.shapes import ShapesDataset, write_coco
from maskrcnn_scratch.evaluation.model_results import (
    coco_results,
    detect_rle,
    evaluate_model,
    max_detections_of,
    merge_results,
    predict,
)
from maskrcnn_scratch.ops import rle
from tests.training import toy


class Oracle(nn.Module):
    """A model that returns the ground truth of an image, which it finds by its pixels."""

    def __init__(self, dataset):
        super().__init__()
        items = [dataset[index] for index in range(len(dataset))]
        self.targets = {float(image.double().sum()): target for image, target in items}
        self.seen = 0

    def forward(self, images):
        assert not self.training
        self.seen += len(images)
        targets = [self.targets[float(image.double().sum())] for image in images]
        return [
            {
                "boxes": target["boxes"],
                "labels": target["labels"],
                "scores": torch.full((len(target["boxes"]),), 0.9),
                "masks": target["masks"][:, None].float(),
            }
            for target in targets
        ]


def test_the_truth_scores_1_and_is_saved(tmp_path):
    dataset = ShapesDataset(6, side=64)
    model = Oracle(dataset).train()
    file = tmp_path / "runs" / "results.json"
    scores = evaluate_model(model, dataset, batch_size=4, results_file=file, tide=True)
    assert scores["bbox"].stats[0] == pytest.approx(1)
    assert scores["segm"].stats[0] == pytest.approx(1)
    assert set(scores["segm"].per_class) == {"circle", "square", "triangle"}
    assert scores["segm"].tide["counts"]["Miss"] == 0
    assert model.training
    results = json.loads(file.read_text())
    assert len(results) == sum(len(dataset[index][1]["boxes"]) for index in range(6))
    first = dataset[0][1]
    assert results[0]["segmentation"] == rle.encode(first["masks"][0].numpy())
    assert results[0]["image_id"] == first["image_id"]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_missing_image_is_named_in_one_line(tmp_path, num_workers):
    dataset = CocoDataset(write_coco(ShapesDataset(2, side=64), tmp_path), tmp_path)
    model = Oracle(dataset)
    (tmp_path / "00001.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"^\S*00001\.png: no such image file$"):
        evaluate_model(model, dataset, num_workers=num_workers)


def test_labels_become_category_ids_and_unknown_labels_are_dropped():
    detections = {
        "boxes": torch.tensor([[1.0, 2, 4, 6], [0, 0, 1, 1]]),
        "labels": torch.tensor([2, 9]),
        "scores": torch.tensor([0.75, 0.5]),
    }
    assert coco_results(detections, 7, {1: 5, 2: 90}) == [
        {"image_id": 7, "category_id": 90, "bbox": [1, 2, 3, 4], "score": 0.75}
    ]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = small_maskrcnn(4, min_size=64, box_score_thresh=0.0, box_detections_per_img=20)
    with torch.no_grad():
        for parameter in model.roi_heads.mask_predictor.parameters():
            parameter.mul_(20)  # masks that are not all 0.5
    return model.eval()


def custom_paste(masks, boxes, size):
    """A custom paste function: every mask covers the whole image."""
    return nn.functional.interpolate(masks, size)


@pytest.mark.parametrize("paste", [None, custom_paste])
def test_rle_equals_encoding_the_pasted_masks(model, paste, monkeypatch):
    if paste is not None:
        monkeypatch.setattr(model.transform, "paste", paste)
    images = [ShapesDataset(1, side=side)[0][0] for side in (50, 70)]
    with torch.inference_mode():
        expected, found = model(images), detect_rle(model, images)
    for pasted, direct in zip(expected, found, strict=True):
        assert len(pasted["boxes"]) == 20
        assert torch.equal(pasted["boxes"], direct["boxes"])
        assert torch.equal(pasted["scores"], direct["scores"])
        encoded = [rle.encode(mask[0] >= 0.5) for mask in pasted["masks"].numpy()]
        assert direct["masks"] == encoded
        assert len({text["counts"] for text in encoded}) > 1


def test_batch_size_does_not_change_the_results(model):
    dataset = ShapesDataset(3, side=64)
    items = [dataset[index] for index in range(3)]
    together = [([image for image, _ in items], [target for _, target in items])]
    apart = [([image], [target]) for image, target in items]
    labels = dataset.category_labels
    for first, second in zip(
        predict(model, together, labels), predict(model, apart, labels), strict=True
    ):
        assert first["image_id"] == second["image_id"]
        assert np.allclose(first["bbox"], second["bbox"], atol=1e-3)


def test_images_of_other_sizes_in_the_batch_do_not_change_the_results(model):
    generator = torch.Generator().manual_seed(0)
    shapes = [(64, 64), (40, 100), (64, 64), (100, 40)]
    images = [torch.rand(3, *shape, generator=generator) for shape in shapes]
    targets = [{"image_id": index} for index in range(len(images))]
    labels = {label: label for label in range(100)}
    together = predict(model, [(images, targets)], labels)
    apart = predict(model, [([i], [t]) for i, t in zip(images, targets, strict=True)], labels)
    assert len(together) == len(apart) > 0
    for first, second in zip(together, apart, strict=True):
        assert first["image_id"] == second["image_id"]
        assert np.allclose(first["bbox"], second["bbox"], atol=1e-3)


def test_merging_counts_each_image_once():
    def entry(image_id, score):
        return {"image_id": image_id, "category_id": 1, "score": score, "bbox": [0, 0, 1, 1]}

    shards = [[entry(3, 0.1), entry(1, 0.2), entry(3, 0.3)], [], [entry(3, 0.9), entry(2, 0.4)]]
    merged = merge_results(shards)
    assert [(r["image_id"], r["score"]) for r in merged] == [(1, 0.2), (2, 0.4), (3, 0.1), (3, 0.3)]


def evaluate_as_process(rank, folder):
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank))
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    dataset = ShapesDataset(5, side=64)
    model = Oracle(dataset)
    scores = evaluate_model(model, dataset, results_file=folder / "results.json")
    content = {"stats": scores["segm"].stats, "seen": model.seen}
    (folder / f"{rank}.json").write_text(json.dumps(content))
    torch.distributed.destroy_process_group()


def test_two_processes_over_uneven_shards(tmp_path):
    processes = [toy.start(evaluate_as_process, rank, tmp_path) for rank in range(2)]
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert [one["seen"] for one in found] == [3, 2]
    assert found[0]["stats"] == found[1]["stats"]
    assert found[0]["stats"][0] == pytest.approx(1)
    dataset = ShapesDataset(5, side=64)
    objects = sum(len(dataset[index][1]["boxes"]) for index in range(5))
    assert len(json.loads((tmp_path / "results.json").read_text())) == objects


def test_the_limit_on_detections_follows_the_model():
    assert max_detections_of(small_maskrcnn(2)) is None
    assert max_detections_of(small_maskrcnn(2, box_detections_per_img=300)) == 300
    assert max_detections_of(nn.Identity()) is None
