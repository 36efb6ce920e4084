"""Compares an optimised model with the original, at features and logits.

Both get the same probe: one image of noise, and the same RoIs on the feature maps of each. Compared
is the relative error ``|optimised - original| / |original|`` (Euclidean norms) of each output.

A correct change only rounds differently. An unsuitable one, such as a batch norm folded into a
convolution that computes something else, moved the features by 0.26 to 6.7 where it was measured.
The tolerances lie between the two. "Measured" is the largest error of a ResNet-50-FPN with
calibrated weights; "expected" is sqrt(60) times the rounding of one layer (2**-24, 2**-11, 2**-8),
as 60 layers round independently:

                      tolerance  measured  expected
    float32, float64  1e-3       4e-6      5e-7
    float16           2e-2       4e-3      4e-3
    bfloat16          1e-1       3e-2      3e-2

bfloat16 would hide a small error of the folding. ``optimize`` therefore verifies the model in its
own dtype first, and once more after the conversion. Shapes: see ``structures``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from maskrcnn_scratch.check_parts import probe
from maskrcnn_scratch.generalized_rcnn import GeneralizedRCNN
from maskrcnn_scratch.structures import Proposals

TOLERANCES = {
    torch.float64: 1e-3,
    torch.float32: 1e-3,
    torch.float16: 2e-2,
    torch.bfloat16: 1e-1,
}


@torch.no_grad()
def probe_outputs(model: GeneralizedRCNN) -> dict[str, Tensor]:
    """Features and logits of the probe, by name: ``"feature map 0"``, ``"class logits"``, ..."""
    images, features = probe(model, noise=True)
    outputs = {f"feature map {name}": feature for name, feature in features.items()}
    predictions = model.rpn.predict(images, features)
    outputs["objectness"] = predictions.objectness
    outputs["RPN deltas"] = predictions.pred_bbox_deltas
    height, width = images.padded_size
    rois = predictions.anchors.new_tensor(
        [
            [0, 0, 0, width, height],
            [0, width / 4, height / 4, width / 2, height / 2],
            [0, width / 2, 0, width * 3 / 4, height / 2],
        ]
    )  # [R, 5]
    heads = model.roi_heads
    logits = heads.predict_boxes(features, rois, images.padded_size)
    outputs["class logits"], outputs["box deltas"] = logits
    if heads.has_mask():
        outputs["mask logits"] = heads.predict_masks(features, rois, images.padded_size)
    if (refine := getattr(heads, "refine", None)) is not None:
        boxes = rois[None, :, 1:]  # [1, R, 4]
        proposals = Proposals(
            boxes,
            scores=boxes[..., 0],
            counts=torch.tensor([len(rois)], device=rois.device),
            anchor_indices=torch.zeros_like(boxes[..., 0], dtype=torch.int64),
        )
        outputs["refined boxes"] = refine(features, proposals, images.padded_size).boxes
    return outputs


def verify(model: GeneralizedRCNN, expected: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Raises a ValueError that names the first output beyond the tolerance of ``dtype``.

    Args:
        expected: ``probe_outputs`` of the original.
    """
    try:
        outputs = probe_outputs(model)
    except RuntimeError as error:
        raise ValueError(f"the optimised model does not run in {dtype}: {error}") from error
    tolerance = TOLERANCES.get(dtype, TOLERANCES[torch.bfloat16])
    for name, output in outputs.items():
        difference = relative_error(output, expected[name])
        if not difference <= tolerance:
            raise ValueError(
                f"the optimised model is not equivalent: {name} differs by "
                f"{difference:.1e} of its norm, allowed are {tolerance:.0e} in {dtype}; without "
                "fold_batch_norm and dtype nothing is changed"
            )


def relative_error(output: Tensor, expected: Tensor) -> float:
    """``|output - expected| / |expected|``; 0 for two zeros, NaN where either is not finite."""
    output, expected = output.double(), expected.double()
    difference = float((output - expected).norm())
    return difference / float(expected.norm()) if difference else 0.0
