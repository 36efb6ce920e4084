"""``maskrcnn train`` with a small model: its files, resuming, and two runs in one folder."""

import json
import shutil
import signal
import time
from dataclasses import asdict, replace

import pytest
import torch
from PIL import Image

from maskrcnn_scratch import cli
from maskrcnn_scratch.builders.from_config import load_trained
from maskrcnn_scratch.checkpoint import load_checkpoint
from maskrcnn_scratch.cli import train as train_command
from maskrcnn_scratch.cli.train import train
from maskrcnn_scratch.data.shapes import ShapesDataset
from maskrcnn_scratch.training.config import TrainConfig
from maskrcnn_scratch.training.run_lock import lock_run
from tests.cli.recipes import prepared
from tests.tiny import TINY
from tests.training import toy


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


@pytest.mark.slow
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

    config = replace(TINY, weights=str(finished / "best.pt"))
    model = build_model(config, num_classes=9)
    with pytest.warns(UserWarning, match="roi_heads.box_predictor.cls_score.weight"):
        load_starting_weights(model, config)
    taken = load_trained(finished / "best.pt").model.state_dict()["backbone.body.conv1.weight"]
    assert torch.equal(model.state_dict()["backbone.body.conv1.weight"], taken)


def test_runs_are_not_overwritten(recipe, finished):
    with pytest.raises(ValueError, match=f"contains a run: resume it with --resume {finished}"):
        train(replace(recipe, output=str(finished)))


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


@pytest.mark.slow
def test_faster_rcnn(recipe, tmp_path):
    model = replace(TINY, architecture="fasterrcnn_small")
    trainer = prepared(recipe, tmp_path, model=model, epochs=1, pictures=True)
    trainer.train()
    lines = [json.loads(line) for line in (trainer.output / "log.jsonl").read_text().splitlines()]
    assert "bbox/AP" in lines[-1] and "segm/AP" not in lines[-1]
    assert "loss_mask" not in lines[0] and "loss_classifier" in lines[0]
    trained = load_trained(trainer.output / "best.pt")
    assert not trained.model.roi_heads.has_mask()
    assert (trainer.output / "confusion_matrix.png").exists()


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
