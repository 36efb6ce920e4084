"""From files to files: what reading, drawing and writing add to the model's own time.

The files are photographs of the benchmark's size, as JPEG, with random objects as ground truth.
Rows "beside the model alone" have the model's own time on the same images as "theirs": their ratio
is the model's share, 1 where everything else is hidden. The torchvision scripts do the same work as
its tutorials do it, one step after the other.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, redirect_stdout
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from maskrcnn_scratch import MaskRCNN, Predictor
from maskrcnn_scratch.cli.predict_files import run_images
from maskrcnn_scratch.data.augment import Augmentation, AugmentedDataset
from maskrcnn_scratch.data.coco import CocoDataset
from maskrcnn_scratch.data.loader import TrainingBatches
from maskrcnn_scratch.data.to_coco import to_coco
from maskrcnn_scratch.evaluation.model_results import evaluate_model
from maskrcnn_scratch.files import write_json
from maskrcnn_scratch.inference import optimize
from maskrcnn_scratch.inference.image_jobs import JobReader, make_jobs
from maskrcnn_scratch.inference.writers import ResultWriter, plan_outputs
from maskrcnn_scratch.parity.losses import random_target
from maskrcnn_scratch.parity.reference import reference_of
from maskrcnn_scratch.training.config import TrainConfig
from maskrcnn_scratch.training.trainer import Trainer
from tools.benchmarks.clock import Clock, Timing
from tools.benchmarks.peers import time_peer

CLASSES = {label: f"class {label}" for label in range(1, 91)}
OBJECTS = 20  # of the ground truth, per image
WORKERS = 2  # processes that read images, as by default
Run = Callable[[], object]


def time_pipeline(
    clock: Clock, model: MaskRCNN, image: Tensor, photographs: int = 12, steps: int = 4
) -> Iterator[Timing]:
    """``predict`` and ``evaluate`` on ``photographs`` files, and ``steps`` steps of training.

    Times are those of all images or steps. Start-up and reading the weights are not part of them.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        annotations = write_photographs(image.cpu(), folder / "images", photographs)
        for stage in (time_predict, time_evaluate):
            yield from stage(clock, model, annotations, folder)
        yield from time_training(clock, model, annotations, folder / "run", steps)


def write_photographs(image: Tensor, folder: Path, count: int) -> Path:
    """``count`` JPEG files that differ in brightness, and their COCO annotations."""
    folder.mkdir()
    dataset = Photographs(image, count)
    for index in range(count):
        pixels, target = dataset[index]
        array = (pixels * 255).byte().permute(1, 2, 0).numpy()
        Image.fromarray(array).save(folder / target["file_name"], quality=92)
    write_json(folder / "instances.json", to_coco(dataset))  # type: ignore[arg-type]
    return folder / "instances.json"


class Photographs:
    """One photograph in several brightnesses, with random objects; as ``CocoDataset``."""

    def __init__(self, image: Tensor, count: int) -> None:
        self.image, self.count, self.class_names = image, count, CLASSES
        self.category_labels = {label: label for label in CLASSES}

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        target = dict(random_target(self.image, OBJECTS, seed=index))
        return self.image * (1 - 0.02 * index), {
            **target,
            "area": target["masks"].sum((1, 2)),
            "iscrowd": torch.zeros(OBJECTS),
            "annotation_ids": torch.arange(OBJECTS) + index * OBJECTS + 1,
            "image_id": index + 1,
            "file_name": f"{index + 1}.jpg",
        }


def time_predict(
    clock: Clock, model: MaskRCNN, annotations: Path, folder: Path
) -> Iterator[Timing]:
    """``maskrcnn predict`` with its defaults, overlays as PNG and detections as JSON."""
    files = sorted(annotations.parent.glob("*.jpg"))
    reference = reference_of(model)
    jobs = make_jobs({file: file.name for file in files})
    outputs = plan_outputs([job.output_name for job in jobs], folder / "ours", ("png", "json"))
    writer = ResultWriter(CLASSES, {label: label for label in CLASSES})
    for title, winograd in (("predict", False), ("predict --winograd", True)):
        if winograd and clock.device.type != "cpu":
            continue
        predictor = Predictor(optimize(model, winograd=winograd))

        def predict(predictor: Predictor = predictor) -> None:
            with redirect_stdout(io.StringIO()):
                failed = run_images(jobs, predictor, writer, outputs, JobReader(), batch_size=1)
            assert not failed

        title = f"{title}, {len(files)} photographs"
        yield clock.pair(
            "pipeline", f"{title}, beside the model alone", predict, alone(predictor, files)
        )
        yield clock.pair(
            "pipeline", title, predict,
            lambda: torchvision_predict(reference, files, folder / "theirs"),
        )  # fmt: skip


def alone(predictor: Predictor, files: Sequence[Path]) -> Run:
    """The model on the images of the files, one by one, as tensors."""
    images = [Predictor._load(predictor, file, file.name) for file in files]
    return lambda: [predictor(image) for image in images]


@torch.no_grad()
def torchvision_predict(reference: nn.Module, files: Sequence[Path], folder: Path) -> None:
    """The same with torchvision's model, reader, drawing and writer, in a plain loop."""
    from torchvision.io import read_image, write_png
    from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

    folder.mkdir(exist_ok=True)
    device = next(reference.parameters()).device
    for file in files:
        pixels = read_image(str(file))
        found = reference([pixels.to(device) / 255])[0]
        found = {name: values.cpu() for name, values in found.items()}
        labels = [
            f"{CLASSES[label]} {score:.2f}"
            for label, score in zip(found["labels"].tolist(), found["scores"].tolist(), strict=True)
        ]
        picture = draw_segmentation_masks(pixels, found["masks"][:, 0] > 0.5, alpha=0.4)
        picture = draw_bounding_boxes(picture, found["boxes"], labels)
        write_png(picture, str(folder / f"{file.stem}.png"))
        content = {name: found[name].tolist() for name in ("boxes", "labels", "scores")}
        (folder / f"{file.stem}.json").write_text(json.dumps(content))


def time_evaluate(
    clock: Clock, model: MaskRCNN, annotations: Path, folder: Path
) -> Iterator[Timing]:
    """``maskrcnn evaluate``: reading, the model, masks as RLE, box and mask AP."""
    dataset = CocoDataset(annotations, annotations.parent)
    title = f"evaluate, {len(dataset)} photographs"

    def evaluate() -> None:
        evaluate_model(model, dataset, device=clock.device, num_workers=WORKERS)

    files = sorted(annotations.parent.glob("*.jpg"))
    yield clock.pair(
        "pipeline", f"{title}, beside the model alone", evaluate, alone(Predictor(model), files)
    )
    yield time_peer(
        clock, "pipeline", title, evaluate,
        lambda: torchvision_evaluate(reference_of(model), dataset, annotations),
    )  # fmt: skip


def torchvision_evaluate(reference: nn.Module, dataset: CocoDataset, annotations: Path) -> Run:
    """The same with torchvision's model and pycocotools, as in torchvision's references."""
    from pycocotools import mask as coco_mask
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    device = next(reference.parameters()).device

    @torch.no_grad()
    def evaluate() -> None:
        results = []
        loader = DataLoader(dataset, num_workers=WORKERS, collate_fn=as_lists)
        for images, targets in loader:
            for found, target in zip(
                reference([image.to(device) for image in images]), targets, strict=True
            ):
                boxes, masks = found["boxes"].cpu(), (found["masks"] > 0.5).cpu().numpy()
                boxes[:, 2:] -= boxes[:, :2]
                for n, mask in enumerate(masks):
                    rle = coco_mask.encode(np.asfortranarray(mask[0], np.uint8))
                    results.append(
                        {
                            "image_id": target["image_id"],
                            "category_id": int(found["labels"][n]),
                            "bbox": boxes[n].tolist(),
                            "score": float(found["scores"][n]),
                            "segmentation": {**rle, "counts": rle["counts"].decode()},
                        }
                    )
        with redirect_stdout(io.StringIO()):
            truth = COCO(str(annotations))
            for kind in ("bbox", "segm"):
                scores = COCOeval(truth, truth.loadRes(results), kind)
                scores.evaluate()
                scores.accumulate()
                scores.summarize()

    return evaluate


def as_lists(items: list[Any]) -> tuple[Any, ...]:
    return tuple(zip(*items, strict=True))


def time_training(
    clock: Clock, model: MaskRCNN, annotations: Path, output: Path, steps: int
) -> Iterator[Timing]:
    """Steps of ``maskrcnn train`` with 1 image each, read and augmented by worker processes."""
    images = CocoDataset(annotations, annotations.parent)
    config = TrainConfig(
        output=str(output), batch_size=1, learning_rate=1e-6, num_workers=WORKERS,
        device=clock.device.type,  # type: ignore[arg-type]
    )  # fmt: skip
    augmented = AugmentedDataset(images, Augmentation().build(), 0)
    trainer = Trainer(model, augmented, images.sizes, config, clock.device)
    title = f"train, {steps} steps"
    with closing(trainer.read_batches()) as read:
        in_memory = cycle(list(islice(read, steps)))
        yield clock.pair(
            "pipeline", f"{title}, beside the steps alone",
            lambda: [trainer.train_step(read) for _ in range(steps)],
            lambda: [trainer.train_step(in_memory) for _ in range(steps)],
        )  # fmt: skip
        reference = reference_of(model).train()
        optimizer = torch.optim.SGD(reference.parameters(), lr=1e-6, momentum=0.9)
        batches = TrainingBatches(images.sizes, 1)
        loader = iter(
            DataLoader(augmented, batch_sampler=batches, num_workers=WORKERS, collate_fn=as_lists)
        )

        def torchvision_steps() -> None:
            for _ in range(steps):
                pixels, targets = next(loader)
                moved = [{k: target[k].to(clock.device) for k in ("boxes", "labels", "masks")}
                     for target in targets]  # fmt: skip
                losses = reference([image.to(clock.device) for image in pixels], moved)
                optimizer.zero_grad()
                sum(losses.values()).backward()
                optimizer.step()

        yield clock.pair(
            "pipeline", title,
            lambda: [trainer.train_step(read) for _ in range(steps)],
            torchvision_steps,
        )  # fmt: skip
    model.eval()
