"""Mask R-CNN (He et al. 2017), stage by stage: read this file first.

    images -> transform              transform.py
    -> backbone, FPN                 backbone/resnet.py, fpn.py
    -> anchors, RPN, proposals       rpn/anchors.py, head.py, proposals.py
    -> RoIAlign, box head, NMS       roi_heads/pooler.py, box_head.py, detections.py
    -> RoIAlign, mask head           roi_heads/pooler.py, mask_head.py
    -> paste                         transform.py, ops/paste_masks.py

In training the RPN and the RoI heads match (``targets/matcher.py``) and sample
(``targets/sampler.py``) their boxes, which gives their targets (``targets/rpn_targets.py``,
``targets/roi_targets.py``). All five losses are in ``losses.py``.

``faster_rcnn.py`` and ``mask_rcnn.py`` choose the parts, and have their defaults;
``builders/resnet50_fpn.py`` builds the published models. ``ops/boxes.py`` has the box coder, IoU
and clipping, ``ops/nms.py`` NMS. Shapes: see ``structures``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice

import torch
from torch import Tensor, nn

from maskrcnn_scratch import interfaces
from maskrcnn_scratch.roi_heads import RoIHeads
from maskrcnn_scratch.rpn import RegionProposalNetwork
from maskrcnn_scratch.structures import ImageList, Result, StageOutputs, Target
from maskrcnn_scratch.targets.check_targets import check_targets
from maskrcnn_scratch.transform import GeneralizedRCNNTransform, image_size


class GeneralizedRCNN(nn.Module):
    """A two-stage detector: transform, backbone, region proposals, RoI heads.

    Args:
        backbone: computes feature maps; see ``interfaces.Backbone``.
        rpn: proposes object regions.
        roi_heads: classify the proposals, refine their boxes and predict a mask for each.
        transform: makes the batch, and scales the results back to the original images.

    Attributes:
        check_target_values: whether ``losses`` checks the values of the targets, which synchronises
            with a GPU. A caller that has checked them on the CPU can switch it off.
        image_dtype: the dtype that images must have, if it is not that of the parameters
            (``inference.optimize``).
    """

    check_target_values = True
    image_dtype: torch.dtype | None = None

    def __init__(
        self,
        backbone: interfaces.Backbone,
        rpn: RegionProposalNetwork,
        roi_heads: RoIHeads,
        transform: GeneralizedRCNNTransform,
    ) -> None:
        super().__init__()
        self.transform = transform
        self.backbone = backbone
        self.rpn = rpn
        self.roi_heads = roi_heads

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Target] | None = None
    ) -> dict[str, Tensor] | list[Result]:
        """``losses`` in training mode, ``detect`` in eval mode.

        Args:
            images: float ``[3, H, W]`` in 0-1 each; sizes may differ.
            targets: one per image; needed in training mode only.
        """
        if self.training:
            return self.losses(images, targets)
        return self.detect(images)

    def detect(self, images: Sequence[Tensor]) -> list[Result]:
        """Detects the objects of each image.

        Args:
            images: as in ``forward``.

        Returns:
            A dict per image, best detection first, in the pixels of that image: ``boxes``
            ``[D, 4]``, ``labels`` ``[D]``, ``scores`` ``[D]`` and ``masks`` ``[D, 1, H, W]``,
            which are probabilities (threshold them at 0.5). ``D`` may be 0.
        """
        return self.run_stages(images).results

    def run_stages(self, images: Sequence[Tensor]) -> StageOutputs:
        """Every intermediate result of ``detect``, which returns ``.results`` of it."""
        batch, _ = self.transform(images)  # [N, 3, H, W], and the image sizes [N, 2]
        stages = self.run_batch(batch)
        original_image_sizes = [image_size(image) for image in images]
        results = self.transform.postprocess(stages.detections, batch.sizes, original_image_sizes)
        stages.results = self.roi_heads.postprocess_branches(
            results, stages.branch_outputs, batch.sizes, original_image_sizes
        )
        return stages

    def run_batch(self, batch: ImageList) -> StageOutputs:
        """The stages from a padded batch to padded detections, without host synchronisation."""
        features = self.extract_features(batch.tensors)  # {"0": [N, F, H/4, W/4], ..., "pool"}
        rpn = self.rpn.predict(batch, features)  # objectness [N, A], pred_bbox_deltas [N, A, 4]
        proposals = self.rpn.propose(rpn, batch.sizes)  # boxes [N, P, 4]
        class_logits, box_regression, detections = self.roi_heads.detect_boxes(
            features, proposals, batch
        )  # [N, P, C], [N, P, C, 4], boxes [N, D, 4]
        if self.roi_heads.has_mask():
            detections.masks = self.roi_heads.detect_masks(
                features, detections, batch
            )  # [N, D, 1, M, M]
        branch_outputs = self.roi_heads.detect_branches(
            features, detections, batch.padded_size
        )  # [N, D, ...] by name
        return StageOutputs(
            images=batch,
            features=features,
            anchors=rpn.anchors,
            objectness=rpn.objectness,
            pred_bbox_deltas=rpn.pred_bbox_deltas,
            proposals=proposals,
            class_logits=class_logits,
            box_regression=box_regression,
            detections=detections,
            branch_outputs=branch_outputs,
            results=[],
        )

    def losses(
        self,
        images: Sequence[Tensor],
        targets: Sequence[Target] | None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """The five losses, each a scalar. Training minimises their sum.

        In eval mode this is the validation loss: the model does not change, no number is drawn from
        the global generator, and the same images give the same losses.

        Args:
            images: as in ``forward``.
            targets: one per image, in its pixels: ``boxes`` ``[G, 4]``, ``labels`` ``[G]`` from 1,
                ``masks`` ``[G, H, W]``; ``G`` may be 0.
            generator: source of random numbers for sampling anchors and proposals; by default the
                global one in training mode, and one with seed 0 in eval mode.

        Returns:
            ``loss_classifier``, ``loss_box_reg``, ``loss_mask`` (with a mask branch),
            ``loss_objectness`` and ``loss_rpn_box_reg``.

        Raises:
            TypeError, ValueError: invalid images or targets, naming the image and the object.
        """
        self.transform.check_images(images)
        if generator is None and not self.training:
            generator = torch.Generator(images[0].device).manual_seed(0)
        check_targets(
            targets,
            [(image.shape[-2], image.shape[-1]) for image in images],
            self.roi_heads.num_classes(),
            self.roi_heads.has_mask(),
            self.check_target_values,
        )
        batch, targets = self.transform(images, targets)
        features = self.extract_features(batch.tensors)  # {"0": [N, F, H/4, W/4], ..., "pool"}
        rpn = self.rpn.predict(batch, features)  # objectness [N, A], pred_bbox_deltas [N, A, 4]
        proposals = self.rpn.propose(rpn, batch.sizes, phase="training")  # boxes [N, P, 4]
        rpn_losses = self.rpn.losses(rpn, targets, generator)
        return {
            **self.roi_heads.losses(features, proposals, batch.padded_size, targets, generator),
            **rpn_losses,
        }

    def extract_features(self, images: Tensor) -> dict[str, Tensor]:
        """``[N, 3, H, W]`` to feature maps ``[N, F, H_l, W_l]`` by name, finest first.

        The single map of a backbone that returns a tensor has the name "0".

        Raises:
            ValueError: the images are on another device, or of another dtype, than the backbone.
        """
        parameter = next(self.parameters(), images)  # the first belongs to the backbone
        device, dtype = parameter.device, self.image_dtype or parameter.dtype
        if images.device != device or (
            images.dtype != dtype and not torch.is_autocast_enabled(device.type)
        ):
            raise ValueError(
                f"the images are {images.dtype} on {images.device}, the model expects {dtype} on "
                f"{device}: convert one of them"
            )
        features = self.backbone(images)
        return {"0": features} if isinstance(features, Tensor) else features

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> GeneralizedRCNN:
        """As in ``nn.Module``; a move to a GPU also stores convolution weights channels-last.

        The features are channels-last. cuDNN would convert weights in another format at each call.
        Values and the state dict stay; on the CPU nothing changes.
        """
        was_on_gpu = is_on_gpu(self)
        super()._apply(fn, recurse)
        if is_on_gpu(self) and not was_on_gpu:
            self.to(memory_format=torch.channels_last)
        return self


def is_on_gpu(module: nn.Module) -> bool:
    """Whether the first parameter of a module is on a GPU that PyTorch calls ``cuda``."""
    return any(parameter.device.type == "cuda" for parameter in islice(module.parameters(), 1))
