"""Videos: frames in, an annotated video and one JSON line per frame out. Needs PyAV.

Shapes: H, W height and width of a frame as it is shown.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from importlib import import_module
from os import PathLike
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from maskrcnn_scratch.data.image import check_is_file
from maskrcnn_scratch.files import write_atomically
from maskrcnn_scratch.inference.predictor import Predictor
from maskrcnn_scratch.inference.writers import Format, ResultWriter

# Of the encoders of PyAV's builds, the best first.
_ENCODERS = ("libx264", "libopenh264", "mpeg4")
_DEFAULT_RATE = Fraction(25)


@dataclass(frozen=True, eq=False)
class Frame:
    """A frame of a video.

    Attributes:
        index: from 0.
        pts: when it is shown, in units of the video's time base.
        seconds: the same in seconds.
        pixels: RGB uint8 ``[H, W, 3]``.
    """

    index: int
    pts: int
    seconds: float
    pixels: np.ndarray


class VideoReader:
    """The frames of a video file, one at a time.

    Args:
        path: of the file.

    Attributes:
        length: number of frames, 0 if the file does not say.
        rate: frames per second, on average.
        time_base: unit of ``Frame.pts`` in seconds.

    Raises:
        ImportError: PyAV is not installed.
        FileNotFoundError, ValueError: no such file, or it has no video. Both name it.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        av = import_av()
        check_is_file(path)
        self.path = path
        try:
            self._container = av.open(str(path))
            if not self._container.streams.video:
                self._container.close()
                raise ValueError("it has no video stream")
        except (av.FFmpegError, ValueError) as error:
            raise ValueError(f"{path}: cannot be read as a video ({error})") from None
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "AUTO"
        self.length: int = self._stream.frames
        self.rate: Fraction = self._stream.average_rate or _DEFAULT_RATE
        self.time_base: Fraction = self._stream.time_base or 1 / self.rate

    def __iter__(self) -> Iterator[Frame]:
        """The frames in order, upright. A ValueError names the file and the damaged frame."""
        av = import_av()
        index, last = 0, -1
        try:
            for index, frame in enumerate(self._container.decode(self._stream)):
                pixels = frame.to_ndarray(format="rgb24")
                if frame.rotation:
                    pixels = np.ascontiguousarray(np.rot90(pixels, frame.rotation // 90))
                pts = frame.pts
                if pts is None:
                    pts = round(index / self.rate / self.time_base)
                last = max(pts, last + 1)  # encoders refuse a time twice
                yield Frame(index, last, float(last * self.time_base), pixels)
        except av.FFmpegError as error:
            raise ValueError(f"{self.path}: cannot be read after frame {index} ({error})") from None

    def close(self) -> None:
        self._container.close()


class VideoWriter:
    """Writes frames to an MP4 file.

    Args:
        file: is written and sought in.
        size: (H, W) of all frames.
        rate: frames per second, on average.
        time_base: unit of the frames' times in seconds.
    """

    def __init__(
        self, file: IO[bytes], size: tuple[int, int], rate: Fraction, time_base: Fraction
    ) -> None:
        self._av = import_av()
        encoder = next(name for name in _ENCODERS if name in self._av.codecs_available)
        self._container = self._av.open(file, "w", format="mp4")
        self._stream = self._container.add_stream(encoder, rate=rate)
        self._stream.height, self._stream.width = size
        # Most players know only the format whose colours have half the resolution, and that needs
        # even sides.
        even = size[0] % 2 == size[1] % 2 == 0
        self._stream.pix_fmt = "yuv420p" if even or encoder != "libx264" else "yuv444p"
        self._time_base = time_base
        self._stream.codec_context.time_base = time_base

    def write(self, picture: Image.Image, pts: int) -> None:
        """Adds a frame that is shown at ``pts``."""
        frame = self._av.VideoFrame.from_image(picture)
        frame.pts, frame.time_base = pts, self._time_base
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Writes what the encoder holds back and the end of the file."""
        self._container.mux(self._stream.encode(None))
        self._container.close()


def predict_video(
    predictor: Predictor,
    reader: VideoReader,
    file_name: str,
    writer: ResultWriter,
    paths: Mapping[Format, Path],
    *,
    with_masks: bool = False,
    batch_size: int = 1,
    progress: Callable[[], object] = lambda: None,
) -> int:
    """Detects objects in every frame, and writes the files in ``paths``, whole or not at all.

    ``video`` of ``paths`` is the video with the detections drawn on it, at the times of the input
    and without its sound. ``frames`` has a line of JSON per frame: file, file_name, frame (from
    0), seconds, height, width, and detections as in the ``json`` format. Objects are not tracked.

    Args:
        predictor: its model.
        reader: the video.
        file_name: its name in the results.
        writer: draws and describes the detections.
        paths: one or both of ``video`` and ``frames``.
        with_masks: adds masks to the lines, as RLE.
        batch_size: number of frames per batch.
        progress: called after each frame.

    Returns:
        The number of frames.

    Raises:
        ValueError: there is no frame, or one cannot be read or does not fit into memory.
        OSError: a file cannot be written.
    """

    def write(files: Mapping[Format, IO[bytes]]) -> int:
        encoder: VideoWriter | None = None
        count = 0
        for frame, image, result in _detect(predictor, reader, batch_size):
            size = (image.shape[1], image.shape[2])
            if "frames" in files:
                kept = {key: value for key, value in result.items() if key != "masks"}
                line = {
                    "file": str(reader.path),
                    "file_name": file_name,
                    "frame": frame.index,
                    "seconds": frame.seconds,
                    "height": size[0],
                    "width": size[1],
                    "detections": writer.describe(result if with_masks else kept),
                }
                files["frames"].write(json.dumps(line).encode() + b"\n")
            if "video" in files:
                if encoder is None:
                    encoder = VideoWriter(files["video"], size, reader.rate, reader.time_base)
                encoder.write(writer.draw(image, result, writer.class_names), frame.pts)
            count += 1
            progress()
        if not count:
            raise ValueError(f"{reader.path}: the video has no frame")
        if encoder is not None:
            encoder.close()
        return count

    return _write_all(dict(paths), {}, write)


def _write_all(
    paths: dict[Format, Path],
    files: dict[Format, IO[bytes]],
    write: Callable[[Mapping[Format, IO[bytes]]], int],
) -> int:
    """Calls ``write`` with a file for each of ``paths``; they appear when it has returned."""
    if not paths:
        return write(files)
    kind, path = paths.popitem()
    path.parent.mkdir(parents=True, exist_ok=True)
    counts: list[int] = []
    write_atomically(
        path, lambda file: counts.append(_write_all(paths, {**files, kind: file}, write))
    )
    return counts[0]


def _detect(
    predictor: Predictor, reader: VideoReader, batch_size: int
) -> Iterator[tuple[Frame, Tensor, Mapping[str, Any]]]:
    """Each frame, its image ``[3, H, W]`` and detections. Few frames are in memory at a time."""
    waiting: deque[Frame] = deque()

    def pixels() -> Iterator[np.ndarray]:
        for frame in reader:
            waiting.append(frame)
            yield frame.pixels

    with closing(predictor.stream(pixels(), batch_size)) as predictions:
        for prediction in predictions:
            frame = waiting.popleft()
            try:
                result = prediction.encoded()
            except (ValueError, torch.OutOfMemoryError) as error:
                raise ValueError(f"{reader.path}: frame {frame.index}: {error}") from None
            assert prediction.image is not None
            yield frame, prediction.image, result


def import_av() -> ModuleType:
    """PyAV; raises an ImportError that says how to install it."""
    try:
        return import_module("av")
    except ImportError:
        raise ImportError("videos need PyAV: pip install 'maskrcnn_scratch[video]'") from None
