"""``maskrcnn predict``: detections of a model in images, as overlay images and as data."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from maskrcnn_scratch.cli import FAILURE, UsageError, pick_device
from maskrcnn_scratch.cli.images import check_outputs, numbered_folder
from maskrcnn_scratch.cli.load import load
from maskrcnn_scratch.data.pixel_limit import MAX_PIXELS

if TYPE_CHECKING:
    from maskrcnn_scratch.inference.writers import Format

DEFAULT_OUT = Path("runs/predict")
Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]


def predict(
    images: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="IMAGE [IMAGE ...]", help_behavior_hint=""),
    ] = (),
    weights: str = "COCO_V1",
    model: str | None = None,
    annotations: Path | None = None,
    score_threshold: float = 0.5,
    format: Annotated[
        tuple[tuple[Literal["png", "jpg", "json", "coco", "rle"], ...], ...],
        tyro.conf.UseAppendAction,
        tyro.conf.arg(help_behavior_hint="(default: png and json)"),
    ] = (),
    out: Annotated[
        Path | None,
        tyro.conf.arg(help_behavior_hint="(default: runs/predict, or runs/predict-2, -3, ...)"),
    ] = None,
    overwrite: Flag = False,
    labels: Literal["auto", "all", "none"] = "auto",
    color_by: Literal["instance", "class"] = "instance",
    no_exif: Flag = False,
    all_pages: Flag = False,
    max_pixels: int = MAX_PIXELS,
    device: str = "auto",
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    winograd: Flag = False,
    batch_size: int = 1,
    tile: int | None = None,
    overlap: float = 0.2,
) -> int:
    """Detect objects in images and videos.

    Formats: png and jpg are the image with boxes, class names and masks. json has boxes, labels and
    scores; rle has masks as well, as COCO RLE. coco is one file for all images, in COCO's results
    format. For a video, png and jpg give an annotated video, json and rle a line of JSON per frame.

    If an image cannot be read, the others are still processed, and the exit status is 1.

    Args:
        images: Images, videos, folders, or glob patterns in quotes. Folders are searched
            recursively. Optional with --annotations.
        weights: COCO_V1 (downloaded), a weights file or checkpoint of maskrcnn train, or its
            address: https://HOST/FILE#sha256=DIGITS or hf://OWNER/NAME/FILE.
        model: Your function build(config, num_classes), as for maskrcnn train: FILE.py:NAME.
        annotations: COCO annotation file. Results get its image ids, file names and category ids;
            images that it does not list are ignored.
        score_threshold: Drop detections with lower scores.
        format: Formats to write.
        out: Output folder.
        overwrite: Replace existing files.
        labels: Names and scores on overlays. auto: smaller where there are many, without those that
            would cover other objects.
        color_by: Colours of overlays: one per instance, or one per class.
        no_exif: Read images as they are stored, without the rotation of their EXIF orientation.
        all_pages: Process every page of a document and every frame of an animation, not only the
            first.
        max_pixels: Refuse images with more pixels.
        device: Device of the model: auto, cpu, cuda, cuda:1 ...
        precision: Precision of the networks. bf16 is for hardware with bf16 arithmetic.
        winograd: Compute 3x3 convolutions by Winograd's algorithm (CPU, fp32). Results differ by
            rounding.
        batch_size: Largest number of images per batch. Only images that are padded to the same
            size form a batch, since padding changes results: they do not depend on this option,
            except for rounding.
        tile: Also run the model on square tiles of so many pixels, and merge what it finds: for
            small objects in large images. Then --batch-size is the number of tiles per batch.
        overlap: Of neighbouring tiles, as a share of --tile: at least the size of small objects.
    """
    import torch

    from maskrcnn_scratch.cli.predict_files import find_inputs, find_listed, run_images, run_videos
    from maskrcnn_scratch.data.categories import match_categories, warn_about_classes
    from maskrcnn_scratch.data.pixel_limit import pixel_limit
    from maskrcnn_scratch.inference.image_jobs import JobReader, read_annotations
    from maskrcnn_scratch.inference.optimize import PRECISIONS, optimize
    from maskrcnn_scratch.inference.predictor import Predictor
    from maskrcnn_scratch.inference.tiles import TiledPredictor
    from maskrcnn_scratch.inference.video import import_av
    from maskrcnn_scratch.inference.visualize import draw_detections
    from maskrcnn_scratch.inference.writers import ResultWriter, plan_outputs

    _check_options(score_threshold, batch_size, max_pixels, all_pages, annotations, tile, overlap)
    place = pick_device(device)
    if winograd and (torch.device(place).type != "cpu" or precision != "fp32"):
        raise UsageError("--winograd needs --device cpu and --precision fp32")
    formats: tuple[Format, ...] = tuple(dict.fromkeys(chain(*format))) or ("png", "json")
    listed, videos = None, dict[Path, str]()
    with pixel_limit(max_pixels):
        if annotations is not None:
            listed = read_annotations(annotations)
            jobs = find_listed(images, annotations, listed, out or DEFAULT_OUT)
        else:
            jobs, videos = find_inputs(images, all_pages, out or DEFAULT_OUT)
    video_formats = formats_of_videos(formats)
    if videos:
        import_av()  # fails early
        if not video_formats:
            raise UsageError(f"{next(iter(videos))}: --format coco is for images")

    def plan(folder: Path) -> tuple[list[dict[Format, Path]], list[dict[Format, Path]]]:
        names = [str(Path(name).with_suffix("")) for name in videos.values()]
        return (
            plan_outputs([job.output_name for job in jobs], folder, formats),
            plan_outputs(names, folder, video_formats),
        )

    if out is not None or overwrite:
        out = out or DEFAULT_OUT
        planned = [path for paths in chain(*plan(out)) for path in paths.values()]
        check_outputs([*(job.file for job in jobs), *videos], planned, overwrite)

    trained = load(weights, score_threshold, model)
    category_labels = trained.category_labels
    if annotations is not None and listed is not None:
        category_labels = match_categories(listed.categories, trained.class_names, category_labels)
        warn_about_classes(
            annotations,
            listed.categories,
            category_labels,
            trained.class_names,
            "the model",
            listed.used_categories,
        )
    fast = optimize(trained.model.to(place), dtype=PRECISIONS[precision], winograd=winograd)
    predictor = Predictor(fast) if tile is None else TiledPredictor(fast, tile, overlap, batch_size)
    images_per_batch = batch_size if tile is None else 1
    draw = partial(draw_detections, labels=labels, color_by=color_by)
    writer = ResultWriter(trained.class_names, category_labels, draw)
    if out is None:
        out = numbered_folder(DEFAULT_OUT)
    out.mkdir(parents=True, exist_ok=True)
    image_outputs, video_outputs = plan(out)
    failed = 0
    if jobs:
        reader = JobReader(apply_exif=not no_exif)
        with pixel_limit(max_pixels):
            bad = run_images(jobs, predictor, writer, image_outputs, reader, images_per_batch)
        print(f"{len(jobs) - bad} of {len(jobs)} images done, results in {out}")
        failed += bad
    if videos:
        bad = run_videos(
            videos, predictor, writer, video_outputs, "rle" in formats, images_per_batch
        )
        print(f"{len(videos) - bad} of {len(videos)} videos done, results in {out}")
        failed += bad
    return FAILURE if failed else 0


def formats_of_videos(formats: Sequence[Format]) -> tuple[Format, ...]:
    """The files of a video: png and jpg stand for the video, json and rle for its frames."""
    found: list[Format] = []
    if {"png", "jpg"} & {*formats}:
        found.append("video")
    if {"json", "rle"} & {*formats}:
        found.append("frames")
    return tuple(found)


def _check_options(
    score_threshold: float,
    batch_size: int,
    max_pixels: int,
    all_pages: bool,
    annotations: Path | None,
    tile: int | None,
    overlap: float,
) -> None:
    if batch_size < 1:
        raise UsageError(f"--batch-size is {batch_size}; it must be at least 1")
    if max_pixels < 1:
        raise UsageError(f"--max-pixels is {max_pixels}; it must be at least 1")
    if not 0 <= score_threshold <= 1:
        raise UsageError(f"--score-threshold is {score_threshold}; it must be between 0 and 1")
    if tile is not None and tile < 32:
        raise UsageError(f"--tile is {tile}; it must be at least 32")
    if not 0 <= overlap <= 0.9:
        raise UsageError(f"--overlap is {overlap}; it must be between 0 and 0.9")
    if all_pages and annotations is not None:
        raise UsageError("give either --all-pages or --annotations: these have one id per file")
