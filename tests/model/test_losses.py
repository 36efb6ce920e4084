"""Losses equal torchvision's bit by bit, and are zero for empty input."""

import pytest
import torch
from torchvision.models.detection import roi_heads as torchvision_roi_heads
from torchvision.models.detection.rpn import RegionProposalNetwork

from maskrcnn_scratch import losses


def test_box_head_losses_equal_torchvision():
    torch.manual_seed(0)
    logits, deltas = torch.randn(40, 7), torch.randn(40, 28)
    labels, targets = torch.randint(0, 7, (40,)), torch.randn(40, 4)
    expected = torchvision_roi_heads.fastrcnn_loss(
        logits, deltas, list(labels.split(20)), list(targets.split(20))
    )
    assert torch.equal(losses.loss_classifier(logits, labels), expected[0])
    assert torch.equal(losses.loss_box_reg(deltas, labels, targets), expected[1])


def test_rpn_losses_equal_torchvision():
    torch.manual_seed(0)
    objectness, deltas = torch.randn(100), torch.randn(100, 4)
    labels, targets = torch.randint(-1, 2, (100,)).float(), torch.randn(100, 4)
    positive, negative = (labels == 1).nonzero()[:10, 0], (labels == 0).nonzero()[:20, 0]
    masks = [torch.zeros(100).index_fill(0, chosen, 1) for chosen in (positive, negative)]

    class Rpn(RegionProposalNetwork):
        def __init__(self):
            torch.nn.Module.__init__(self)
            self.fg_bg_sampler = lambda labels: ([masks[0]], [masks[1]])

    expected = Rpn().compute_loss(objectness[:, None], deltas, [labels], [targets])
    sampled = torch.cat((positive, negative))
    assert torch.equal(losses.loss_objectness(objectness[sampled], labels[sampled]), expected[0])
    assert torch.equal(
        losses.loss_rpn_box_reg(deltas[sampled], labels[sampled], targets[sampled]), expected[1]
    )


def test_mask_loss_equals_torchvision(monkeypatch):
    torch.manual_seed(0)
    logits, labels, targets = (
        torch.randn(6, 5, 28, 28),
        torch.randint(1, 5, (6,)),
        torch.rand(6, 28, 28),
    )
    monkeypatch.setattr(torchvision_roi_heads, "project_masks_on_boxes", lambda m, *_: m)
    expected = torchvision_roi_heads.maskrcnn_loss(
        logits, [torch.rand(6, 4)], [targets], [labels], [torch.arange(6)]
    )
    assert torch.equal(losses.loss_mask(logits, labels, targets), expected)


NO_LABELS = torch.zeros(0, dtype=torch.int64)


@pytest.mark.parametrize("compute, shape", [
    (lambda x: losses.loss_objectness(x, torch.zeros(0)), (0,)),
    (lambda x: losses.loss_rpn_box_reg(x, torch.zeros(0), torch.zeros(0, 4)), (0, 4)),
    (lambda x: losses.loss_classifier(x, NO_LABELS), (0, 3)),
    (lambda x: losses.loss_box_reg(x, NO_LABELS, torch.zeros(0, 4)), (0, 12)),
    (lambda x: losses.loss_mask(x, NO_LABELS, torch.zeros(0, 28, 28)), (0, 3, 28, 28)),
])  # fmt: skip
def test_empty_input_gives_zero_with_a_gradient(compute, shape):
    prediction = torch.zeros(shape, requires_grad=True)
    loss = compute(prediction)
    assert loss.item() == 0 and loss.shape == ()
    loss.backward()
    assert prediction.grad.shape == prediction.shape


def test_background_takes_no_part_in_the_box_loss():
    deltas = torch.randn(3, 8, requires_grad=True)
    targets = torch.full((3, 4), -torch.inf)
    loss = losses.loss_box_reg(deltas, torch.zeros(3, dtype=torch.int64), targets)
    loss.backward()
    assert loss.item() == 0 and (deltas.grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_means_over_any_number_of_boxes_equal_the_plain_mean(dtype):
    """Bit by bit: 1 / 41 * 41 is not 1 in float32."""
    torch.manual_seed(0)
    for count in range(1, 130):
        logits, labels = torch.randn(count, dtype=dtype), torch.randint(2, (count,)).to(dtype)
        expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)
        assert torch.equal(losses.loss_objectness(logits, labels), expected), count
