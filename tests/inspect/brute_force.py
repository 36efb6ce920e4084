"""The stages between predictions and detections in plain Python, one box at a time.

Slow and without cleverness: what ``inspect`` says is compared with this.
"""

from __future__ import annotations

import math

from maskrcnn_scratch.ops.boxes import BBOX_XFORM_CLIP


def iou(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / area if area > 0 else 0.0


def decode(deltas, box, size, weights=(1, 1, 1, 1)):
    """The box at these deltas, clipped to the image of ``size`` (height, width)."""
    dx, dy, dw, dh = (d / w for d, w in zip(deltas, weights, strict=True))
    width, height = box[2] - box[0], box[3] - box[1]
    x, y = box[0] + width / 2 + dx * width, box[1] + height / 2 + dy * height
    width *= math.exp(min(dw, BBOX_XFORM_CLIP))
    height *= math.exp(min(dh, BBOX_XFORM_CLIP))
    corners = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    return [min(max(c, 0.0), size[1 - i % 2]) for i, c in enumerate(corners)]


def nms(boxes, scores, groups, threshold):
    """Survivors, best first, and for each dropped box (suppressor, IoU)."""
    order = sorted(
        (i for i, score in enumerate(scores) if score > -math.inf), key=lambda i: (-scores[i], i)
    )
    survivors, suppressors = [], {}
    for i in order:
        for kept in survivors:
            overlap = iou(boxes[kept], boxes[i])
            if groups[kept] == groups[i] and overlap > threshold:
                suppressors[i] = (kept, overlap)
                break
        else:
            survivors.append(i)
    return survivors, suppressors


def top_k(logits, levels, k):
    """Indices of the best ``k`` of each level: level by level, best first, ties by lower index."""
    chosen = []
    for level in levels:
        indices = range(level.first, level.first + level.size)
        chosen += sorted(indices, key=lambda i: (-logits[i], i))[:k]
    return chosen
