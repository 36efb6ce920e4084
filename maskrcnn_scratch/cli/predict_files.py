"""The work of ``maskrcnn predict``: which files it reads, and a loop over images or videos."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from maskrcnn_scratch.cli import UsageError
from maskrcnn_scratch.cli.images import IMAGE_SUFFIXES, VIDEO_SUFFIXES, find_files
from maskrcnn_scratch.data.image_folder import find_image_folder, locate_image
from maskrcnn_scratch.inference.image_jobs import (
    Annotations,
    ImageJob,
    JobReader,
    make_jobs,
    match_entries,
)
from maskrcnn_scratch.inference.predictor import Prediction, Predictor
from maskrcnn_scratch.inference.prefetch import map_ahead
from maskrcnn_scratch.inference.video import VideoReader, predict_video
from maskrcnn_scratch.inference.writers import Format, ResultWriter


def find_inputs(
    arguments: Sequence[str], all_pages: bool, skip: Path
) -> tuple[list[ImageJob], dict[Path, str]]:
    """The images and the videos of the arguments; videos with their names in the results.

    Raises:
        UsageError: as ``find_files``.
    """
    files = find_files(arguments, (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES), skip)
    videos = {file: name for file, name in files.items() if file.suffix.lower() in VIDEO_SUFFIXES}
    images = {file: name for file, name in files.items() if file not in videos}
    return make_jobs(images, all_pages), videos


def find_listed(
    arguments: Sequence[str], annotations: Path, listed: Annotations, skip: Path
) -> list[ImageJob]:
    """The images of an annotation file, or those of them that the arguments name.

    Raises:
        UsageError: no image was found, or the annotations list none of those found.
    """
    if not arguments:
        folder = find_image_folder(annotations)
        try:
            files = [locate_image(folder, name) for name in listed.entries]
        except ValueError as error:
            reason = str(error).partition(";")[0]
            raise UsageError(f"{annotations}: {reason}; give the images as arguments") from None
        found = list(zip(files, listed.entries.values(), strict=True))
    else:
        files = list(find_files(arguments, IMAGE_SUFFIXES, skip))
        matches = match_entries(files, listed.entries)
        found = [(file, entry) for file, entry in zip(files, matches, strict=True) if entry]
        if unknown := [file for file, entry in zip(files, matches, strict=True) if not entry]:
            text = f"{len(unknown)} of {len(files)} images are not in {annotations}"
            if not found:
                raise UsageError(f"{text}, such as {unknown[0]}")
            warnings.warn(f"{text} and are ignored, such as {unknown[0]}", stacklevel=1)
        if missing := len(listed.entries) - len(found):
            warnings.warn(
                f"{missing} of {len(listed.entries)} images of {annotations} are not among the "
                "images: their objects will count as missed",
                stacklevel=1,
            )
    return [
        ImageJob(file, entry.file_name, entry.image_id, size=entry.size) for file, entry in found
    ]


def run_images(
    jobs: Sequence[ImageJob],
    predictor: Predictor,
    writer: ResultWriter,
    outputs: Sequence[Mapping[Format, Path]],
    reader: JobReader,
    batch_size: int,
) -> int:
    """Predicts images and writes their results; returns the number of those that failed."""
    predictions = predictor.stream((partial(reader.read, job) for job in jobs), batch_size)

    def write(todo: tuple[ImageJob, Mapping[Format, Path], Prediction]) -> str:
        job, paths, prediction = todo
        found = prediction.encoded()
        assert prediction.image is not None
        return writer.write(job, prediction.image, found, paths)

    # Threads read the next images and write the last results while the model runs.
    written = map_ahead(write, zip(jobs, outputs, predictions, strict=True), threads=1, ahead=2)
    failed = 0
    bar = tqdm(total=len(jobs), unit=" images", disable=None, leave=False)
    try:
        with closing(written), bar:
            for job, writing in zip(jobs, written, strict=True):
                try:
                    found = writing.result()
                except (FileNotFoundError, ValueError, torch.OutOfMemoryError) as error:
                    failed += 1
                    _report(job.file, error)
                else:
                    page = "" if job.page is None else f" page {job.page + 1}"
                    tqdm.write(f"{job.file}{page}: {found}")
                bar.update()
    finally:  # after Ctrl-C, too: keep the results so far
        if jobs and "coco" in outputs[0]:
            writer.write_coco(outputs[0]["coco"])
    return failed


def run_videos(
    videos: Mapping[Path, str],
    predictor: Predictor,
    writer: ResultWriter,
    outputs: Sequence[Mapping[Format, Path]],
    with_masks: bool,
    batch_size: int,
) -> int:
    """Predicts videos and writes their results; returns the number of those that failed."""
    failed = 0
    for (file, name), paths in zip(videos.items(), outputs, strict=True):
        try:
            with (
                closing(VideoReader(file)) as reader,
                tqdm(total=reader.length or None, unit=" frames", disable=None, leave=False) as bar,
            ):
                count = predict_video(
                    predictor, reader, name, writer, paths,
                    with_masks=with_masks, batch_size=batch_size, progress=bar.update,
                )  # fmt: skip
        except (FileNotFoundError, ValueError) as error:
            failed += 1
            _report(file, error)
        else:
            tqdm.write(f"{file}: {count} frames")
    return failed


def _report(file: Path, error: Exception) -> None:
    text = str(error) if str(file) in str(error) else f"{file}: {error}"
    tqdm.write(f"maskrcnn predict: error: {text}", file=sys.stderr)
