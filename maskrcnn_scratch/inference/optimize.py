"""Makes a model faster for inference: layers merged, less precision, one graph.

``optimize`` leaves its argument as it is. What each option gains and what it changes in the results
is measured in the README.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from maskrcnn_scratch.backbone import (
    BasicBlock,
    Bottleneck,
    FrozenBatchNorm2d,
    IntermediateLayerGetter,
)
from maskrcnn_scratch.generalized_rcnn import GeneralizedRCNN
from maskrcnn_scratch.inference.cuda_graph import CUDAGraphs
from maskrcnn_scratch.rpn.head import RPNHead

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def optimize(
    model: GeneralizedRCNN,
    *,
    dtype: torch.dtype | None = None,
    memory_format: torch.memory_format = torch.channels_last,
    fold_batch_norm: bool = True,
    compile: bool = False,
    cuda_graph: bool = False,
) -> GeneralizedRCNN:
    """A copy of ``model`` in eval mode, with the same interface, that only detects.

    The RPN's two predictions become one convolution in any case.

    Args:
        dtype: of the networks' weights and features, such as ``torch.bfloat16``; boxes, scores and
            masks stay float32.
        memory_format: of images, features and convolution weights.
        fold_batch_norm: multiplies each batch norm into the convolution before it.
        compile: ``torch.compile`` of everything from the padded batch to the padded detections.
            The first call takes a minute, and so does the second padded size.
        cuda_graph: one CUDA graph for each padded size; see ``CUDAGraphs``.

    Raises:
        ValueError: ``compile`` together with ``cuda_graph``, or a dtype that is no float.
    """
    if compile and cuda_graph:
        raise ValueError("give either compile or cuda_graph: a graph is captured of eager code")
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"dtype is {dtype}; it must be a float, such as torch.bfloat16")
    model = copy.deepcopy(model).eval().requires_grad_(False)
    if fold_batch_norm:
        fold_batch_norms(model)
    if type(model.rpn.head) is RPNHead:
        model.rpn.head = MergedRPNHead(model.rpn.head)
    model.image_dtype = model.image_dtype or next(model.parameters()).dtype
    convert(model, dtype, memory_format)
    if compile:
        on_cpu = next(model.parameters()).device.type == "cpu"
        model.run_batch = torch.compile(  # type: ignore[method-assign]
            model.run_batch, fullgraph=True, options={"freezing": on_cpu}
        )
    if cuda_graph:
        model.run_batch = CUDAGraphs(model)  # type: ignore[method-assign]
    return model


class MergedRPNHead(nn.Module):
    """An ``RPNHead`` for inference, whose two predictions are one convolution.

    Args:
        head: gives the weights.
    """

    def __init__(self, head: RPNHead) -> None:
        super().__init__()
        self.conv = head.conv
        self.num_logits = head.cls_logits.out_channels
        both = (head.cls_logits, head.bbox_pred)
        self.predict = nn.Conv2d(
            head.cls_logits.in_channels, sum(layer.out_channels for layer in both), 1
        )
        state = {
            name: torch.cat([layer.state_dict()[name] for layer in both])
            for name in ("weight", "bias")
        }
        self.predict.load_state_dict(state, assign=True)

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """As of ``RPNHead``."""
        predictions = [self.predict(self.conv(feature)) for feature in features]
        return (
            [level[:, : self.num_logits] for level in predictions],
            [level[:, self.num_logits :] for level in predictions],
        )


@torch.no_grad()
def fold_batch_norms(model: nn.Module) -> None:
    """Replaces each pair of convolution and batch norm by one convolution with a bias.

    Pairs are neighbours among children that run in order, and the numbered ones of ResNet blocks.
    """
    for parent, conv_name, norm_name in _pairs(model):
        conv, norm = getattr(parent, conv_name), getattr(parent, norm_name)
        if isinstance(norm, FrozenBatchNorm2d):
            scale, bias = norm.scale_and_bias()
        else:
            scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
            bias = norm.bias - norm.running_mean * scale
        if conv.bias is not None:
            bias = bias + conv.bias * scale
        conv.weight = nn.Parameter(conv.weight * scale[:, None, None, None], requires_grad=False)
        conv.bias = nn.Parameter(bias.clone(), requires_grad=False)
        setattr(parent, norm_name, nn.Identity())


def _pairs(model: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
    """(parent, name of the convolution, name of its batch norm)."""
    for parent in model.modules():
        names = [name for name, _ in parent.named_children()]
        if isinstance(parent, (nn.Sequential, IntermediateLayerGetter)):
            neighbours = list(pairwise(names))
        elif isinstance(parent, (BasicBlock, Bottleneck)):
            neighbours = [(name, f"bn{name[4:]}") for name in names if name.startswith("conv")]
        else:
            continue
        for conv_name, norm_name in neighbours:
            conv, norm = getattr(parent, conv_name), getattr(parent, norm_name)
            frozen = isinstance(norm, FrozenBatchNorm2d)
            tracked = isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None
            if isinstance(conv, nn.Conv2d) and (frozen or (tracked and norm.affine)):
                yield parent, conv_name, norm_name


def convert(
    model: GeneralizedRCNN, dtype: torch.dtype | None, memory_format: torch.memory_format
) -> None:
    """Gives the networks this dtype and memory format; what comes out of them is float32 again.

    Features between the networks keep the dtype. ``RegionProposalNetwork`` and ``RoIHeads`` bring
    predictions to the precision of boxes themselves.
    """
    heads = model.roi_heads
    networks = [model.backbone, model.rpn.head, heads.box_head, heads.box_predictor]
    networks += [heads.mask_head, heads.mask_predictor] if heads.has_mask() else []
    for network in networks:
        if isinstance(network, nn.Module):
            network.to(memory_format=memory_format)
            if dtype is not None:
                network.to(dtype)
    enter = partial(_convert_images, dtype=dtype, memory_format=memory_format)
    model.backbone.register_forward_pre_hook(enter)  # type: ignore[attr-defined]


def _convert_images(
    _: nn.Module,
    args: tuple[Tensor, ...],
    dtype: torch.dtype | None,
    memory_format: torch.memory_format,
) -> tuple[Tensor, ...]:
    return tuple(images.to(dtype=dtype, memory_format=memory_format) for images in args)
