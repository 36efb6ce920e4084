"""The demo: the same detections as torchvision on a photograph, then a model trained from scratch.

    make demo        or        python tools/demo.py [--output DIR]

On the CPU. First it builds Mask R-CNN ResNet-50-FPN and torchvision's with the published weights,
or offline with calibrated random ones, and compares them stage by stage. Then it trains a small
Mask R-CNN, made of the same parts, on generated shapes, evaluates it on others, and draws what it
finds.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # where tools lies

from maskrcnn_scratch import maskrcnn_resnet50_fpn
from maskrcnn_scratch.builders.from_config import ModelConfig, load_trained
from maskrcnn_scratch.cli.inspect import inspect
from maskrcnn_scratch.cli.train import train
from maskrcnn_scratch.data.augment import Augmentation
from maskrcnn_scratch.data.coco import CocoDataset
from maskrcnn_scratch.data.shapes import ShapesDataset, write_coco
from maskrcnn_scratch.inference.visualize import draw_detections
from maskrcnn_scratch.ops.boxes import box_iou
from maskrcnn_scratch.parity import report
from maskrcnn_scratch.parity.calibrate import calibrated_maskrcnn
from maskrcnn_scratch.parity.model import model_check
from maskrcnn_scratch.parity.photographs import photographs
from maskrcnn_scratch.parity.reference import Recording, in_channels_last, reference_of
from maskrcnn_scratch.parity.stages import stage_checks
from maskrcnn_scratch.structures import Result
from maskrcnn_scratch.training.config import TrainConfig
from maskrcnn_scratch.weights import WeightsError
from maskrcnn_scratch.weights.categories import COCO_CATEGORIES

matplotlib.use("Agg")
TRAIN_IMAGES, VAL_IMAGES = 2000, 100
SHOWN_IMAGES = 4
INSPECTED_IMAGE = "00044.png"  # of the held-out ones: four objects, some of them hidden

# What fits 128-pixel images and 90 seconds: few anchors, proposals and samples.
RECIPE: dict[str, Any] = {
    "model": ModelConfig(
        architecture="small",
        weights="none",
        min_size=(128,),
        max_size=128,
        anchor_sizes=(16, 32, 64, 96, 128),
        pre_nms_top_n=150,
        post_nms_top_n=80,
        rpn_samples=64,
        box_samples=32,
    ),
    "augmentation": Augmentation(horizontal_flip=True),
    "epochs": 4,
    "batch_size": 8,
    "optimizer": "adamw",
    "learning_rate": 2e-3,
    "weight_decay": 1e-2,
    "schedule": "cosine",
    "clip_grad_norm": 5.0,
    "precision": "bf16",
    "validate_every": 4,
    "device": "cpu",
    "tensorboard": False,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output", type=Path, default=Path("runs/demo"), help="folder for everything it writes"
    )
    output: Path = parser.parse_args().output
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    compare_with_torchvision(output)
    learn_shapes(output)


def compare_with_torchvision(output: Path) -> None:
    """Both models on a photograph, stage by stage; with the published weights also a picture."""
    print("1. Mask R-CNN ResNet-50-FPN and torchvision's, same weights, same photograph\n")
    photograph = photographs()[0]
    sizes: dict[str, Any] = {"min_size": 480, "max_size": 800}
    published = True
    try:
        model = maskrcnn_resnet50_fpn(weights="DEFAULT", **sizes).eval()
    except (OSError, WeightsError) as error:
        published = False
        reason = str(error).partition(";")[0]
        print(f"Calibrated random weights serve instead of the published ones: {reason}\n")
        model = calibrated_maskrcnn(0, photograph, background_logit=6.0, **sizes)
    recording = Recording(in_channels_last(reference_of(model)), [photograph])
    with torch.no_grad():
        checks = list(stage_checks(model, recording, [photograph]))
        stages = model.run_stages([photograph])
    checks.append(model_check("detections on the photograph", model, [photograph], recording)[0])
    print(report.HEADER)
    for check in checks:
        print(report.row(check))
    print(report.verdict(checks))
    if not all(check.passed for check in checks):
        raise SystemExit(1)
    if published:
        sure = stages.results[0]["scores"] > 0.5
        found = {name: values[sure] for name, values in stages.results[0].items()}
        picture = output / "photograph.png"
        draw_detections(photograph, found, COCO_CATEGORIES).save(picture)
        print(f"{picture}: the detections with a score above 0.5")
    print()


def learn_shapes(output: Path) -> None:
    """Trains on generated shapes, evaluates on others; pictures, curves, and how to go on."""
    print(f"2. A small Mask R-CNN learns shapes from {TRAIN_IMAGES} generated images\n")
    annotations = write_coco(ShapesDataset(TRAIN_IMAGES, seed=0), output / "shapes" / "train")
    held_out = write_coco(ShapesDataset(VAL_IMAGES, seed=1), output / "shapes" / "val")
    run = output / "run"
    started = time.monotonic()
    status = train(
        TrainConfig(
            train_annotations=str(annotations),
            val_annotations=str(held_out),
            output=str(run),
            **RECIPE,
        )
    )
    if status:
        raise SystemExit(status)
    minutes = (time.monotonic() - started) / 60
    draw_shapes(run / "best.pt", held_out, output / "shapes.png")
    found = draw_curves(run / "log.jsonl", output / "curves.png")
    print(f"""
trained and evaluated in {minutes:.1f} minutes, on {VAL_IMAGES} images it had not seen:
    masks  AP {found["segm/AP"]:.3f}   AP50 {found["segm/AP50"]:.3f}
    boxes  AP {found["bbox/AP"]:.3f}   AP50 {found["bbox/AP50"]:.3f}
pictures: {output / "shapes.png"} (ground truth above, predictions below), {output / "curves.png"}
predict:  maskrcnn predict --weights {run / "best.pt"} --out predictions {held_out.parent}

every stage of the model on one of these images, a page to open in a browser:""")
    inspect(
        images=(str(held_out.parent / INSPECTED_IMAGE),),
        weights=str(run / "best.pt"),
        annotations=held_out,
        out=output / "report.html",
        training=True,
        score_threshold=0.5,
        device="cpu",
    )


def draw_shapes(checkpoint: Path, annotations: Path, picture: Path) -> None:
    """A row of images with their ground truth, and a row with what the model finds."""
    trained = load_trained(checkpoint)
    names = ["background", *trained.class_names.values()]
    images = CocoDataset(annotations, annotations.parent)
    truths, predictions = [], []
    for index in range(SHOWN_IMAGES):
        image, target = images[index]
        with torch.no_grad():
            result = trained.model([image])[0]
        result = {name: values[result["scores"] > 0.5] for name, values in result.items()}
        truth, result = truth_as_result(target), in_order_of(target["boxes"], result)
        truths.append(framed(draw_detections(*enlarged(image, truth), names)))
        predictions.append(framed(draw_detections(*enlarged(image, result), names)))
    rows = [
        part
        for title, row in (("Ground truth", truths), ("Prediction", predictions))
        for part in (titled(title, 520 * SHOWN_IMAGES), np.concatenate(row, axis=1))
    ]
    Image.fromarray(np.concatenate(rows)).save(picture)


def in_order_of(truth: torch.Tensor, result: Result) -> Result:
    """Detections in the order of the objects ``truth [G, 4]`` that they overlap most.

    The pictures colour by label and order, so that an object has one colour in both rows.
    """
    owner = box_iou(result["boxes"], truth).argmax(1)  # [D]
    order = owner.argsort(stable=True)
    return {name: values[order] for name, values in result.items()}


def titled(title: str, width: int) -> np.ndarray:
    """A white strip with a title, [56, width, 3]."""
    strip = Image.new("RGB", (width, 56), "white")
    ImageDraw.Draw(strip).text((8, 10), title, "black", ImageFont.load_default(32))
    return np.asarray(strip)


def enlarged(image: torch.Tensor, result: Result) -> tuple[torch.Tensor, Result]:
    """An image [3, H, W] and its detections at four times the size, so that names are legible."""
    grown = {**result, "boxes": 4 * result["boxes"]}
    grown["masks"] = F.interpolate(result["masks"].float(), scale_factor=4, mode="bilinear")
    return F.interpolate(image[None], scale_factor=4)[0], grown


def framed(picture: Image.Image) -> np.ndarray:
    """The picture in 512 x 512 pixels with a white frame."""
    pixels = np.asarray(picture.resize((512, 512)))  # [512, 512, 3]
    return np.pad(pixels, ((4, 4), (4, 4), (0, 0)), constant_values=255)


def truth_as_result(target: dict[str, torch.Tensor]) -> Result:
    """Ground truth in the form of a detection of score 1."""
    return {
        "boxes": target["boxes"],
        "labels": target["labels"],
        "scores": torch.ones(len(target["labels"])),
        "masks": target["masks"][:, None].float(),
    }


def draw_curves(log: Path, picture: Path) -> dict[str, float]:
    """The losses over the steps; returns the last validation's figures."""
    from matplotlib import pyplot as plt

    lines = [json.loads(line) for line in log.read_text().splitlines()]
    steps = [line for line in lines if "loss_mask" in line]
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for name in (key for key in steps[0] if key.startswith("loss_")):
        values = [line[name] for line in steps]
        axes.plot([line["step"] for line in steps], values, label=name.removeprefix("loss_"))
    axes.set(xlabel="step", ylabel="loss", yscale="log", title="Training on generated shapes")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(picture, dpi=120)
    return next(line for line in reversed(lines) if "segm/AP" in line)


if __name__ == "__main__":
    main()
