"""What ``maskrcnn train`` does with categories, crowds, bad annotations and other formats."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from maskrcnn_scratch.cli import train as train_command
from maskrcnn_scratch.data.shapes import ShapesDataset
from tests.cli.recipes import changed_copy, prepared


def other_ids(content):
    ids = {1: 3, 2: 1, 3: 2}
    for category in content["categories"]:
        category["id"] = ids[category["id"]]
    for annotation in content["annotations"]:
        annotation["category_id"] = ids[annotation["category_id"]]


def one_more_class(content):
    content["categories"].append({"id": 9, "name": "star"})
    content["annotations"][0]["category_id"] = 9


def crowds_only(content):
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 1


def no_objects(content):
    content["annotations"] = []


@pytest.mark.filterwarnings("error")
def test_validation_categories_are_matched_by_name(recipe, tmp_path):
    file = changed_copy(recipe.val_annotations, tmp_path, other_ids)
    same, other = prepared(recipe, tmp_path), prepared(recipe, tmp_path, val_annotations=file)
    assert other.val_set.category_labels == {3: 1, 1: 2, 2: 3}
    assert other.val_set[0][1]["labels"].tolist() == same.val_set[0][1]["labels"].tolist()
    assert other.validate() == pytest.approx(same.validate(), abs=1e-12)


def test_a_class_that_only_the_validation_set_has_counts_as_missed(recipe, tmp_path):
    file = changed_copy(recipe.val_annotations, tmp_path, one_more_class)
    with pytest.warns(UserWarning, match=r"has 'star' \(id 9\), which the training set does not"):
        trainer = prepared(recipe, tmp_path, val_annotations=file)
    objects = [len(dataset[0][1]["labels"]) for dataset in (prepared(recipe, tmp_path).val_set,
                                                           trainer.val_set)]  # fmt: skip
    assert objects[1] == objects[0] - 1
    assert trainer.validate()["segm/AP"] >= 0


def test_classes_with_crowds_only_are_refused(recipe, tmp_path):
    files = {f"{part}_annotations": changed_copy(getattr(recipe, f"{part}_annotations"), tmp_path,
                                                 crowds_only) for part in ("train",)}  # fmt: skip
    with pytest.raises(ValueError, match=r"crowds_only\.json: 'circle', .* --crowds-as-objects"):
        prepared(recipe, tmp_path, **files)
    files["val_annotations"] = files["train_annotations"]
    files["val_images"] = str(Path(recipe.train_annotations).parent)
    trainer = prepared(recipe, tmp_path, crowds_as_objects=True, **files,
                       )  # fmt: skip
    assert len(trainer.train_set.dataset[0][1]["labels"]) > 0


def test_without_objects_to_validate_on_the_loss_selects_the_best(recipe, tmp_path):
    """AP is not computed: -1 would be the same at every validation, and above every -loss."""
    trainer = prepared(
        recipe, tmp_path, val_annotations=changed_copy(recipe.val_annotations, tmp_path, no_objects)
    )
    found = trainer.validate()
    assert "segm/AP" not in found
    assert trainer.best == -found["val/loss"]


def one_bad_mask(content):
    content["annotations"][0]["segmentation"] = [[5, 5, 9, 9]]


def boxes_only(content):
    for annotation in content["annotations"]:
        annotation["segmentation"] = []


def test_bad_data_are_refused_before_the_first_step(recipe, tmp_path, capsys):
    file = changed_copy(recipe.val_annotations, tmp_path, one_bad_mask)
    folder = str(Path(recipe.val_annotations).parent)
    files = {"train_annotations": file, "val_annotations": file, "train_images": folder}
    with pytest.raises(ValueError, match=r"one_bad_mask\.json: 1 errors .*; .*json: 1 errors"):
        prepared(recipe, tmp_path, **files)
    assert "00000.png, annotation 1: a polygon is" in capsys.readouterr().err
    with pytest.warns(UserWarning, match="skipped 0 of 3 images and 1 of . annotations"):
        trainer = prepared(recipe, tmp_path, skip_bad=True, val_annotations=file)
    whole = prepared(recipe, tmp_path)
    assert len(trainer.val_set[0][1]["labels"]) == len(whole.val_set[0][1]["labels"]) - 1
    assert trainer.val_set.annotation_file == tmp_path / "run" / "annotations" / "val.json"


@pytest.mark.slow
def test_damaged_pixels(recipe, tmp_path):
    """The header is good. With ``skip_bad`` the file is as if it had never been there."""
    images = shutil.copytree(Path(recipe.train_annotations).parent, tmp_path / "images")
    file = images / Path(recipe.train_annotations).name
    content = json.loads(file.read_text())
    entry, bad = content["images"][4], images / "damaged.jpg"
    Image.open(images / entry["file_name"]).save(bad)
    bad.write_bytes(bad.read_bytes()[:-200])
    entry["file_name"] = bad.name
    file.write_text(json.dumps(content))
    changes = {"train_annotations": str(file), "train_images": None, "epochs": 1}
    with pytest.raises(ValueError, match=rf"^{re.escape(str(bad))}: cannot be read as an image"):
        prepared(recipe, tmp_path / "ends", **changes).train()
    with pytest.warns(UserWarning, match=r"skipped 1 of 10 images .*1 image file unreadable"):
        skipping = prepared(recipe, tmp_path / "skipping", skip_bad=True, num_workers=2, **changes)
    skipping.train()
    content["images"].remove(entry)
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != entry["id"]]
    file.write_text(json.dumps(content))
    without = prepared(recipe, tmp_path / "without", **changes)
    without.train()
    first, second = skipping.model.state_dict(), without.model.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_boxes_only_train_the_box_branch(recipe, tmp_path):
    file = changed_copy(recipe.train_annotations, tmp_path, boxes_only)
    with pytest.warns(UserWarning, match="no object has a mask, .* fasterrcnn_resnet50_fpn"):
        trainer = prepared(recipe, tmp_path, train_annotations=file, val_annotations=file,
                           val_images=str(Path(recipe.train_annotations).parent))  # fmt: skip
    assert trainer.config.best_metric == "bbox/AP"
    losses = trainer.train_step(trainer.read_batches())
    assert losses["loss_mask"] == 0 and losses["loss_classifier"] > 0


def test_other_formats_are_trained_on(recipe, tmp_path):
    """A folder of YOLO polygons."""
    names = ["triangle", "circle", "square"]
    dataset = ShapesDataset(3, seed=2, side=64)
    for kind in ("images", "labels"):
        (tmp_path / "yolo" / kind).mkdir(parents=True)
    (tmp_path / "yolo" / "data.yaml").write_text(f"names: {names}\n")
    for name, (image, target) in zip(dataset.file_names, dataset, strict=False):
        pixels = (image * 255).byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(tmp_path / "yolo" / "images" / name)
        lines = []
        for label, box in zip(target["labels"].tolist(), target["boxes"] / 64, strict=True):
            x1, y1, x2, y2 = box.tolist()
            corners = (x1, y1, x2, y1, x2, y2, x1, y2)
            index = names.index(dataset.class_names[label])
            lines.append(" ".join(map(str, (index, *corners))))
        text = tmp_path / "yolo" / "labels" / name.replace(".png", ".txt")
        text.write_text("\n".join(lines))
    config = replace(recipe, train_annotations=str(tmp_path / "yolo"), output=str(tmp_path / "run"))
    trainer = train_command.make_trainer(config, torch.device("cpu"))
    assert set(trainer.metadata["class_names"].values()) == set(names)
    assert trainer.train_set.dataset[0][1]["boxes"].tolist() == dataset[0][1]["boxes"].tolist()
    assert trainer.train_step(trainer.read_batches())["loss_mask"] > 0
