"""detectron2's Mask R-CNN R50-FPN, reimplemented as a reference (inference only).

It has detectron2's module names and conventions.

After ``configs/COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml`` and what it builds (backbone/
resnet.py, fpn.py, anchor_generator.py, proposal_utils.py, poolers.py, fast_rcnn.py, mask_head.py,
layers/mask_ops.py, postprocessing.py). It shares no code with this package.
Images are BGR uint8 values as floats, already resized.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms, roi_align

STRIDES = (4, 8, 16, 32, 64)
MEAN_BGR = (103.53, 116.28, 123.675)


class FrozenBatchNorm(nn.Module):
    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0)):
            self.register_buffer(name, torch.full((channels,), value))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, eps=1e-5
        )


class NormedConv(nn.Conv2d):
    """A convolution that has its normalisation inside."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.norm = FrozenBatchNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(super().forward(x))


class BottleneckBlock(nn.Module):
    def __init__(self, inputs: int, width: int, outputs: int, stride: int) -> None:
        super().__init__()
        if inputs != outputs:
            self.shortcut = NormedConv(inputs, outputs, 1, stride)
        self.conv1 = NormedConv(inputs, width, 1, stride)  # STRIDE_IN_1X1
        self.conv2 = NormedConv(width, width, 3)
        self.conv3 = NormedConv(width, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv3(F.relu(self.conv2(F.relu(self.conv1(x)))))
        return F.relu(out + (self.shortcut(x) if hasattr(self, "shortcut") else x))


class Stem(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = NormedConv(3, 64, 7, 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(F.relu(self.conv1(x)), 3, 2, 1)


class BottomUp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = Stem()
        inputs = 64
        for stage, blocks in zip((2, 3, 4, 5), (3, 4, 6, 3), strict=True):
            width = 64 * 2 ** (stage - 2)
            layers = []
            for block in range(blocks):
                stride = 2 if stage > 2 and block == 0 else 1
                layers.append(BottleneckBlock(inputs, width, 4 * width, stride))
                inputs = 4 * width
            setattr(self, f"res{stage}", nn.Sequential(*layers))

    def forward(self, x: Tensor) -> list[Tensor]:
        x, outputs = self.stem(x), []
        for stage in (2, 3, 4, 5):
            x = getattr(self, f"res{stage}")(x)
            outputs.append(x)
        return outputs


class FPN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bottom_up = BottomUp()
        for level in (2, 3, 4, 5):
            setattr(self, f"fpn_lateral{level}", nn.Conv2d(128 * 2 ** (level - 1), 256, 1))
            setattr(self, f"fpn_output{level}", nn.Conv2d(256, 256, 3, padding=1))

    def forward(self, x: Tensor) -> list[Tensor]:
        """p2 to p6."""
        stages = self.bottom_up(x)
        previous: Tensor | None = None
        outputs: list[Tensor] = []
        for level in (5, 4, 3, 2):
            lateral = getattr(self, f"fpn_lateral{level}")(stages[level - 2])
            if previous is not None:
                lateral = lateral + F.interpolate(previous, scale_factor=2.0, mode="nearest")
            previous = lateral
            outputs.insert(0, getattr(self, f"fpn_output{level}")(lateral))
        return [*outputs, F.max_pool2d(outputs[-1], 1, 2)]


class RPNHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(256, 256, 3, padding=1)
        self.objectness_logits = nn.Conv2d(256, 3, 1)
        self.anchor_deltas = nn.Conv2d(256, 12, 1)


class ProposalGenerator(nn.Module):
    def __init__(self, post_nms_topk: int) -> None:
        super().__init__()
        self.rpn_head = RPNHead()
        self.post_nms_topk = post_nms_topk

    def forward(self, features: list[Tensor], sizes: list[tuple[int, int]]) -> list[Tensor]:
        candidates = []
        for level, (feature, stride) in enumerate(zip(features, STRIDES, strict=True)):
            hidden = F.relu(self.rpn_head.conv(feature))
            logits = self.rpn_head.objectness_logits(hidden).permute(0, 2, 3, 1).flatten(1)
            deltas = self.rpn_head.anchor_deltas(hidden).permute(0, 2, 3, 1)
            anchors = grid_anchors(feature.shape[-2:], stride, 32 * 2**level)
            boxes = apply_deltas(deltas.reshape(len(logits), -1, 4), anchors, (1, 1, 1, 1))
            top, index = logits.topk(min(1000, logits.shape[1]), dim=1)
            picked = boxes.gather(1, index[..., None].expand(-1, -1, 4))
            candidates.append((picked, top, torch.full_like(index, level)))
        proposals = []
        for n, size in enumerate(sizes):
            boxes, logits, levels = (torch.cat([c[i][n] for c in candidates]) for i in range(3))
            boxes = clip(boxes, size)
            keep = nonempty(boxes)
            boxes, logits, levels = boxes[keep], logits[keep], levels[keep]
            keep = batched_nms(boxes, logits, levels, 0.7)[: self.post_nms_topk]
            proposals.append(boxes[keep])
        return proposals


class BoxHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(256 * 49, 1024)
        self.fc2 = nn.Linear(1024, 1024)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.fc2(F.relu(self.fc1(x.flatten(1)))))


class BoxPredictor(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(1024, classes + 1)  # the background is the last
        self.bbox_pred = nn.Linear(1024, 4 * classes)


class MaskHead(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        for i in (1, 2, 3, 4):
            setattr(self, f"mask_fcn{i}", nn.Conv2d(256, 256, 3, padding=1))
        self.deconv = nn.ConvTranspose2d(256, 256, 2, 2)
        self.predictor = nn.Conv2d(256, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        for i in (1, 2, 3, 4):
            x = F.relu(getattr(self, f"mask_fcn{i}")(x))
        return self.predictor(F.relu(self.deconv(x)))


class ROIHeads(nn.Module):
    def __init__(self, classes: int, detections_per_image: int) -> None:
        super().__init__()
        self.detections_per_image = detections_per_image
        self.box_head = BoxHead()
        self.box_predictor = BoxPredictor(classes)
        self.mask_head = MaskHead(classes)

    def detect(
        self, features: list[Tensor], n: int, proposals: Tensor, size: tuple[int, int]
    ) -> dict[str, Tensor]:
        hidden = self.box_head(pool(features, n, proposals, 7))
        scores = self.box_predictor.cls_score(hidden).softmax(1)[:, :-1]
        deltas = self.box_predictor.bbox_pred(hidden).unflatten(1, (-1, 4))
        boxes = clip(apply_deltas(deltas, proposals[:, None], (10, 10, 5, 5)), size)
        rows, labels = (scores > 0.05).nonzero().T
        boxes, scores = boxes[rows, labels], scores[rows, labels]
        keep = batched_nms(boxes, scores, labels, 0.5)[: self.detections_per_image]
        boxes, scores, labels = boxes[keep], scores[keep], labels[keep]
        logits = self.mask_head(pool(features, n, boxes, 14))
        masks = logits[torch.arange(len(labels)), labels].sigmoid()  # [D, 28, 28]
        return {"boxes": boxes, "labels": labels, "scores": scores, "masks": masks}


class GeneralizedRCNN(nn.Module):
    """``classes`` do not count the background."""

    def __init__(
        self, classes: int = 80, post_nms_topk: int = 1000, detections_per_image: int = 100
    ) -> None:
        super().__init__()
        self.backbone = FPN()
        self.proposal_generator = ProposalGenerator(post_nms_topk)
        self.roi_heads = ROIHeads(classes, detections_per_image)

    @torch.no_grad()
    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """``[3, H, W]`` BGR in 0-255 each -> boxes, labels from 0, scores, soft masks."""
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        height, width = (32 * math.ceil(max(side) / 32) for side in zip(*sizes, strict=True))
        batch = torch.zeros(len(images), 3, height, width, dtype=images[0].dtype)
        for padded, image in zip(batch, images, strict=True):
            mean = torch.tensor(MEAN_BGR)[:, None, None]
            padded[:, : image.shape[1], : image.shape[2]] = image - mean
        features = self.backbone(batch)
        results = []
        proposals = self.proposal_generator(features, sizes)
        for n, size in enumerate(sizes):
            result = self.roi_heads.detect(features[:4], n, proposals[n], size)
            result["masks"] = paste(result["masks"], result["boxes"], size)
            results.append(result)
        return results


def grid_anchors(grid: torch.Size, stride: int, size: int) -> Tensor:
    cell = []
    for ratio in (0.5, 1.0, 2.0):
        w = math.sqrt(size**2 / ratio)
        h = ratio * w
        cell.append([-w / 2, -h / 2, w / 2, h / 2])
    y, x = torch.meshgrid(
        torch.arange(grid[0]) * stride, torch.arange(grid[1]) * stride, indexing="ij"
    )
    shifts = torch.stack((x, y, x, y), -1).reshape(-1, 1, 4)
    return (shifts + torch.tensor(cell)).reshape(-1, 4)


def apply_deltas(deltas: Tensor, boxes: Tensor, weights: tuple[float, ...]) -> Tensor:
    widths = boxes[..., 2] - boxes[..., 0]
    heights = boxes[..., 3] - boxes[..., 1]
    dx, dy, dw, dh = (deltas[..., i] / weights[i] for i in range(4))
    x = boxes[..., 0] + 0.5 * widths + dx * widths
    y = boxes[..., 1] + 0.5 * heights + dy * heights
    limit = math.log(1000 / 16)
    w, h = widths * dw.clamp(max=limit).exp(), heights * dh.clamp(max=limit).exp()
    return torch.stack((x - 0.5 * w, y - 0.5 * h, x + 0.5 * w, y + 0.5 * h), -1)


def clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    height, width = size
    limits = (width, height, width, height)
    return torch.stack([boxes[..., i].clamp(0, limits[i]) for i in range(4)], -1)


def nonempty(boxes: Tensor) -> Tensor:
    return (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])


def pool(features: list[Tensor], n: int, boxes: Tensor, output_size: int) -> Tensor:
    """ROIAlignV2 with as many samples as a bin has pixels."""
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    level = torch.floor(4 + torch.log2(area.sqrt() / 224 + 2.2e-16)).clamp(2, 5)
    out = torch.zeros(len(boxes), 256, output_size, output_size, dtype=boxes.dtype)
    for i, feature in enumerate(features):
        mine = (level == i + 2).nonzero().flatten()
        rois = torch.cat(
            (torch.full((len(mine), 1), float(n), dtype=boxes.dtype), boxes[mine]), dim=1
        )
        out[mine] = roi_align(feature, rois, output_size, 1 / STRIDES[i], 0, aligned=True)
    return out


def paste(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """``[D, 28, 28]`` -> ``[D, 1, H, W]``, before the threshold of 0.5."""
    x0, y0, x1, y1 = boxes.T[..., None]
    y = (torch.arange(size[0]) + 0.5 - y0) / (y1 - y0) * 2 - 1  # [D, H]
    x = (torch.arange(size[1]) + 0.5 - x0) / (x1 - x0) * 2 - 1  # [D, W]
    shape = (len(masks), size[0], size[1])
    grid = torch.stack((x[:, None, :].expand(shape), y[:, :, None].expand(shape)), dim=3)
    return F.grid_sample(masks[:, None], grid, align_corners=False)
