"""Targets of anchors, proposals and masks equal torchvision's."""

import pytest
import torch
from torchvision.models.detection import _utils as torchvision_utils
from torchvision.models.detection import roi_heads as torchvision_roi_heads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import box_iou

from maskrcnn_scratch import host_sync
from maskrcnn_scratch.ops.boxes import BoxCoder
from maskrcnn_scratch.parity.stages import pad_proposals
from maskrcnn_scratch.targets import roi_targets
from maskrcnn_scratch.targets.matcher import Matcher
from maskrcnn_scratch.targets.roi_targets import project_masks_on_boxes, select_training_samples
from maskrcnn_scratch.targets.rpn_targets import assign_targets_to_anchors
from maskrcnn_scratch.targets.sampler import BalancedPositiveNegativeSampler


def random_boxes(count, size=200.0):
    corners = torch.rand(count, 2, 2) * size
    return torch.cat((corners.amin(1), corners.amax(1) + 1), dim=1)


def jittered(boxes, copies):
    return boxes.repeat(copies, 1) + torch.randn(len(boxes) * copies, 4)


def random_targets(counts):
    return [
        {"boxes": random_boxes(count), "labels": torch.randint(1, 5, (count,))} for count in counts
    ]


def test_anchor_targets_equal_torchvision():
    torch.manual_seed(0)
    targets = random_targets([5, 0, 60])
    anchors = [torch.cat((random_boxes(2000), jittered(t["boxes"], 3))) for t in targets]

    class Rpn(RegionProposalNetwork):
        def __init__(self):
            torch.nn.Module.__init__(self)
            self.box_similarity = box_iou
            self.proposal_matcher = torchvision_utils.Matcher(0.7, 0.3, True)

    expected_labels, expected_boxes = Rpn().assign_targets_to_anchors(anchors, targets)
    gt_boxes = [target["boxes"] for target in targets]
    labels, boxes = assign_targets_to_anchors(anchors, gt_boxes, Matcher(0.7, 0.3, True))
    for image in range(3):
        assert labels[image].dtype == torch.float32
        assert torch.equal(labels[image], expected_labels[image])
        if image == 1:
            assert torch.equal(boxes[image], anchors[image])
        else:
            assert torch.equal(boxes[image], expected_boxes[image])
    assert set(labels[0].tolist()) == {-1, 0, 1} and set(labels[1].tolist()) == {0}


def test_selected_samples_equal_torchvision():
    torch.manual_seed(0)
    targets = random_targets([5, 0, 60, 1])
    proposals = [torch.cat((random_boxes(600), jittered(t["boxes"], 5))) for t in targets]
    reference = torchvision_roi_heads.RoIHeads(
        None, None, None, 0.5, 0.5, 512, 0.25, None, 0.05, 0.5, 100
    )
    torch.manual_seed(1)
    expected = reference.select_training_samples([p.clone() for p in proposals], targets)
    torch.manual_seed(1)
    samples = select_training_samples(
        pad_proposals(proposals),
        targets,
        Matcher(0.5, 0.5),
        BalancedPositiveNegativeSampler(512, 0.25),
        BoxCoder((10.0, 10.0, 5.0, 5.0)),
    )
    for ours, theirs in zip(samples[:3], expected[:3], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    for image in (0, 2, 3):
        assert torch.equal(samples.regression_targets[image], expected[3][image])
    assert (samples.regression_targets[1] == 0).all() and (samples.labels[1] == 0).all()
    assert [len(boxes) for boxes in samples.proposals] == [512, 512, 512, 512]
    assert (samples.labels[2] > 0).sum() == 128
    for labels, objects in zip(samples.labels, samples.objects, strict=True):
        assert torch.equal(objects, labels.nonzero().squeeze(1))


def test_proposals_between_thresholds_are_never_sampled():
    gt = {"boxes": torch.tensor([[0.0, 0, 100, 100]]), "labels": torch.tensor([3])}
    between = torch.tensor([[0.0, 0, 100, 60]]).repeat(50, 1)
    samples = select_training_samples(
        pad_proposals([between]), [gt], Matcher(0.7, 0.5),
        BalancedPositiveNegativeSampler(64, 0.25),
        BoxCoder((10.0, 10.0, 5.0, 5.0)),
    )  # fmt: skip
    assert torch.equal(samples.proposals[0], gt["boxes"])  # only the appended ground truth
    assert samples.labels[0].tolist() == [3]


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("pixels_at_once", [1, 3 * 90 * 120, 2**24])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.float32])
def test_mask_targets_equal_torchvision(pixels_at_once, dtype, on_device, monkeypatch):
    if on_device:
        monkeypatch.setattr(host_sync, "can_sync", lambda tensor: False)
    monkeypatch.setattr(roi_targets, "MASK_PIXELS_AT_ONCE", pixels_at_once)
    torch.manual_seed(0)
    masks = torch.zeros(9, 90, 120, dtype=dtype)
    for mask, (x1, y1, x2, y2) in zip(masks, random_boxes(9, 85.0).int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
    boxes = torch.cat(
        (random_boxes(20, 85.0), torch.tensor([[-5.0, -3, 140, 100], [3, 3, 3.2, 4]]))
    )
    matched = torch.randint(0, 9, (22,))
    expected = torchvision_roi_heads.project_masks_on_boxes(masks, boxes, matched, 28)
    ours = project_masks_on_boxes(masks, boxes, matched, 28)
    assert torch.equal(ours, expected)
    assert 0 < ours.mean() < 1


def test_aligned_mask_targets_are_shifted_by_half_a_pixel():
    torch.manual_seed(0)
    masks, boxes = (torch.rand(3, 40, 40) > 0.5).byte(), random_boxes(10, 30.0) + 2
    matched = torch.randint(0, 3, (10,))
    aligned = project_masks_on_boxes(masks, boxes, matched, 28, aligned=True)
    moved = project_masks_on_boxes(masks, boxes - 0.5, matched, 28)
    torch.testing.assert_close(aligned, moved)


def test_mask_targets_without_boxes():
    nothing = torch.zeros(0, dtype=torch.int64)
    for num_gt in (0, 2):
        masks = torch.zeros(num_gt, 8, 8, dtype=torch.uint8)
        assert project_masks_on_boxes(masks, torch.zeros(0, 4), nothing, 28).shape == (0, 28, 28)


def test_objects_without_a_mask_take_no_part_in_the_mask_loss():
    """Their box losses stay; the mask loss is that of the other objects, whatever their masks."""
    from maskrcnn_scratch.builders.small import small_maskrcnn
    from maskrcnn_scratch.data.shapes import ShapesDataset

    torch.manual_seed(0)
    model = small_maskrcnn(4, widths=(8, 8, 8, 8), min_size=64, max_size=64).eval()
    dataset = ShapesDataset(20, side=64)
    image, target = next(each for each in dataset if len(each[1]["labels"]) > 1)
    has_mask = torch.ones(len(target["labels"]), dtype=torch.bool)
    whole = model.losses([image], [target])
    assert model.losses([image], [{**target, "has_mask": has_mask}]) == whole
    found = []
    for fill in (0, 1):  # of the masks that are not there
        masks = target["masks"].clone()
        masks[0] = fill
        one_less = {**target, "masks": masks, "has_mask": has_mask.clone()}
        one_less["has_mask"][0] = False
        found.append(model.losses([image], [one_less]))
    assert found[0] == found[1] and found[0]["loss_mask"] != whole["loss_mask"]
    boxes = {name: loss for name, loss in whole.items() if name != "loss_mask"}
    assert {name: found[0][name] for name in boxes} == boxes
    none = model.losses([image], [{**target, "has_mask": torch.zeros_like(has_mask)}])
    assert none["loss_mask"] == 0
