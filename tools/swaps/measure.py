"""The table of the gallery of swaps, ``docs/swaps``: parity, times and AP.

    python -m tools.swaps.measure train [NAME ...] [--steps 300]    measures, and writes the table
    python -m tools.swaps.measure export                            exports each tiny model to ONNX
    python -m tools.swaps.measure table                             writes the table again

``train`` trains each small model with the demo's recipe on generated shapes, on one thread of the
CPU, and evaluates it on others. Times are CPU times, each relative to the default model's, which
runs in turn with it. ``export`` reads each file back with onnxruntime and compares detections.
Results are kept in ``tools/results/swaps.json``.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from maskrcnn_scratch import MaskRCNN
from maskrcnn_scratch.builders.small import small_maskrcnn
from maskrcnn_scratch.data.augment import AugmentedDataset
from maskrcnn_scratch.data.loader import Draw, TrainingBatches
from maskrcnn_scratch.data.shapes import ShapesDataset
from maskrcnn_scratch.evaluation.model_results import evaluate_model
from maskrcnn_scratch.export import UnexportableError, export_onnx
from maskrcnn_scratch.rpn import AnchorGenerator
from maskrcnn_scratch.training.config import TrainConfig
from maskrcnn_scratch.training.trainer import Trainer
from tools.demo import RECIPE
from tools.swaps.gallery import GALLERY, SWAPS, Swap
from tools.swaps.parity import parity

RESULTS = Path(__file__).resolve().parents[1] / "results" / "swaps.json"
TABLE = GALLERY / "table.md"
EPOCHS, BATCH_SIZE, VAL_IMAGES, SEED = 4, 8, 100, 0
TIMED_IMAGES, ROUNDS = 4, 5
REPEAT_THRESHOLD = 0.7  # of the images; every class of the shapes is in fewer


class Stored(Dataset[Any]):
    """The items of a data set, drawn once."""

    def __init__(self, dataset: Any) -> None:
        self.items = [dataset[index] for index in range(len(dataset))]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        image, target = self.items[index]
        return image, dict(target)


class WithExtremePoints(Dataset[Any]):
    """Adds keypoints: the leftmost, topmost, rightmost and lowest pixel of each visible mask."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: Draw) -> Any:
        image, target = self.dataset[draw]
        points = [extreme_points(mask) for mask in target["masks"]]
        keypoints = torch.stack(points) if points else torch.zeros(0, 4, 3)
        return image, {**target, "keypoints": keypoints}


def extreme_points(mask: Tensor) -> Tensor:
    """``[4, 3]`` of a mask ``[H, W]`` with at least one pixel."""
    y, x = mask.nonzero().unbind(1)
    order = [x.argmin(), y.argmin(), x.argmax(), y.argmax()]
    return torch.stack([torch.stack((x[k] + 0.5, y[k] + 0.5, torch.tensor(1.0))) for k in order])


def recipe() -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of the model and of ``TrainConfig``, from the demo."""
    config = dict(RECIPE)
    model, augmentation = config.pop("model"), config.pop("augmentation")
    options: dict[str, Any] = {
        "min_size": model.min_size,
        "max_size": model.max_size,
        "rpn_anchor_generator": AnchorGenerator(model.anchor_sizes, model.aspect_ratios),
        "rpn_batch_size_per_image": model.rpn_samples,
        "box_batch_size_per_image": model.box_samples,
        "box_detections_per_img": model.detections,
    }
    for phase in ("train", "test"):
        options[f"rpn_pre_nms_top_n_{phase}"] = model.pre_nms_top_n
        options[f"rpn_post_nms_top_n_{phase}"] = model.post_nms_top_n
    return options, {**config, "augmentation": augmentation}


def trained(swap: Swap | None, images: Stored, default: MaskRCNN | None) -> MaskRCNN:
    """The model of a swap, or the default for None, after ``EPOCHS`` epochs."""
    options, config = recipe()
    torch.manual_seed(SEED)
    model = small_maskrcnn(4, **options) if swap is None else swap.build(**options)
    if swap is not None and swap.inference_only:
        assert default is not None
        model.load_state_dict(default.state_dict())
        return model.eval()
    dataset: Any = AugmentedDataset(images, config["augmentation"].build(), SEED)
    if swap is not None and swap.file == "keypoints":
        dataset = WithExtremePoints(dataset)
    batches: Callable[..., TrainingBatches] = TrainingBatches
    if swap is not None and swap.file == "repeat_factor":
        labels = [target["labels"].tolist() for _, target in images.items]
        batches = swap.module().batches(labels, REPEAT_THRESHOLD)
    with tempfile.TemporaryDirectory() as folder:
        changes: dict[str, Any] = {"epochs": EPOCHS, "batch_size": BATCH_SIZE, "num_workers": 0}
        changes |= {"seed": SEED, "output": folder, "pictures": False, "validate_every": EPOCHS}
        settings = TrainConfig(**{**config, **changes})
        sizes = torch.full((len(images), 2), 128).numpy()
        trainer = Trainer(model, dataset, sizes, settings, batches=batches)
        # Epochs may be longer than the set; the number of steps is the same for all.
        trainer.total_steps = EPOCHS * len(images) // BATCH_SIZE
        trainer.train()
    return model.eval()


def cpu_seconds(call: Callable[[MaskRCNN], Any], model: MaskRCNN) -> float:
    start = time.process_time()
    call(model)
    return time.process_time() - start


def relative_times(model: MaskRCNN, default: MaskRCNN, images: Stored) -> dict[str, float]:
    """CPU time of detection and of a training step, as multiples of the default's.

    The two run in turn; the median of the ratios of all rounds.
    """
    items = [images[index] for index in range(TIMED_IMAGES)]
    pixels = [image for image, _ in items]
    targets = [
        {**target, "keypoints": torch.stack([extreme_points(m) for m in target["masks"]])}
        for _, target in items
    ]

    def detect(one: MaskRCNN) -> None:
        with torch.no_grad():
            for image in pixels:
                one.eval()([image])

    def step(one: MaskRCNN) -> None:
        one.train()
        sum(one(pixels, targets).values(), start=torch.zeros(())).backward()
        one.zero_grad()

    found = {}
    for name, run in (("detect", detect), ("train", step)):
        ratios = []
        for n in range(ROUNDS + 1):
            ratio = cpu_seconds(run, model) / cpu_seconds(run, default)
            if n > 0:  # the first round warms up
                ratios.append(ratio)
        found[name] = median(ratios)
    return found


def measure(names: list[str], steps: int) -> None:
    torch.set_num_threads(1)
    stored = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": {}}
    stored |= {"steps": steps, "seed": SEED, "batch_size": BATCH_SIZE, "val_images": VAL_IMAGES}
    stored |= {"torch": torch.__version__.partition("+")[0], "cpu": cpu_name()}
    images = Stored(ShapesDataset(steps * BATCH_SIZE // EPOCHS, seed=0))
    held_out = ShapesDataset(VAL_IMAGES, seed=1)
    default = trained(None, images, None)
    rows: list[Swap | None] = [None, *(s for s in SWAPS if not names or s.name in names)]
    for swap in rows:
        model = default if swap is None else trained(swap, images, default)
        scores = evaluate_model(model, held_out, batch_size=4)
        row: dict[str, Any] = {
            f"{kind}/AP": score.metrics[f"{kind}/AP"] for kind, score in scores.items()
        }
        row |= relative_times(model, default, images)
        name = "default" if swap is None else swap.name
        if swap is not None and (compared := parity(swap)) is not None:
            row |= {"parity with": compared[0], "difference": compared[1]}
        stored["rows"][name] = row
        RESULTS.write_text(json.dumps(stored, indent=1) + "\n")
        print(name, row, f"{time.process_time():.0f} s of CPU so far", flush=True)


def export() -> None:
    """Exports the tiny models to ONNX and stores the verdicts, or the reason of a refusal."""
    torch.set_num_threads(1)
    stored = json.loads(RESULTS.read_text())
    images = [ShapesDataset(1, side=64)[0][0]]
    for swap in SWAPS:
        if swap.training_only:
            continue
        row = stored["rows"][swap.name]
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # outputs of branches are lost
            try:
                report = export_onnx(
                    swap.tiny().eval(),
                    Path(folder) / "model.onnx",
                    (64, 64),
                    images=images,
                    opset=swap.opset,
                )
                row["onnx"] = report.verdict
            except UnexportableError as error:
                row["onnx"] = f"refused: {error}"
        print(swap.name, row["onnx"], flush=True)
    RESULTS.write_text(json.dumps(stored, indent=1) + "\n")


def results(swap: Swap) -> dict[str, Any]:
    """The stored row of ``swap``."""
    return json.loads(RESULTS.read_text())["rows"][swap.name]


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def table() -> str:
    """The table as Markdown, from the stored results and the files as they are."""
    stored = json.loads(RESULTS.read_text())
    rows = stored["rows"]
    out = [
        "| swap | paper | lines | parity: with, difference | ONNX | detection | training step "
        "| box AP | mask AP |",
        "| --- | --- | --: | --- | --- | --: | --: | --: | --: |",
        "| default | | | | | 1 | 1 | {bbox/AP:.3f} | {segm/AP:.3f} |".format(**rows["default"]),
    ]
    for swap in SWAPS:
        row = rows[swap.name]
        compared = "—"
        if "difference" in row:
            compared = f"{row['parity with']}, {row['difference']:.0e}".replace(", 0e+00", ", 0")
        training = "1" if swap.inference_only else f"{row['train']:.2f}"
        onnx = "as default" if swap.training_only else row.get("onnx", "")
        onnx += " (opset 19)" if swap.opset > 18 else ""
        out.append(
            f"| [{swap.title}](#{swap.file.replace('_', '-')}) | {swap.paper} | {swap.lines} | "
            f"{compared} | {onnx} | {row['detect']:.2f} | {training} | {row['bbox/AP']:.3f} | "
            f"{row['segm/AP']:.3f} |"
        )
    out += [
        "",
        f"{stored['steps']} steps of {stored['batch_size']} images, seed {stored['seed']}, AP on "
        f"{stored['val_images']} images of 128 pixels; one thread of an {stored['cpu']}, torch "
        f"{stored['torch']}.",
    ]
    return "\n".join(out) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("train", "export", "table"))
    parser.add_argument("names", nargs="*", help="some of the swaps; all by default")
    parser.add_argument("--steps", type=int, default=300)
    given = parser.parse_args()
    if given.command == "train":
        measure(given.names, given.steps)
    if given.command == "export":
        export()
    if all(swap.name in json.loads(RESULTS.read_text())["rows"] for swap in SWAPS):
        TABLE.write_text(table())


if __name__ == "__main__":
    main()
