"""``maskrcnn predict``: detections of a model in images, as overlay images and as data."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import closing
from glob import glob, has_magic
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from maskrcnn_scratch.cli import FAILURE, UsageError, pick_device

if TYPE_CHECKING:
    from maskrcnn_scratch.builders.from_config import TrainedModel

# Suffixes of images in folders. A file given by name may have any suffix.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")


def predict(
    images: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="IMAGE [IMAGE ...]", help_behavior_hint=""),
    ],
    weights: str = "COCO_V1",
    score_threshold: float = 0.5,
    format: Annotated[
        tuple[tuple[Literal["png", "json", "coco", "rle"], ...], ...],
        tyro.conf.UseAppendAction,
        tyro.conf.arg(help_behavior_hint="(default: png and json)"),
    ] = (),
    out: Path = Path("runs/predict"),
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    device: str = "auto",
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    batch_size: int = 1,
) -> int:
    """Detect objects in images.

    Formats: png is the image with boxes, class names and masks. json has boxes, labels and scores;
    rle has masks as well, as COCO RLE. coco is one file for all images, in COCO's results format.

    If an image cannot be read, the others are still processed, and the exit status is 1.

    Args:
        images: Image files, folders of images, or glob patterns in quotes.
        weights: COCO_V1 (downloaded), a weights file, or a checkpoint of maskrcnn train.
        score_threshold: Drop detections with lower scores.
        format: Formats to write.
        out: Output folder.
        overwrite: Replace existing files.
        device: Device of the model: auto, cpu, cuda, cuda:1 ...
        precision: Precision of the networks. bf16 is for hardware with bf16 arithmetic.
        batch_size: Largest number of images per batch. Only images that are padded to the same
            size form a batch, since padding changes results: they do not depend on this option,
            except for rounding.
    """
    import torch
    from tqdm import tqdm

    from maskrcnn_scratch.inference.optimize import PRECISIONS, optimize
    from maskrcnn_scratch.inference.predictor import Prediction, Predictor
    from maskrcnn_scratch.inference.prefetch import map_ahead
    from maskrcnn_scratch.inference.writers import Format, ResultWriter, image_ids, plan_outputs

    if batch_size < 1:
        raise UsageError(f"--batch-size is {batch_size}; it must be at least 1")
    if not 0 <= score_threshold <= 1:
        raise UsageError(f"--score-threshold is {score_threshold}; it must be between 0 and 1")
    files = find_images(images)
    formats: tuple[Format, ...] = tuple(dict.fromkeys(chain(*format))) or ("png", "json")
    outputs = plan_outputs(files, out, formats)
    check_outputs(files, [path for paths in outputs for path in paths.values()], overwrite)

    trained = load(weights, score_threshold)
    model = optimize(trained.model.to(pick_device(device)), dtype=PRECISIONS[precision])
    predictor = Predictor(model)
    writer = ResultWriter(trained.class_names, trained.category_labels)
    out.mkdir(parents=True, exist_ok=True)
    todo = zip(files, outputs, image_ids(files), predictor.stream(files, batch_size), strict=True)

    def write(job: tuple[Path, dict[Format, Path], int, Prediction]) -> str:
        file, paths, image_id, prediction = job
        result = prediction.result()
        assert prediction.image is not None
        return writer.write(file, prediction.image, result, paths, image_id)

    # Threads read the next images and write the last results while the model runs.
    written = map_ahead(write, todo, threads=1, ahead=2)
    failed = 0
    bar = tqdm(total=len(files), unit=" images", disable=None, leave=False)
    try:
        with closing(written), bar:
            for file, writing in zip(files, written, strict=True):
                try:
                    found = writing.result()
                except (FileNotFoundError, ValueError, torch.OutOfMemoryError) as error:
                    failed += 1
                    tqdm.write(f"maskrcnn predict: error: {_naming(file, error)}", file=sys.stderr)
                else:
                    tqdm.write(f"{file}: {found}")
                bar.update()
    finally:  # after Ctrl-C, too: keep the results so far
        if "coco" in formats:
            writer.write_coco(outputs[0]["coco"])
    print(f"{len(files) - failed} of {len(files)} images done, results in {out}")
    return FAILURE if failed else 0


def _naming(file: Path, error: Exception) -> str:
    return str(error) if str(file) in str(error) else f"{file}: {error}"


def find_images(arguments: Sequence[str]) -> list[Path]:
    """The image files of the arguments, each once, in order. Folders and globs are sorted."""
    if not arguments:
        raise UsageError("give at least one image, folder of images or glob pattern")
    files: dict[Path, Path] = {}
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            found = [file for file in sorted(path.iterdir()) if _is_image(file)]
        elif path.is_file() or not has_magic(argument):
            found = [path] if path.is_file() else []
        else:
            found = [Path(name) for name in sorted(glob(argument, recursive=True))]
            found = [file for file in found if _is_image(file)]
        if not found:
            kind = "no images in the folder" if path.is_dir() else "no such image file"
            raise UsageError(f"{argument}: {kind}")
        for file in found:
            files.setdefault(file.resolve(), file)
    return list(files.values())


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()


def check_outputs(images: Sequence[Path], outputs: Sequence[Path], overwrite: bool) -> None:
    """Raises a UsageError if an output is an input image, or exists and must not be replaced."""
    sources = {image.resolve() for image in images}
    for path in outputs:
        if path.resolve() in sources:
            raise UsageError(f"{path} is one of the input images: choose another --out")
        if path.exists() and not overwrite:
            raise UsageError(f"{path} exists: choose another --out, or use --overwrite")


def load(weights: str, score_threshold: float) -> TrainedModel:
    """The model of ``--weights``, with this score threshold."""
    from maskrcnn_scratch.builders.from_config import load_trained
    from maskrcnn_scratch.weights import MaskRCNN_ResNet50_FPN_Weights, WeightsError
    from maskrcnn_scratch.weights.download import download_weights

    file = Path(weights)
    if weights in MaskRCNN_ResNet50_FPN_Weights.__members__:
        try:
            file = download_weights(MaskRCNN_ResNet50_FPN_Weights[weights].url)
        except WeightsError as error:
            raise WeightsError(f"{error}, or elsewhere and pass it with --weights FILE") from error
    trained = load_trained(file)
    trained.model.roi_heads.score_thresh = score_threshold
    return trained
