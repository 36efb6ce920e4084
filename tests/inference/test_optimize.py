"""An optimised model finds what the model finds, and the model itself stays as it is."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from maskrcnn_scratch import MaskRCNN, fasterrcnn_resnet50_fpn_v2
from maskrcnn_scratch.backbone import FrozenBatchNorm2d
from maskrcnn_scratch.inference import Predictor, optimize
from maskrcnn_scratch.inference.cuda_graph import CUDAGraphs, GraphCapture
from maskrcnn_scratch.inference.optimize import MergedRPNHead
from maskrcnn_scratch.structures import ImageList, StageOutputs
from tests.weights.same_detections import assert_same_detections

BATCH_NORMS = (nn.BatchNorm2d, FrozenBatchNorm2d)


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.mark.slow
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_folded_model_finds_the_same(
    model: MaskRCNN, photograph: Tensor, memory_format: torch.memory_format
) -> None:
    before = copy.deepcopy(model.state_dict())
    optimized = optimize(model, memory_format=memory_format)
    assert not any(isinstance(module, BATCH_NORMS) for module in optimized.modules())
    assert isinstance(optimized.rpn.head, MergedRPNHead)
    finest = optimized.run_stages([photograph]).features["0"]
    assert finest.is_contiguous(memory_format=memory_format)
    assert_same_detections(optimized([photograph]), model([photograph]))
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert len(after) == len(before)


@pytest.mark.slow
def test_batch_norm_that_learned_is_folded_too() -> None:
    torch.manual_seed(0)
    model = fasterrcnn_resnet50_fpn_v2(
        weights_backbone=None, num_classes=5, min_size=96, box_score_thresh=0.0
    ).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 2)
            module.weight.uniform_(0.5, 1)
    optimized = optimize(model)
    assert not any(isinstance(module, BATCH_NORMS) for module in optimized.modules())
    image = torch.rand(3, 96, 120)
    assert_same_detections(optimized([image]), model([image]))


@pytest.mark.slow
def test_batch_norm_stays_where_it_is_not_to_be_folded(model: MaskRCNN) -> None:
    kept = optimize(model, fold_batch_norm=False)
    assert any(isinstance(module, FrozenBatchNorm2d) for module in kept.modules())


@pytest.mark.slow
def test_networks_in_bfloat16_boxes_in_float32(model: MaskRCNN, photograph: Tensor) -> None:
    stages = optimize(model, dtype=torch.bfloat16).run_stages([photograph])
    expected = model.run_stages([photograph])
    assert all(feature.dtype == torch.bfloat16 for feature in stages.features.values())
    for name, feature in stages.features.items():
        off = (feature.float() - expected.features[name]).norm() / expected.features[name].norm()
        assert off < 3e-2, name  # each of 50 layers rounds to 8 bits
    assert torch.equal(stages.anchors, expected.anchors)
    found = vars(stages.detections)
    for name in ("boxes", "scores", "masks"):
        assert found[name].dtype == torch.float32


@pytest.mark.slow
def test_predictor_gives_an_optimized_model_what_it_takes(
    model: MaskRCNN, photograph: Tensor
) -> None:
    optimized = optimize(model, dtype=torch.bfloat16)
    found, expected = Predictor(optimized)(photograph), optimized([photograph])[0]
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.slow
def test_autocast_leaves_boxes_in_float32(model: MaskRCNN, photograph: Tensor) -> None:
    expected = model.run_stages([photograph])
    with torch.autocast("cpu", torch.bfloat16):
        stages = model.run_stages([photograph])
    assert stages.features["0"].dtype == torch.bfloat16
    assert torch.equal(stages.anchors, expected.anchors)
    for boxes in (stages.proposals.boxes, stages.detections.boxes):
        assert boxes.dtype == torch.float32
        assert (boxes != boxes.bfloat16()).any()


@pytest.mark.slow
def test_compiled_model_finds_the_same(small_model: MaskRCNN) -> None:
    image = torch.rand(3, 96, 128, generator=torch.Generator().manual_seed(0))
    compiled = optimize(small_model, compile=True)
    assert_same_detections(compiled([image]), small_model([image]))


def test_options_that_make_no_sense_are_refused(small_model: MaskRCNN) -> None:
    with pytest.raises(ValueError, match=r"dtype is torch\.int8"):
        optimize(small_model, dtype=torch.int8)


class Capture:
    """Stands in for the capture on a GPU: replays write into the outputs of the first run."""

    def __init__(self) -> None:
        self.sizes: list[tuple[int, ...]] = []

    def __call__(self, run, batch: ImageList):
        self.sizes.append(tuple(batch.tensors.shape))
        outputs = run(batch)

        def replay(other: ImageList) -> StageOutputs:
            again = run(other)
            for name, value in vars(again.detections).items():
                getattr(outputs.detections, name).copy_(value)
            return outputs

        return replay


def image_list(*size: int, seed: int = 0) -> ImageList:
    images = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(seed))
    return ImageList(images, torch.tensor([size]))


def test_one_graph_a_size_and_no_more_than_allowed(small_model: MaskRCNN) -> None:
    capture = Capture()
    graphs = CUDAGraphs(copy.deepcopy(small_model), max_sizes=2, capture=capture)
    first, second = (graphs(image_list(96, 128, seed=seed)) for seed in range(2))
    assert len(capture.sizes) == 1
    for seed, stages in enumerate((first, second)):  # the second run leaves the first's as they are
        expected = small_model.run_batch(image_list(96, 128, seed=seed)).detections
        assert torch.equal(stages.detections.boxes, expected.boxes)
        assert torch.equal(stages.detections.masks, expected.masks)
    graphs(image_list(128, 96))
    graphs(image_list(96, 128))  # used again: 128 x 96 is now the oldest
    graphs(image_list(96, 96))
    graphs(image_list(96, 128))
    assert [size[2:] for size in capture.sizes] == [(96, 128), (128, 96), (96, 96)]
    graphs(image_list(128, 96))
    assert capture.sizes[3][2:] == (128, 96)


def test_other_weights_are_captured_anew(small_model: MaskRCNN) -> None:
    capture, model = Capture(), copy.deepcopy(small_model)
    graphs = CUDAGraphs(model, capture=capture)
    graphs(image_list(96, 96))
    weight = model.roi_heads.box_predictor.cls_score.weight
    weight.copy_(weight.flip(0))  # in place: the graph reads the same memory
    graphs(image_list(96, 96))
    assert len(capture.sizes) == 1
    model.roi_heads.box_predictor.cls_score.weight = nn.Parameter(weight.clone())
    graphs(image_list(96, 96))
    assert len(capture.sizes) == 2


def test_the_compiled_function_is_captured(small_model: MaskRCNN, monkeypatch) -> None:
    """And it runs alone where nothing can be captured."""
    runs = []

    def compile(run, **options):
        assert options["fullgraph"]
        return lambda batch: runs.append(tuple(batch.tensors.shape[2:])) or run(batch)

    monkeypatch.setattr(torch, "compile", compile)
    optimized = optimize(small_model, compile=True, cuda_graph=True)
    graphs = optimized.run_batch
    assert isinstance(graphs, CUDAGraphs)
    graphs.capture = Capture()
    image = torch.rand(3, 96, 128, generator=torch.Generator().manual_seed(0))
    assert_same_detections(optimized([image]), small_model([image]))
    assert len(graphs.capture.sizes) == 1 and runs == [(96, 128)] * 2  # capture and replay
    graphs.capture = GraphCapture()
    with pytest.warns(UserWarning, match="without CUDA graph: the images are on cpu"):
        found = optimized([image.mT])
    assert runs[2:] == [(128, 96)]
    assert_same_detections(found, small_model([image.mT]))


def test_what_cannot_be_captured_runs_and_says_why(small_model: MaskRCNN) -> None:
    optimized = optimize(small_model, fold_batch_norm=False, cuda_graph=True)
    image = torch.rand(3, 96, 96, generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match="without CUDA graph: the images are on cpu"):
        found = optimized([image])
    assert_same_detections(found, small_model([image]))
