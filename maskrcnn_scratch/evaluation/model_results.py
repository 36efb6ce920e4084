"""A model's detections as COCO results, on one or more processes, and their scores.

Masks become RLE as soon as an image is done. Memory then grows with the number of detections, not
with the size of the images.

Shapes: D detections of one image; M side of a mask in its box; H, W height and width of an image.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from maskrcnn_scratch.data.batch import Batch
from maskrcnn_scratch.data.loader import evaluation_loader, without_worker_traceback
from maskrcnn_scratch.data.to_coco import to_coco
from maskrcnn_scratch.evaluation.coco_ap import (
    COCO_MAX_DETECTIONS,
    CocoResult,
    CocoScore,
    IouType,
    score,
)
from maskrcnn_scratch.evaluation.same_padding import group_by_padding
from maskrcnn_scratch.files import write_json
from maskrcnn_scratch.generalized_rcnn import GeneralizedRCNN
from maskrcnn_scratch.ops import paste_masks, paste_masks_rle, rle
from maskrcnn_scratch.roi_heads.branches import warn_of_lost_outputs
from maskrcnn_scratch.training import distributed

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
    on_results: Callable[[list[CocoResult]], object] | None = None,
    **options: Any,
) -> dict[IouType, CocoScore]:
    """COCO scores of ``model`` on ``dataset``, for each IoU type.

    With several processes each image is read by one of them and counts once. All processes must
    call this function, and all get the scores. The main process writes ``results_file``.

    Args:
        model: a detector with torchvision's results.
        dataset: as ``CocoDataset`` or ``ShapesDataset``, with the model's labels. Detections of a
            class without a category in it do not count.
        results_file: file for the detections, as COCO results.
        progress: wraps the batches, such as tqdm.
        on_results: is called with the detections, on the main process.
        **options: arguments of ``score``, such as ``tide``. By default ``max_detections`` is that
            of the model if it gives more detections than COCO counts.
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
        if on_results is not None:
            on_results(results)
        annotations = getattr(dataset, "annotation_file", None) or to_coco(dataset)
        options = {"crowds_as_objects": getattr(dataset, "crowds_as_objects", False), **options}
        if options.get("max_detections") is None:
            options["max_detections"] = max_detections_of(model)
        scores = {kind: score(annotations, results, kind, **options) for kind in iou_types}
    return distributed.broadcast_from_main(scores)


def max_detections_of(model: nn.Module) -> int | None:
    """The detections per image of a model that gives more than COCO counts, else None."""
    given = getattr(getattr(model, "roi_heads", None), "detections_per_img", 0)
    return int(given) if given > COCO_MAX_DETECTIONS else None


@torch.inference_mode()
def predict(
    model: nn.Module,
    batches: Iterable[Batch],
    category_labels: Mapping[int, int],
    device: torch.device | str = "cpu",
) -> list[CocoResult]:
    """COCO results of a model for batches of (images, targets).

    Images of a batch that are padded to different sizes run in separate batches, so that results
    do not depend on the batch (``same_padding``).

    Only ``image_id`` of the targets is used. Detections with a label that no category has are
    dropped. The model is in eval mode meanwhile; its mode is restored at the end.
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

    Outputs of further branches are in the results, too.

    Masks [D, 1, M, M] of this package's models are encoded directly, without a mask of the image's
    size. Other models must return masks [D, 1, H, W].
    """
    if not isinstance(model, GeneralizedRCNN):
        return [encode_masks(result) for result in model(images)]
    return detect_with_paste(model, images, _rle_paste(model.transform.paste))


def encode_masks(result: Mapping[str, Any]) -> dict[str, Any]:
    """A result with its masks ``[D, 1, H, W]``, if any, as a list of D RLEs, thresholded at 0.5.

    Masks that are a list of RLEs already are kept.
    """
    masks = result.get("masks")
    if not isinstance(masks, Tensor):
        return dict(result)
    return {**result, "masks": [_encode(mask[0]) for mask in masks]}


def detect_with_paste(
    model: GeneralizedRCNN,
    images: list[Tensor],
    paste: Callable[[Tensor, Tensor, tuple[int, int]], Any],
) -> list[dict[str, Any]]:
    """``model(images)``, without further branches, where ``paste`` replaces ``transform.paste``.

    Args:
        paste: gets masks ``[D, 1, M, M]``, boxes ``[D, 4]`` and (height, width) of an image, and
            returns the ``masks`` of its result.
    """
    batch, _ = model.transform(images)
    stages = model.run_batch(batch)
    transform = copy.copy(model.transform)
    transform.paste = paste
    sizes = [(image.shape[-2], image.shape[-1]) for image in images]
    results = transform.postprocess(stages.detections, batch.sizes, sizes)
    return model.roi_heads.postprocess_branches(results, stages.branch_outputs, batch.sizes, sizes)


def coco_results(
    detections: Mapping[str, Any], image_id: int, category_ids: Mapping[int, int]
) -> list[CocoResult]:
    """The detections of one image as entries of a COCO results file; masks, if any, as RLE.

    The format has no other outputs: a warning names those of further branches.
    """
    warn_of_lost_outputs(detections, "COCO results have")
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
    """Results of several processes as one list, sorted by image.

    If several shards have results for an image, only those of the first such shard count.
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
    """A function that returns the RLE of the masks that ``paste`` would return."""
    if paste is paste_masks:
        return lambda masks, boxes, size: paste_masks_rle(masks, boxes, size, MASK_THRESHOLD)
    return lambda masks, boxes, size: [
        _encode(paste(mask[None], box[None], size)[0, 0])
        for mask, box in zip(masks, boxes, strict=True)
    ]


def _encode(mask: Tensor) -> rle.Rle:
    return rle.encode((mask >= MASK_THRESHOLD).numpy(force=True))
