"""A model's detections as COCO results, on one process or many, and their scores.

Masks become RLE as soon as an image is done, so memory grows with what was found rather than with
the pixels looked at.

Legend: D detections of one image, M side of a soft mask.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from maskrcnn_scratch.data.coco import to_coco
from maskrcnn_scratch.data.loader import evaluation_loader, without_worker_traceback
from maskrcnn_scratch.evaluation.coco_ap import CocoResult, CocoScore, IouType, score
from maskrcnn_scratch.evaluation.same_padding import group_by_padding
from maskrcnn_scratch.files import write_json
from maskrcnn_scratch.generalized_rcnn import GeneralizedRCNN
from maskrcnn_scratch.ops import paste_masks, paste_masks_rle, rle
from maskrcnn_scratch.training import distributed

Batch = tuple[list[Tensor], list[dict[str, Any]]]
MASK_THRESHOLD = 0.5


def evaluate_model(
    model: nn.Module,
    dataset: Any,
    *,
    device: torch.device | str = "cpu",
    batch_size: int = 1,
    num_workers: int = 0,
    iou_types: Sequence[IouType] = ("bbox", "segm"),
    results_file: str | PathLike[str] | None = None,
    progress: Callable[[Iterable[Batch]], Iterable[Batch]] = iter,
    **options: Any,
) -> dict[IouType, CocoScore]:
    """COCO scores of ``model`` on ``dataset``, for each IoU type.

    Between several processes each image is read by one of them and counted once; all must call
    this, and all get the scores. The main process writes ``results_file``, as COCO results.

    Args:
        dataset: as ``CocoDataset`` or ``ShapesDataset``, with the model's labels. Detections of a
            class that it has no category for do not count.
        progress: wraps the batches, such as tqdm.
        **options: to ``score``, such as ``max_detections`` or ``tide``.
    """
    loader = evaluation_loader(
        dataset, batch_size, num_workers, distributed.rank(), distributed.world_size()
    )
    batches = without_worker_traceback(progress(loader))
    known = getattr(dataset, "categories", dataset.category_labels)
    labels = {id: label for id, label in dataset.category_labels.items() if id in known}
    own = predict(model, batches, labels, device)
    shards = distributed.gather_on_main(own)
    scores: dict[IouType, CocoScore] = {}
    if distributed.is_main():
        results = merge_results(shards)
        if results_file is not None:
            write_json(results_file, results)
        annotations = getattr(dataset, "annotation_file", None) or to_coco(dataset)
        scores = {kind: score(annotations, results, kind, **options) for kind in iou_types}
    return distributed.broadcast_from_main(scores)


@torch.inference_mode()
def predict(
    model: nn.Module,
    batches: Iterable[Batch],
    category_labels: Mapping[int, int],
    device: torch.device | str = "cpu",
) -> list[CocoResult]:
    """COCO results of a model for each batch of (images, targets).

    Images of a batch that are padded to different sizes are run apart: results do not depend on
    the batch (``same_padding``).

    Of the targets only ``image_id`` is used. Detections of a label that no category has are left
    out. The model is switched to evaluation, and back afterwards.
    """
    category_ids = {label: category for category, label in category_labels.items()}
    was_training = model.training
    model.eval()
    results: list[CocoResult] = []
    for images, targets in batches:
        detections: dict[int, dict[str, Any]] = {}
        for group in group_by_padding(model, images):
            found = detect_rle(model, [images[index].to(device) for index in group])
            detections.update(zip(group, found, strict=True))
        for index, target in enumerate(targets):
            results += coco_results(detections[index], int(target["image_id"]), category_ids)
    model.train(was_training)
    return results


def detect_rle(model: nn.Module, images: list[Tensor]) -> list[dict[str, Any]]:
    """``model(images)`` with ``masks`` as a list of D RLEs, thresholded at 0.5.

    With this package's models the soft M x M masks become RLE directly, and no mask of an image's
    size is ever made; other models must give masks [D, 1, H, W].
    """
    if not isinstance(model, GeneralizedRCNN):
        results: list[dict[str, Any]] = model(images)
        for result in results:
            if "masks" in result:
                result["masks"] = [_encode(mask[0]) for mask in result["masks"]]
        return results
    batch, _ = model.transform(images)
    detections = model.run_batch(batch).detections
    transform = copy.copy(model.transform)
    transform.paste = _rle_paste(transform.paste)  # type: ignore[assignment]
    sizes = [(image.shape[-2], image.shape[-1]) for image in images]
    return transform.postprocess(detections, batch.sizes, sizes)


def coco_results(
    detections: Mapping[str, Any], image_id: int, category_ids: Mapping[int, int]
) -> list[CocoResult]:
    """The detections of one image, masks as RLE if any, as entries of a COCO results file."""
    masks = detections.get("masks", [None] * len(detections["boxes"]))
    results = []
    for (x1, y1, x2, y2), label, confidence, mask in zip(
        detections["boxes"].tolist(),
        detections["labels"].tolist(),
        detections["scores"].tolist(),
        masks,
        strict=True,
    ):
        if label in category_ids:
            result = {
                "image_id": image_id,
                "category_id": category_ids[label],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": confidence,
            }
            results.append(result if mask is None else result | {"segmentation": mask})
    return results


def merge_results(shards: Iterable[Sequence[CocoResult]]) -> list[CocoResult]:
    """Results of several processes as one list; an image that several read counts once.

    The first shard with results for an image provides all of them. Sorted by image.
    """
    by_image: dict[int, list[CocoResult]] = {}
    for shard in shards:
        own: dict[int, list[CocoResult]] = {}
        for result in shard:
            own.setdefault(result["image_id"], []).append(result)
        by_image = own | by_image
    return [result for image_id in sorted(by_image) for result in by_image[image_id]]


def _rle_paste(
    paste: Callable[[Tensor, Tensor, tuple[int, int]], Tensor],
) -> Callable[[Tensor, Tensor, tuple[int, int]], list[rle.Rle]]:
    """What gives the RLE of pasted masks, for a transform that pastes with ``paste``."""
    if paste is paste_masks:
        return lambda masks, boxes, size: paste_masks_rle(masks, boxes, size, MASK_THRESHOLD)
    return lambda masks, boxes, size: [
        _encode(paste(mask[None], box[None], size)[0, 0])
        for mask, box in zip(masks, boxes, strict=True)
    ]


def _encode(mask: Tensor) -> rle.Rle:
    return rle.encode((mask >= MASK_THRESHOLD).numpy(force=True))
