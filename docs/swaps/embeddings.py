"""An embedding per detection, for tracking (Voigtlaender et al. 2019, "MOTS", section 4).

The branch of Track R-CNN: detections of one object, in one image or several, get similar vectors,
by the batch-hard triplet loss (Hermans et al. 2017, Eq. 5).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn_scratch import MaskRCNN, MultiScaleRoIAlign
from maskrcnn_scratch.builders.small import small_maskrcnn
from maskrcnn_scratch.structures import Detections, boxes_to_rois, list_to_rois


def batch_hard(vectors: Tensor, who: Tensor, margin: float) -> Tensor:
    """The farthest vector of the same object must be nearer, by ``margin``, than any other.

    ``vectors [R, size]`` of the objects ``who [R]``; without a second object the loss is 0.
    """
    same = who[:, None] == who  # [R, R]
    distance = (vectors[:, None] - vectors).square().sum(2)
    distance = (distance + 1e-12).sqrt()  # has a gradient at 0
    farthest = distance.where(same, 0).amax(1)
    nearest = distance.masked_fill(same, torch.inf).amin(1)
    return F.relu(margin + farthest - nearest).mean()


class EmbeddingBranch(nn.Module):
    """A ``stage_interfaces.Branch``: adds ``embeddings [D, size]`` to the results.

    ``identity`` is a field of the targets, ``[G]``: the same number means the same object in all
    images of a batch.
    """

    def __init__(
        self,
        pool: MultiScaleRoIAlign,
        channels: int,
        size: int = 32,
        identity: str = "track_ids",
        margin: float = 0.2,
    ) -> None:
        super().__init__()
        self.pool, self.identity, self.margin = pool, identity, margin
        self.layer = nn.Linear(channels * pool.output_size[0] ** 2, size)

    def predict(self, features: Any, rois: Tensor, padded_size: tuple[int, int]) -> Tensor:
        return self.layer(self.pool(features, rois, [padded_size]).flatten(1)).float()

    def losses(
        self, features: Any, samples: Any, targets: Any, padded_size: tuple[int, int]
    ) -> dict[str, Tensor]:
        boxes, matched, labels = samples.of_objects()
        vectors = self.predict(features, list_to_rois(boxes), padded_size)[labels > 0]  # [R, size]
        if len(vectors) == 0:
            return {"loss_embedding": sum(p.sum() * 0 for p in self.parameters())}
        of_objects = zip(targets, matched, strict=True)
        who = torch.cat([target[self.identity][of_image] for target, of_image in of_objects])
        return {"loss_embedding": batch_hard(vectors, who[labels > 0], self.margin)}

    def detect(
        self, features: Any, detections: Detections, padded_size: tuple[int, int]
    ) -> dict[str, Tensor]:
        vectors = self.predict(features, boxes_to_rois(detections.boxes), padded_size)
        return {"embeddings": vectors.reshape(*detections.scores.shape, -1)}


def build(num_classes: int, identity: str = "labels", **options: Any) -> MaskRCNN:
    pool = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2, canonical_scale=64, canonical_level=3)
    branch = EmbeddingBranch(pool, 64, identity=identity)
    return small_maskrcnn(num_classes, branches={"embedding": branch}, **options)
