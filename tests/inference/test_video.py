"""Videos in and out. A generated video shows a square that moves from frame to frame."""

import json
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from maskrcnn_scratch.inference import Predictor
from maskrcnn_scratch.inference.video import VideoReader, VideoWriter, predict_video
from maskrcnn_scratch.inference.writers import ResultWriter

av = pytest.importorskip("av")

TIMES = [0, 40, 80, 200, 240]  # ms; not evenly spaced
SIZE = (48, 64)


def square(index, size=SIZE):
    pixels = np.zeros((*size, 3), np.uint8)
    pixels[10:30, 5 + 6 * index : 25 + 6 * index] = 255
    return pixels


@pytest.fixture
def video(tmp_path):
    return write_video(tmp_path / "moving.mp4")


def write_video(path, size=SIZE, times=TIMES):
    with open(path, "wb") as file:
        writer = VideoWriter(file, size, Fraction(25), Fraction(1, 1000))
        for index, time in enumerate(times):
            writer.write(Image.fromarray(square(index, size)), time)
        writer.close()
    return path


class FindSquare(nn.Module):
    """The box and mask of the bright pixels."""

    def forward(self, images):
        results = []
        for image in images:
            mask = image.mean(0) > 0.5
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            box = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            results.append(
                {
                    "boxes": torch.tensor([box], dtype=torch.float32),
                    "labels": torch.tensor([1]),
                    "scores": torch.tensor([0.9]),
                    "masks": mask[None, None].float(),
                }
            )
        return results


def test_frames_and_times(video):
    reader = VideoReader(video)
    frames = list(reader)
    reader.close()
    assert reader.length == 5
    assert [frame.index for frame in frames] == [0, 1, 2, 3, 4]
    assert [round(1000 * frame.seconds) for frame in frames] == TIMES
    for frame in frames:
        assert frame.pixels.shape == (*SIZE, 3)
        assert np.abs(frame.pixels.astype(int) - square(frame.index)).mean() < 8


@pytest.mark.parametrize("size", [(48, 64), (47, 65), (48, 65)])
def test_the_annotated_video_has_the_size_and_times_of_the_input(tmp_path, size):
    if "libx264" not in av.codecs_available and (size[0] % 2 or size[1] % 2):
        pytest.skip("only libx264 writes odd sizes here")
    source = write_video(tmp_path / "in.mp4", size)
    out = tmp_path / "new" / "out.mp4"
    writer = ResultWriter({1: "square"}, {})
    reader = VideoReader(source)
    assert predict_video(Predictor(FindSquare()), reader, "in.mp4", writer, {"video": out}) == 5
    reader.close()
    before, after = (list(VideoReader(path)) for path in (source, out))
    assert [f.pixels.shape for f in after] == [f.pixels.shape for f in before]
    assert [round(1000 * f.seconds) for f in after] == TIMES
    assert all(
        np.abs(a.pixels.astype(int) - b.pixels).max() > 50
        for a, b in zip(after, before, strict=True)
    )
    assert [path.name for path in out.parent.iterdir()] == ["out.mp4"]


def test_frames_are_upright(video):
    """A telephone held upright stores a rotation: here by 90 degrees clockwise."""
    content = video.read_bytes()
    one, two = (1 << 16).to_bytes(4, "big"), (1 << 30).to_bytes(4, "big")
    zero, minus = bytes(4), (-(1 << 16)).to_bytes(4, "big", signed=True)
    identity = one + 3 * zero + one + 3 * zero + two
    turned = zero + one + zero + minus + 4 * zero + two
    start = content.index(identity, content.index(b"tkhd"))
    video.write_bytes(content[:start] + turned + content[start + len(turned) :])
    reader = VideoReader(video)
    for frame in reader:
        expected = np.rot90(square(frame.index), -1)
        assert frame.pixels.shape == expected.shape
        assert np.abs(frame.pixels.astype(int) - expected).mean() < 8
    reader.close()


@pytest.mark.parametrize("with_masks", [False, True])
def test_a_line_per_frame(video, tmp_path, with_masks):
    reader, out = VideoReader(video), tmp_path / "out.jsonl"
    done = []
    predict_video(
        Predictor(FindSquare()), reader, "a/moving.mp4", ResultWriter({1: "square"}, {}),
        {"frames": out}, with_masks=with_masks, batch_size=2, progress=lambda: done.append(1),
    )  # fmt: skip
    reader.close()
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(done) == 5 and [line["frame"] for line in lines] == [0, 1, 2, 3, 4]
    assert [round(1000 * line["seconds"]) for line in lines] == TIMES
    for index, line in enumerate(lines):
        assert (line["file_name"], line["height"], line["width"]) == ("a/moving.mp4", *SIZE)
        (detection,) = line["detections"]
        assert detection["category"] == "square"
        box = torch.tensor(detection["box"])
        expected = torch.tensor([5.0 + 6 * index, 10, 25 + 6 * index, 30])
        torch.testing.assert_close(box, expected, rtol=0, atol=1)
        assert ("segmentation" in detection) == with_masks


def test_frames_are_streamed(video, monkeypatch):
    """The model has seen the first frames before the last ones are decoded."""
    events = []

    class Logged(FindSquare):
        def forward(self, images):
            events.append("model")
            return super().forward(images)

    frames = VideoReader.__iter__

    def logged(self):
        for frame in frames(self):
            events.append("frame")
            yield frame

    monkeypatch.setattr(VideoReader, "__iter__", logged)
    reader = VideoReader(video)
    predict_video(Predictor(Logged()), reader, "x", ResultWriter({}, {}), {})
    reader.close()
    assert events.index("model") < len(events) - 1 - events[::-1].index("frame")


def test_files_that_are_no_videos(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.mp4"):
        VideoReader(tmp_path / "gone.mp4")
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    with pytest.raises(ValueError, match=r"text\.mp4: cannot be read as a video"):
        VideoReader(text)


def test_nothing_is_left_of_a_video_that_fails(video, tmp_path):
    class Fails(FindSquare):
        calls = 0

        def forward(self, images):
            self.calls += 1
            if self.calls == 3:
                raise torch.OutOfMemoryError("full")
            return super().forward(images)

    reader = VideoReader(video)
    paths = {"video": tmp_path / "out" / "a.mp4", "frames": tmp_path / "out" / "a.jsonl"}
    with pytest.raises(ValueError, match=r"moving\.mp4: frame 2: out of memory"):
        predict_video(Predictor(Fails()), reader, "x", ResultWriter({}, {}), paths)
    reader.close()
    assert list((tmp_path / "out").iterdir()) == []
