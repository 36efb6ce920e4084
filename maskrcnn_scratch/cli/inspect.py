"""``maskrcnn inspect``: a page that shows every stage of the model on an image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated

import tyro

from maskrcnn_scratch.cli import UsageError, pick_device
from maskrcnn_scratch.cli.images import find_images
from maskrcnn_scratch.cli.load import load
from maskrcnn_scratch.data.pixel_limit import MAX_PIXELS, pixel_limit
from maskrcnn_scratch.files import check_writable

if TYPE_CHECKING:
    from maskrcnn_scratch.builders.from_config import TrainedModel
    from maskrcnn_scratch.generalized_rcnn import GeneralizedRCNN
    from maskrcnn_scratch.structures import Target


def inspect(
    images: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="IMAGE [IMAGE ...]", help_behavior_hint=""),
    ],
    weights: str = "COCO_V1",
    model: str | None = None,
    annotations: Path | None = None,
    out: Path = Path("report.html"),
    training: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    compare: str | None = None,
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="PATH=VALUE [PATH=VALUE ...]")] = (),
    score_threshold: float = 0.05,
    device: str = "auto",
    no_exif: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    max_pixels: int = MAX_PIXELS,
) -> int:
    """Show what happens to an image in every stage of the model, in one HTML file.

    The file needs no network. Choose a detection in it, and its proposal and anchor are shown in
    every stage. With annotations, choose a missed object, and the page shows where it was lost.
    Several images give an index page, and a page for each in a folder beside it.

    Args:
        images: Image files, folders of images, or glob patterns in quotes.
        weights: COCO_V1 (downloaded), a weights file or checkpoint of maskrcnn train, or its
            address: https://HOST/FILE#sha256=DIGITS or hf://OWNER/NAME/FILE.
        model: Your function build(config, num_classes), as for maskrcnn train: FILE.py:NAME. It
            also builds the model of --compare if that was trained with --model.
        annotations: COCO annotation file with the objects of the images.
        out: HTML file to write; one that is there is replaced.
        training: Show each image as a training sample as well; needs annotations.
        compare: A second model, to show what it gains, loses and changes.
        set: Settings of the second model, such as roi_heads.nms_thresh=0.3. Without --compare the
            second model is the first one with these settings.
        score_threshold: Least score of a detection, of both models.
        device: Where the model runs: auto, cpu, cuda, cuda:1 ...
        no_exif: Read images as they are stored, without the rotation of their EXIF orientation.
        max_pixels: Refuse images with more pixels.
    """
    from maskrcnn_scratch.inference.image_jobs import JobReader, make_jobs
    from maskrcnn_scratch.inspect.report import ReportOptions, Sample, write_reports

    if training and annotations is None:
        raise UsageError("--training needs --annotations: the targets come from there")
    if not 0 <= score_threshold <= 1:
        raise UsageError(f"--score-threshold is {score_threshold}; it must be between 0 and 1")
    files = find_images(images)
    _check_out(out, files)
    trained = load(weights, score_threshold, model)
    targets: Sequence[Target | None] = [None] * len(files)
    with pixel_limit(max_pixels):
        reader = JobReader(apply_exif=not no_exif)
        pixels = [reader.read(job) for job in make_jobs({file: file.name for file in files})]
        if annotations is not None:
            targets = read_targets(annotations, files, trained, apply_exif=not no_exif)
    other, other_name = _other_model(trained, compare, set, score_threshold, model)
    place = pick_device(device)
    trained.model.to(place)
    if other is not None:
        other.to(place)
    samples = [
        Sample(file.name, image, target)
        for file, image, target in zip(files, pixels, targets, strict=True)
    ]
    options = ReportOptions(trained.class_names, Path(weights).name, training, other, other_name)
    for path in write_reports(trained.model, samples, out, options):
        print(path)
    if len(samples) > 1:
        print(f"{out}: {len(samples)} images")
    return 0


def _check_out(out: Path, files: Sequence[Path]) -> None:
    """Raises unless ``out`` can become an HTML file, before the model runs."""
    if out.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--out {out}: name a file that ends in .html")
    if out.is_dir():
        raise UsageError(f"--out {out} is a folder: name a file in it")
    if out.resolve() in {file.resolve() for file in files}:
        raise UsageError(f"--out {out} is one of the images")
    check_writable(out)


def read_targets(
    annotations: Path, files: Sequence[Path], trained: TrainedModel, apply_exif: bool = True
) -> list[Target]:
    """The objects of each image in a COCO file, found by the end of the image's path.

    Raises:
        ValueError: the file does not mention an image, or has it in another size.
    """
    from maskrcnn_scratch.data.coco import CocoDataset

    dataset = CocoDataset(annotations, files[0].parent, trained.category_labels, apply_exif)
    by_name: dict[str, list[tuple[PurePosixPath, int]]] = {}
    for index in range(len(dataset)):
        path = PurePosixPath(dataset.file_name(index))
        by_name.setdefault(path.name, []).append((path, index))
    targets: list[Target] = []
    for file in files:
        parts = file.resolve().parts
        fitting = [
            (len(path.parts), index)
            for path, index in by_name.get(file.name, [])
            if parts[-len(path.parts) :] == path.parts
        ]
        if not fitting:
            raise ValueError(f"{annotations} does not mention {file}: no file_name fits it")
        depth, index = max(fitting)
        dataset.image_folder = Path(*parts[:-depth])
        targets.append(dataset[index][1])
    return targets


def _other_model(
    trained: TrainedModel,
    compare: str | None,
    settings: tuple[str, ...],
    score_threshold: float,
    model: str | None,
) -> tuple[GeneralizedRCNN | None, str]:
    from maskrcnn_scratch.builders.from_config import model_reference
    from maskrcnn_scratch.inspect.settings import with_settings

    if compare is None and not settings:
        return None, ""
    other = trained
    if compare is not None:
        other = load(compare, score_threshold, model if model_reference(compare) else None)
    if other.class_names != trained.class_names:
        raise UsageError(f"--compare {compare}: it has other classes than --weights")
    name = ", ".join(filter(None, [compare and Path(compare).name, *settings]))
    return with_settings(other.model, settings), name
