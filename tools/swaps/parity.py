"""Parity of the swaps: what defines the result of each, and the largest difference to it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn_scratch.data.loader import TrainingBatches
from maskrcnn_scratch.ops.boxes import BoxCoder
from tools.swaps.gallery import Swap


def parity(swap: Swap) -> tuple[str, float] | None:
    """What defines the result of ``swap``, and the largest difference to it; None if nothing."""
    torch.manual_seed(0)
    check = PARITY.get(swap.file)
    return None if check is None else check(swap)


def candidates(count: int = 60) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes ``[1, K, 4]``, scores ``[1, K]`` and groups ``[1, K]`` in 0-2."""
    corners, sides = torch.rand(1, count, 2) * 50, 5 + torch.rand(1, count, 2) * 40
    return (
        torch.cat((corners, corners + sides), 2),
        torch.rand(1, count),
        torch.arange(count)[None] % 3,
    )


def soft_nms_parity(swap: Swap) -> tuple[str, float]:
    from torchvision.ops import batched_nms

    boxes, scores, groups = candidates()
    soft_nms = partial(swap.module().soft_nms, sigma=1e-20)
    indices, count, _ = soft_nms(boxes, scores, groups, 0.5, 60, 3)
    expected = batched_nms(boxes[0], scores[0], groups[0], 0.0)
    return "torchvision's NMS for sigma -> 0", _differences(indices[0, : int(count)], expected)


def class_agnostic_parity(swap: Swap) -> tuple[str, float]:
    from torchvision.ops import nms

    boxes, scores, groups = candidates()
    indices, count = swap.module().class_agnostic_nms(boxes, scores, groups, 0.5, 60, 3)
    expected = nms(boxes[0], scores[0], 0.5)
    return "torchvision's NMS", _differences(indices[0, : int(count)], expected)


def iou_parity(swap: Swap) -> tuple[str, float]:
    import torchvision.ops as ops

    names = {"giou": "generalized", "diou": "distance", "ciou": "complete"}
    kind = swap.options["kind"]
    (proposals, moved), coder = (candidates()[0][0] for _ in range(2)), BoxCoder((10, 10, 5, 5))
    proposals, moved = proposals.double(), moved.double()
    found = swap.module().overlap_losses(moved, proposals)[kind]
    expected = getattr(ops, f"{names[kind]}_box_iou_loss")(moved, proposals)
    error = float((found - expected).abs().max())
    labels = torch.arange(len(moved)) % 2
    deltas = coder.encode(moved, proposals)
    loss = swap.module().box_loss(deltas.repeat(1, 2), labels, 0 * deltas, proposals, coder, kind)
    mean = expected[labels > 0].sum() / len(labels)
    return f"torchvision's {names[kind]}_box_iou_loss", max(error, float((loss - mean).abs()))


def focal_parity(swap: Swap) -> tuple[str, float]:
    from torchvision.ops import sigmoid_focal_loss

    logits, labels = torch.randn(90, dtype=torch.float64) * 3, torch.arange(90) % 3 - 1.0
    used = labels >= 0
    expected = sigmoid_focal_loss(logits[used], labels[used].double(), reduction="sum")
    found = swap.module().focal_loss(logits, labels.double())
    error = (found - expected / (labels > 0).sum()).abs()
    return "torchvision's sigmoid_focal_loss", float(error)


def atss_parity(swap: Swap) -> tuple[str, float]:
    boxes, objects = candidates(300)[0][0], candidates(5)[0][0]
    levels = [200, 80, 20]
    found = swap.module().ATSSMatcher()(objects, boxes, levels)
    expected = torch.full((300,), -1)
    highest = torch.zeros(300)
    from torchvision.ops import box_iou

    iou = box_iou(objects, boxes)
    for g, each in enumerate(objects):
        centre = (each[:2] + each[2:]) / 2
        distances = ((boxes[:, :2] + boxes[:, 2:]) / 2 - centre).square().sum(1).split(levels)
        firsts = (0, 200, 280)
        near = torch.cat(
            [first + d.argsort()[:9] for first, d in zip(firsts, distances, strict=True)]
        )
        threshold = iou[g, near].mean() + iou[g, near].std(correction=0)
        for a in near.tolist():
            middle = (boxes[a, :2] + boxes[a, 2:]) / 2
            inside = bool((middle > each[:2]).all() and (middle < each[2:]).all())
            if inside and iou[g, a] >= threshold and iou[g, a] > highest[a]:
                expected[a], highest[a] = g, iou[g, a]
    return "Algorithm 1, anchor by anchor", _differences(found, expected)


def repeat_parity(swap: Swap) -> tuple[str, float]:
    sizes = torch.full((23, 2), 8).numpy()
    batches = swap.module().batches([[1]] * 23, threshold=0.0)(sizes, 4)
    expected = TrainingBatches(sizes, 4).order(0)
    return "each image once for t = 0", _differences(
        torch.tensor(sorted(batches.order(0))), torch.tensor(sorted(expected))
    )


def swin_parity(swap: Swap) -> tuple[str, float]:
    backbone = swap.module().SwinBackbone().eval()
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = image
        for layer in backbone.body.values():
            expected = layer(expected)
        given: dict[str, Tensor] = {}
        backbone.fpn.register_forward_pre_hook(lambda _, args: given.update(args[0]))
        backbone(image)
        difference = backbone.norms[3](expected).permute(0, 3, 1, 2) - given["3"]
    return "torchvision's layers", float(difference.abs().max())


def deformable_parity(swap: Swap) -> tuple[str, float]:
    conv = nn.Conv2d(8, 16, 3, stride=2, padding=1).double()
    image = torch.randn(2, 8, 17, 20, dtype=torch.float64)
    found = swap.module().DeformableConv2d(conv).double()(image)
    return "the convolution it starts as", float((found - conv(image)).detach().abs().max())


def keypoint_parity(swap: Swap) -> tuple[str, float]:
    from torchvision.models.detection.roi_heads import keypointrcnn_loss

    boxes, keypoints = candidates(6)[0][0], torch.rand(6, 4, 3) * 60
    keypoints[..., 2] = torch.arange(24).reshape(6, 4) % 3 > 0
    logits = torch.randn(6, 4, 28, 28)
    found = swap.module().keypoint_loss(logits, boxes, keypoints)
    expected = keypointrcnn_loss(logits, [boxes], [keypoints], [torch.arange(6)])
    return "torchvision's keypointrcnn_loss", float((found - expected).abs())


def embedding_parity(swap: Swap) -> tuple[str, float]:
    vectors, who = torch.randn(12, 8, dtype=torch.float64), torch.arange(12) % 3
    distance = torch.cdist(vectors, vectors)
    hardest = []
    for n in range(12):
        others = [k for k in range(12) if who[k] != who[n]]
        same = [k for k in range(12) if who[k] == who[n]]
        hardest.append(
            [max(same, key=lambda k: distance[n, k]), min(others, key=lambda k: distance[n, k])]
        )
    positive, negative = torch.tensor(hardest).unbind(1)
    expected = F.triplet_margin_loss(vectors, vectors[positive], vectors[negative], margin=0.2)
    found = swap.module().batch_hard(vectors, who, 0.2)
    return "triplet_margin_loss of the hardest", float((found - expected).abs())


def _differences(found: Tensor, expected: Tensor) -> float:
    """How many entries differ; infinite for other numbers of entries."""
    return float((found != expected).sum()) if found.shape == expected.shape else float("inf")


PARITY: dict[str, Callable[[Swap], tuple[str, float]]] = {
    "soft_nms": soft_nms_parity,
    "class_agnostic_nms": class_agnostic_parity,
    "iou_losses": iou_parity,
    "focal_rpn": focal_parity,
    "atss": atss_parity,
    "repeat_factor": repeat_parity,
    "swin": swin_parity,
    "deformable": deformable_parity,
    "keypoints": keypoint_parity,
    "embeddings": embedding_parity,
}
