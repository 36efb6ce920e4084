"""CUDA graphs without a GPU: keys, fallbacks, copies and streams, by stand-ins for the capture."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from maskrcnn_scratch.inference.cuda_graph import WARM_UP_RUNS, CUDAGraphs, GraphCapture
from maskrcnn_scratch.mask_rcnn import MaskRCNN
from maskrcnn_scratch.ops import batched_nms_padded
from maskrcnn_scratch.structures import ImageList, StageOutputs


def image_list(*size: int, seed: int = 0) -> ImageList:
    images = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(seed))
    return ImageList(images, torch.tensor([size]))


class Capture:
    """Replays write into the outputs of the first run, as a graph does; ``fails`` by width."""

    def __init__(self, fails: tuple[int, ...] = ()) -> None:
        self.widths: list[int] = []
        self.fails = fails

    def __call__(self, run, batch: ImageList):
        width = batch.tensors.shape[-1]
        self.widths.append(width)
        if width in self.fails:
            raise torch.OutOfMemoryError("CUDA out of memory.\nand how much was asked for")
        outputs = run(batch)

        def replay(other: ImageList) -> StageOutputs:
            again = run(other)
            for name, value in again.features.items():
                outputs.features[name].copy_(value)
            for name, value in vars(again.detections).items():
                getattr(outputs.detections, name).copy_(value)
            return outputs

        return replay


@pytest.fixture
def model(small_model: MaskRCNN) -> MaskRCNN:
    return copy.deepcopy(small_model)


@torch.no_grad()
def test_what_was_returned_is_never_overwritten(model: MaskRCNN) -> None:
    graphs = CUDAGraphs(model, capture=Capture())
    batches = [image_list(96, 128, seed=seed) for seed in range(2)]
    found = [graphs(batch) for batch in batches]
    for batch, stages in zip(batches, found, strict=True):
        expected = model.run_batch(batch)
        assert torch.equal(stages.images.tensors, batch.tensors)
        assert torch.equal(stages.features["0"], expected.features["0"])
        assert torch.equal(stages.detections.boxes, expected.detections.boxes)
        assert torch.equal(stages.detections.masks, expected.detections.masks)


@torch.no_grad()
def test_a_size_that_fails_disables_no_other(model: MaskRCNN) -> None:
    capture = Capture(fails=(96,))
    graphs = CUDAGraphs(model, capture=capture)
    with pytest.warns(UserWarning, match="1 x 3 x 96 x 96 run without CUDA graph") as caught:
        stages = graphs(image_list(96, 96))
    assert "how much" not in str(caught[0].message)
    expected = model.run_batch(image_list(96, 96))
    assert torch.equal(stages.detections.boxes, expected.detections.boxes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough
        graphs(image_list(96, 96))
        graphs(image_list(96, 128))
        graphs(image_list(96, 128))
    assert capture.widths == [96, 128]


@torch.no_grad()
@pytest.mark.parametrize(
    "stage, name, value",
    [
        ("roi_heads", "score_thresh", 0.9),
        ("roi_heads", "nms_thresh", 0.01),
        ("roi_heads", "detections_per_img", 1),
        ("roi_heads", "min_size", 50.0),
        ("rpn", "nms_thresh", 0.01),
        ("rpn", "post_nms_top_n", {"training": 5, "testing": 5}),
        ("rpn", "nms", lambda *arguments: batched_nms_padded(*arguments[:4], 3, 5)),
    ],
)
def test_a_changed_setting_is_captured_anew(
    model: MaskRCNN, stage: str, name: str, value: object
) -> None:
    capture = Capture()
    graphs = CUDAGraphs(model, capture=capture)
    graphs(image_list(96, 96))
    setattr(getattr(model, stage), name, value)
    changed = graphs(image_list(96, 96))
    assert len(capture.widths) == 2
    expected = model.run_batch(image_list(96, 96))
    assert torch.equal(changed.detections.scores, expected.detections.scores)
    graphs(image_list(96, 96))
    assert len(capture.widths) == 2


@torch.no_grad()
def test_a_replaced_module_is_captured_anew(model: MaskRCNN) -> None:
    capture = Capture()
    graphs = CUDAGraphs(model, capture=capture)
    graphs(image_list(96, 96))
    graphs(image_list(96, 96))
    assert len(capture.widths) == 1
    stage = model.backbone.body["layer1"]
    model.backbone.body["layer1"] = copy.deepcopy(stage)
    graphs(image_list(96, 96))
    assert len(capture.widths) == 2


class FakeCuda:
    """The part of ``torch.cuda`` that a capture uses; work is done when it is queued."""

    def __init__(self, fails: Exception | None = None, empty: bool = False) -> None:
        self.fails, self.empty = fails, empty
        self.current, self.devices = "default stream", ["cuda:0"]
        self.modes: list[str] = []
        self.log: list[str] = []

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        self.devices.append(str(device))
        yield
        self.devices.pop()

    def Stream(self, device: torch.device) -> SimpleNamespace:
        return SimpleNamespace(name="side", wait_stream=lambda other: None)

    def current_stream(self, device: torch.device) -> object:
        stream = SimpleNamespace(wait_stream=lambda other: None)
        self.current = stream
        return stream

    def set_stream(self, stream: object) -> None:
        self.current = stream

    @contextmanager
    def stream(self, stream: object) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before

    def graph_pool_handle(self) -> str:
        return "pool"

    def CUDAGraph(self) -> SimpleNamespace:
        return SimpleNamespace(replay=lambda: self.log.append(f"replay on {self.devices[-1]}"))

    @contextmanager
    def graph(
        self, graph: object, *, pool: object, stream: object, capture_error_mode: str
    ) -> Iterator[None]:
        self.current = stream  # as torch.cuda.graph, which leaves it so when the capture fails
        self.modes.append(capture_error_mode)
        self.log.append(f"capture on {self.devices[-1]}")
        yield
        if self.fails:
            raise self.fails
        if self.empty:
            warnings.warn("The CUDA Graph is empty. This usually means ...", stacklevel=1)
        self.current = "restored by torch"


class OnDevice:
    """A tensor that says it is on ``cuda:1``."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.device = tensor, torch.device("cuda:1")

    def clone(self) -> Tensor:
        return self.tensor.clone()


def on_device(batch: ImageList) -> ImageList:
    return ImageList(OnDevice(batch.tensors), batch.sizes)  # type: ignore[arg-type]


def test_capture_on_the_images_device_with_other_threads_left_alone() -> None:
    cuda, runs = FakeCuda(), []
    replay = GraphCapture(cuda)(lambda batch: runs.append(batch), on_device(image_list(8, 8)))
    assert len(runs) == WARM_UP_RUNS + 1
    replay(image_list(8, 8, seed=1))
    assert cuda.log == ["capture on cuda:1", "replay on cuda:1"]
    assert cuda.modes == ["thread_local"]
    assert torch.equal(runs[-1].tensors, image_list(8, 8, seed=1).tensors)  # the held input


def test_inputs_captured_in_inference_mode_are_written_outside_of_it() -> None:
    cuda, runs = FakeCuda(), []
    with torch.inference_mode():
        replay = GraphCapture(cuda)(lambda batch: runs.append(batch), on_device(image_list(8, 8)))
    with torch.no_grad():
        replay(image_list(8, 8, seed=1))
    assert not runs[-1].tensors.is_inference()


@pytest.mark.parametrize("fails", [RuntimeError("capture failed"), torch.OutOfMemoryError("full")])
def test_the_stream_is_restored_after_a_failed_capture(fails: Exception) -> None:
    cuda = FakeCuda(fails)
    with pytest.raises(RuntimeError):
        GraphCapture(cuda)(lambda batch: None, on_device(image_list(8, 8)))
    assert getattr(cuda.current, "name", "") != "side"


def test_an_empty_capture_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="nothing was captured: The CUDA Graph is empty"):
        GraphCapture(FakeCuda(empty=True))(lambda batch: None, on_device(image_list(8, 8)))
