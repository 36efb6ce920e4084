"""No host synchronisation: from the batch to the last count, and in a training step."""

import pytest
import torch
import torch.nn.functional as F

from maskrcnn_scratch import host_sync
from maskrcnn_scratch.builders.small import small_maskrcnn
from maskrcnn_scratch.targets.sampler import BalancedPositiveNegativeSampler, use_device_sampler
from tests.no_sync import SyncError, fake_gpu, no_sync, to_fake_gpu

PLANTED = {
    "item": lambda x: x[0].item(),
    "int": lambda x: int(x[0]),
    "if": lambda x: 1 if x[0] > 0 else 0,
    "all": lambda x: bool((x > 0).all()),
    "equal": lambda x: torch.equal(x, x + 1),
    "tolist": lambda x: x.tolist(),
    "slice": lambda x: x[: x[0].long()],
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x > 0),
    "mask": lambda x: x[x > 0],
    "uint8 mask": lambda x: x[(x > 0).byte()],
    "write to mask": lambda x: x.clone().__setitem__(x > 0, torch.zeros_like(x[0])),
    "masked_select": lambda x: x.masked_select(x > 0),
    "unique": lambda x: x.unique(),
    "unique_consecutive": lambda x: x.unique_consecutive(),
    "bincount": lambda x: x.long().bincount(),
    "repeat_interleave": lambda x: x.repeat_interleave(x.long()),
    "one_hot": lambda x: F.one_hot(x.long()),
}  # fmt: skip
PLANTED_COPIES = {
    "cpu": lambda x: x.cpu(),
    "to the host, not blocking": lambda x: x.to("cpu", non_blocking=True),
    "copy to the host": lambda x: torch.empty(4).copy_(x),
    "numbers": lambda x: torch.tensor([1.0, 2.0], device=x.device),
    "array": lambda x: x.new_tensor([1.0, 2.0]),
    "as_tensor": lambda x: torch.as_tensor([1.0, 2.0], device=x.device),
    "to the device": lambda x: torch.ones(4).to(x.device),
    "indices of the host": lambda x: x[torch.tensor([0, 1])],
    "indices in a list": lambda x: x[[0, 1]],
}
HARMLESS = {
    "arithmetic": lambda x: (x + 1).sort().values.cumsum(0).masked_fill(x > 1, 0),
    "indices": lambda x: x[torch.arange(2, device=x.device)],
    "three-way where": lambda x: torch.where(x > 0, x, 0),
    "repeat_interleave": lambda x: x.repeat_interleave(
        torch.full((4,), 2, device=x.device), output_size=8
    ),
    "to the device, not blocking": lambda x: torch.ones(4).to(x.device, non_blocking=True),
    "top-k": lambda x: x.topk(2).indices,
}


@pytest.mark.parametrize("name", PLANTED)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_planted_waits_are_caught(name, device):
    if device == "cpu":
        x = torch.ones(4)
        with no_sync("cpu"), pytest.raises(SyncError):
            PLANTED[name](x)
    else:
        with fake_gpu(), no_sync("cuda"), pytest.raises(SyncError):
            PLANTED[name](torch.ones(4, device="cuda"))


@pytest.mark.parametrize("name", PLANTED_COPIES)
def test_planted_copies_are_caught(name):
    with fake_gpu(), no_sync("cuda"), pytest.raises(SyncError):
        PLANTED_COPIES[name](torch.ones(4, device="cuda"))


@pytest.mark.parametrize("name", HARMLESS)
def test_the_rest_passes(name):
    with no_sync("cpu"):
        HARMLESS[name](torch.ones(4))
    with fake_gpu(), no_sync("cuda"):
        HARMLESS[name](torch.ones(4, device="cuda"))


def test_what_is_on_the_host_may_be_looked_at():
    with no_sync("cuda"):
        x = torch.ones(4)
        assert x.tolist() == [1] * 4 and int(x[0]) == 1 and len(x[x > 0]) == 4


def small_model():
    torch.manual_seed(0)
    return small_maskrcnn(
        4, min_size=(64, 96), max_size=128, rpn_post_nms_top_n_train=100,
        rpn_pre_nms_top_n_train=80, box_batch_size_per_image=48,
    ).train()  # fmt: skip


def batch(device, objects=(3, 0)):
    """Two images of different sizes with so many objects each."""
    images, targets = [], []
    for number, (height, width) in zip(objects, [(90, 120), (100, 70)], strict=True):
        boxes = torch.tensor([[5.0, 5, 40, 50], [30, 20, 60, 80], [20, 1, 70, 30]])[:number]
        masks = torch.zeros(number, height, width, dtype=torch.uint8)
        masks[:1, 5:50, 5:40] = 1
        target = {"boxes": boxes, "labels": torch.arange(1, number + 1), "masks": masks}
        images.append(torch.rand(3, height, width, device=device))
        targets.append({name: value.to(device) for name, value in target.items()})
    return images, targets


@torch.no_grad()
def test_from_images_to_the_counts_nothing_waits():
    with fake_gpu():
        model = to_fake_gpu(small_model().eval())
        images, _ = batch("cuda")
        with no_sync("cuda"):
            padded, _ = model.transform(images)
            stages = model.run_batch(padded)
            assert stages.detections.masks.device.type == "cuda"
            with pytest.raises(SyncError, match="_local_scalar_dense"):
                model.transform.postprocess(stages.detections, padded.sizes, [(90, 120), (100, 70)])


@torch.no_grad()
def test_pasting_waits_only_for_the_counts():
    with fake_gpu():
        masks, boxes = torch.rand(5, 1, 28, 28, device="cuda"), torch.rand(5, 4, device="cuda")
        with no_sync("cuda"):
            assert small_model().transform.paste(masks, boxes, (90, 120)).device.type == "cuda"


def test_training_losses_wait_for_nothing():
    with fake_gpu():
        model = to_fake_gpu(small_model())
        model.transform.eval()  # in training it draws a size, a number of the host
        images, targets = batch("cuda", objects=(3, 2))  # none has no fake resize of masks
        use_device_sampler(model)
        with no_sync("cuda"):
            losses = model.losses(images, targets)
        assert {loss.device.type for loss in losses.values()} == {"cuda"}


def test_forward_and_backward_wait_for_nothing(monkeypatch):
    monkeypatch.setattr(host_sync, "can_sync", lambda tensor: False)
    model = small_model()
    model.transform.eval()
    images, targets = batch("cpu")
    use_device_sampler(model)
    with no_sync("cpu"):
        losses = model.losses(images, targets)
        torch.stack(list(losses.values())).sum().backward()
    assert losses["loss_mask"] > 0 and model.backbone.body.conv1.weight.grad.norm() > 0


@pytest.mark.parametrize("what", ["sampler", "check of the targets", "branch for the CPU"])
def test_what_would_wait_in_training_is_caught(what, monkeypatch):
    if what != "branch for the CPU":
        monkeypatch.setattr(host_sync, "can_sync", lambda tensor: False)
    model = small_model()
    model.transform.eval()
    use_device_sampler(model)
    if what == "sampler":
        model.rpn.fg_bg_sampler = BalancedPositiveNegativeSampler(64, 0.5)
    if what == "check of the targets":
        model.check_target_values = True
    images, targets = batch("cpu")
    with no_sync("cpu"), pytest.raises(SyncError):
        model.losses(images, targets)
