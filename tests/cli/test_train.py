"""``maskrcnn train`` with a small model: its files, resuming, and errors."""

import json
import re
import shutil
import signal
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from maskrcnn_scratch import cli
from maskrcnn_scratch.builders.from_config import ModelConfig, load_trained
from maskrcnn_scratch.checkpoint import load_checkpoint
from maskrcnn_scratch.cli import train as train_command
from maskrcnn_scratch.cli.train import train
from maskrcnn_scratch.data.augment import Augmentation
from maskrcnn_scratch.data.shapes import ShapesDataset, write_coco
from maskrcnn_scratch.training.config import TrainConfig
from maskrcnn_scratch.training.run_lock import lock_run
from tests.training import toy

MODEL = ModelConfig(
    architecture="small",
    weights="none",
    widths=(8, 16, 16, 16),
    min_size=(64,),
    max_size=64,
    anchor_sizes=(8, 16, 32, 48, 64),
    pre_nms_top_n=50,
    post_nms_top_n=20,
    rpn_samples=32,
    box_samples=16,
)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    return TrainConfig(
        train_annotations=str(write_coco(ShapesDataset(10, seed=1, side=64), folder / "train")),
        val_annotations=str(write_coco(ShapesDataset(3, seed=2, side=64), folder / "val")),
        model=MODEL,
        augmentation=Augmentation(photometric=True),
        epochs=3,
        batch_size=4,
        optimizer="adamw",
        learning_rate=1e-3,
        schedule="cosine",
        ema_decay=0.9,
        device="cpu",
        num_workers=0,
        save_every=2,
        log_every=2,
    )


def run(recipe, folder, death=""):
    """Trains into ``folder`` or resumes the run there. ``death`` is as in ``toy``."""
    make_trainer = train_command.make_trainer

    def doomed(config, device):
        trainer = make_trainer(config, device)
        toy.arrange_death(trainer, death)
        return trainer

    if death:
        train_command.make_trainer = doomed
    if (folder / "config.json").exists():
        return train(resume=folder)
    return train(replace(recipe, output=str(folder)))


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    assert toy.run(run, recipe, folder) == 0
    return folder


def test_files_of_a_run(finished):
    names = {path.name for path in finished.iterdir()}
    pictures = {
        "labels.png", "train_batch.jpg", "results.png", "val_predictions.jpg",
        "confusion_matrix.png", "pr_curve.png",
    }  # fmt: skip
    others = {"config.json", "log.jsonl", "last.pt", "best.pt", "tensorboard", "run.lock"}
    assert names == pictures | others
    assert all(Image.open(finished / name).width >= 400 for name in pictures)
    assert list((finished / "tensorboard").iterdir())
    lines = [json.loads(line) for line in (finished / "log.jsonl").read_text().splitlines()]
    losses = {f"loss_{n}" for n in ("classifier", "box_reg", "mask", "objectness", "rpn_box_reg")}
    assert lines[0].keys() == {"step", "loss", "learning_rate", "images_per_s", *losses}
    validations = [line for line in lines if "segm/AP" in line]
    assert [line["step"] for line in validations] == [3, 6, 9]
    assert all({"val/loss", "val/loss_mask", "bbox/AP50"} <= line.keys() for line in validations)


def test_checkpoint_becomes_a_model(finished):
    trained = load_trained(finished / "best.pt")
    assert trained.class_names == {1: "circle", 2: "square", 3: "triangle"}
    assert trained.category_labels == {1: 1, 2: 2, 3: 3}
    image, _ = ShapesDataset(1, seed=3, side=64)[0]
    (result,) = trained.model([image])
    assert set(result) == {"boxes", "labels", "scores", "masks"} and not trained.model.training


def test_killed_and_resumed_equals_uninterrupted(recipe, finished, tmp_path):
    assert toy.run(run, recipe, tmp_path, "forward:5") == -signal.SIGKILL
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 4
    assert toy.run(run, recipe, tmp_path) == 0
    for name in ("last.pt", "best.pt"):
        whole, resumed = (load_checkpoint(folder / name) for folder in (finished, tmp_path))
        assert whole["step"] == resumed["step"]
        assert whole["model"].keys() == resumed["model"].keys()
        assert all(torch.equal(whole["model"][k], v) for k, v in resumed["model"].items())


def test_starts_from_a_checkpoint_of_other_classes(recipe, finished, tmp_path):
    from maskrcnn_scratch.builders.from_config import build_model, load_starting_weights

    config = replace(MODEL, weights=str(finished / "best.pt"))
    model = build_model(config, num_classes=9)
    with pytest.warns(UserWarning, match="roi_heads.box_predictor.cls_score.weight"):
        load_starting_weights(model, config)
    taken = load_trained(finished / "best.pt").model.state_dict()["backbone.body.conv1.weight"]
    assert torch.equal(model.state_dict()["backbone.body.conv1.weight"], taken)


def test_runs_are_not_overwritten(recipe, finished):
    with pytest.raises(ValueError, match=f"contains a run: resume it with --resume {finished}"):
        train(replace(recipe, output=str(finished)))


def changed_copy(file, tmp_path, change):
    content = json.loads(Path(file).read_text())
    change(content)
    copy = tmp_path / f"{change.__name__}.json"
    copy.write_text(json.dumps(content))
    return str(copy)


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


def prepared(recipe, folder, **changes):
    """The trainer of a run with changed annotation files, and the recipe's image folders."""
    images = {f"{part}_images": str(Path(getattr(recipe, f"{part}_annotations")).parent)
              for part in ("train", "val")}  # fmt: skip
    changes = {"output": str(folder / "run"), "pictures": False, **images, **changes}
    changed = replace(recipe, **changes)
    return train_command.make_trainer(changed, torch.device("cpu"))


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


def lock_and_wait(folder, seconds):
    with lock_run(folder):
        (folder / "locked").touch()
        time.sleep(seconds)


def test_two_runs_in_one_folder_are_refused(recipe, tmp_path):
    """For a new run and for a resumed one; the folder is free again after a kill."""
    other = toy.start(lock_and_wait, tmp_path, 60)
    try:
        while not (tmp_path / "locked").exists():
            time.sleep(0.05)
        for arguments in ((replace(recipe, output=str(tmp_path)),), (TrainConfig(), tmp_path)):
            (tmp_path / "config.json").write_text(json.dumps(asdict(recipe)))
            with pytest.raises(RuntimeError, match=f"in use by process {other.pid} on "):
                train(*arguments)
    finally:
        other.kill()
        other.join()
    with lock_run(tmp_path):
        pass


def test_resume_takes_no_other_options(recipe, finished, capsys):
    with pytest.raises(ValueError, match="do not give other options"):
        train(recipe, resume=finished)
    assert cli.main(["train", "--resume", str(finished), "--learning-rate", "1"]) == cli.USAGE
    assert "other options than --epochs, --patience, " in capsys.readouterr().err
    assert cli.main(["train", "--resume", str(finished), "--config", "a.yaml"]) == cli.USAGE


def test_resume_with_more_epochs_extends_a_finished_run(finished, tmp_path, capsys):
    folder = shutil.copytree(finished, tmp_path / "run")
    assert cli.main(["train", f"--resume={folder}", "--epochs", "4", "--no-pictures"]) == 0
    assert load_checkpoint(folder / "last.pt")["step"] == 12
    assert json.loads((folder / "config.json").read_text())["epochs"] == 4
    before, after = (load_checkpoint(f / "last.pt")["training"]["optimizer"]["state"][0]["step"]
                     for f in (finished, folder))  # fmt: skip
    assert (before, after) == (9, 12)
    assert cli.main(["train", "--resume", str(folder), "--epochs", "2"]) == cli.FAILURE
    assert "12 steps are done" in capsys.readouterr().err
    assert json.loads((folder / "config.json").read_text())["epochs"] == 4


def test_a_stored_configuration_can_be_fed_back(finished, tmp_path):
    stored = json.loads((finished / "config.json").read_text())
    config = str(finished / "config.json")
    assert cli.main(["train", "--config", config, "--output", str(tmp_path / "run"),
                     "--epochs", "1", "--no-pictures"]) == 0  # fmt: skip
    again = json.loads((tmp_path / "run" / "config.json").read_text())
    changed = {key for key in stored if stored[key] != again[key]}
    assert changed == {"output", "epochs", "pictures"}
    assert not (tmp_path / "run" / "labels.png").exists()


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


def test_faster_rcnn(recipe, tmp_path):
    model = replace(MODEL, architecture="fasterrcnn_small")
    trainer = prepared(recipe, tmp_path, model=model, epochs=1, pictures=True)
    trainer.train()
    lines = [json.loads(line) for line in (trainer.output / "log.jsonl").read_text().splitlines()]
    assert "bbox/AP" in lines[-1] and "segm/AP" not in lines[-1]
    assert "loss_mask" not in lines[0] and "loss_classifier" in lines[0]
    trained = load_trained(trainer.output / "best.pt")
    assert not trained.model.roi_heads.has_mask()
    assert (trainer.output / "confusion_matrix.png").exists()


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


def test_resume_of_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        train(resume=tmp_path)


def test_edited_configuration_is_checked(finished, tmp_path):
    content = json.loads((finished / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**content, "epoch": 3}))
    with pytest.raises(ValueError, match="no field 'epoch'; did you mean 'epochs'"):
        train(resume=tmp_path)


def test_annotations_are_needed():
    with pytest.raises(ValueError, match="--train-annotations is missing"):
        train(TrainConfig())
