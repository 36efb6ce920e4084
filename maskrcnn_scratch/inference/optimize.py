"""Faster inference: fewer layers, a smaller dtype, compiled or captured graphs.

``optimize`` returns a copy; its argument stays as it is. ``docs/reference/speed.md`` has the
measured speed of each option and its effect on the results.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from maskrcnn_scratch.check_parts import remember_parts
from maskrcnn_scratch.generalized_rcnn import GeneralizedRCNN
from maskrcnn_scratch.inference.box_features import use_channels_last_box_features
from maskrcnn_scratch.inference.cuda_graph import CUDAGraphs
from maskrcnn_scratch.inference.epilogues import fuse_epilogues
from maskrcnn_scratch.inference.fold_batch_norm import fold_batch_norms
from maskrcnn_scratch.inference.int8 import quantizable_networks, use_int8
from maskrcnn_scratch.inference.merged_rpn_head import MergedRPNHead
from maskrcnn_scratch.inference.verify_optimized import probe_outputs, verify
from maskrcnn_scratch.inference.winograd import use_winograd
from maskrcnn_scratch.rpn.head import RPNHead
from maskrcnn_scratch.winograd import describe_kept

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def optimize(
    model: GeneralizedRCNN,
    *,
    dtype: torch.dtype | Literal["int8"] | None = None,
    calibration: Sequence[Tensor] = (),
    memory_format: torch.memory_format = torch.channels_last,
    fold_batch_norm: bool = True,
    winograd: bool | str = False,
    compile: bool = False,
    cuda_graph: bool = False,
) -> GeneralizedRCNN:
    """A faster copy of ``model`` in eval mode, with the same interface, that only detects.

    The two predictions of the RPN always become one convolution. ReLUs and shortcuts are computed
    with the convolution before them (``epilogues``), unless ``compile`` does this. The features and
    logits of the copy are compared with those of ``model`` on a probe image (``verify_optimized``).
    Warnings name what could not be optimized: batch norms that were not folded, a box head that
    does not take channels-last features (``box_features``), convolutions without Winograd.

    Args:
        dtype: of weights and features, such as ``torch.bfloat16``; boxes, scores and masks stay
            float32. By default the model's own. ``"int8"`` quantises backbone, RPN head, box head
            and mask head of a float32 model on the CPU, and compiles them at their first call, and
            again for a second size; the rest is bfloat16. What this changes is not verified, as it
            depends on the images: measure AP. Needs torchao; see ``int8``.
        calibration: images ``[3, H, W]`` in 0-1 of your data set for ``"int8"``, about 16. They
            give the range of each layer's inputs.
        memory_format: of images, features and convolution weights.
        fold_batch_norm: multiplies each batch norm into the convolution before it; see
            ``fold_batch_norm``.
        winograd: computes the 3x3 convolutions of a float32 model on the CPU by Winograd's
            algorithm; True is ``"f4"``, and ``"f2"`` needs less memory; see ``use_winograd``.
        compile: ``torch.compile`` of everything from the padded batch to the padded detections.
            The first call compiles, and so does the second padded size.
        cuda_graph: one CUDA graph per padded size, of the compiled function with ``compile``; see
            ``CUDAGraphs``.

    Raises:
        ValueError: a dtype that is not floating point or ``"int8"``; ``winograd`` for a model
            without a convolution that it could replace; features or logits that differ by more
            than the tolerance of the dtype; or arguments that do not go together.
        ImportError: ``"int8"`` without torchao.
    """
    int8 = dtype == "int8"
    if isinstance(dtype, str):
        check_int8(model, dtype, calibration, winograd or compile or cuda_graph)
        dtype = torch.bfloat16
    elif len(calibration):
        raise ValueError("calibration images need dtype='int8'")
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"dtype is {dtype}; it must be a float, such as torch.bfloat16, or 'int8'")
    model = copy.deepcopy(model).eval().requires_grad_(False)
    model.image_dtype = model.image_dtype or next(model.parameters()).dtype
    expected = probe_outputs(model)
    if fold_batch_norm and (left_alone := fold_batch_norms(model)):
        warnings.warn(describe_left_alone(left_alone), stacklevel=2)
    if type(model.rpn.head) is RPNHead:
        model.rpn.head = MergedRPNHead(model.rpn.head)
    if memory_format == torch.channels_last and (reason := use_channels_last_box_features(model)):
        warnings.warn(f"box features are copied before the box head: {reason}", stacklevel=2)
    own_dtype = next(model.parameters()).dtype
    if dtype is not None:
        verify(model, expected, own_dtype)  # a smaller dtype would hide an error of the folding
    int8_networks = quantizable_networks(model) if int8 else {}
    convert(model, dtype, memory_format)
    if winograd and (kept := use_winograd(model, "f4" if winograd is True else winograd)):
        warnings.warn(describe_kept(kept), stacklevel=2)
    verify(model, expected, dtype or own_dtype)
    if int8:
        use_int8(model, int8_networks, calibration)
    elif not compile:
        model = with_epilogues(model, expected, dtype or own_dtype)
    remember_parts(model)
    if compile:
        device = next(model.parameters()).device.type
        model.run_batch = torch.compile(  # type: ignore[method-assign]
            model.run_batch, fullgraph=True, options={"freezing": device == "cpu"}
        )
    if cuda_graph:
        model.run_batch = CUDAGraphs(model)  # type: ignore[method-assign]
    return model


def check_int8(
    model: GeneralizedRCNN, dtype: str, calibration: Sequence[Tensor], other: bool | str
) -> None:
    """Raises a ValueError if ``dtype`` is not ``"int8"``, or int8 is not possible.

    Args:
        other: whether an option was given that does not go together with int8.
    """
    parameter = next(model.parameters())
    if dtype != "int8":
        raise ValueError(f"dtype is {dtype!r}; it must be a torch.dtype or 'int8'")
    if parameter.device.type != "cpu" or parameter.dtype != torch.float32:
        raise ValueError(
            f"dtype='int8' needs a float32 model on the CPU, got {parameter.dtype} on "
            f"{parameter.device}"
        )
    if other:
        raise ValueError("dtype='int8' compiles by itself: no winograd, compile or cuda_graph")
    if len(calibration) == 0:
        raise ValueError("dtype='int8' needs calibration images, as [3, H, W] in 0-1")


def describe_left_alone(batch_norms: Sequence[str]) -> str:
    """One line that names the first three of them."""
    more = "" if len(batch_norms) <= 3 else f"; and {len(batch_norms) - 3} more"
    return f"{len(batch_norms)} batch norms were not folded: {'; '.join(batch_norms[:3])}{more}"


def with_epilogues(
    model: GeneralizedRCNN, expected: dict[str, Tensor], dtype: torch.dtype
) -> GeneralizedRCNN:
    """A copy after ``fuse_epilogues``; ``model``, with a warning, if ``verify`` rejects the copy.

    Args:
        expected: ``probe_outputs`` of the original.
    """
    fused = copy.deepcopy(model)
    fuse_epilogues(fused)
    try:
        verify(fused, expected, dtype)
    except ValueError as error:
        warnings.warn(f"ReLUs stay apart from their convolutions: {error}", stacklevel=3)
        return model
    return fused


def convert(
    model: GeneralizedRCNN, dtype: torch.dtype | None, memory_format: torch.memory_format
) -> None:
    """Converts each network of the model to this dtype and memory format.

    A network is any module with parameters below the stages, those that a swap added included.
    Modules without parameters, such as an anchor generator, keep their float32 buffers. Features
    between the networks have the dtype; ``RegionProposalNetwork`` and ``RoIHeads`` convert the
    predictions to float32.
    """
    for network in networks(model):
        network.to(memory_format=memory_format)
        if dtype is not None:
            network.to(dtype)
    enter = partial(_convert_images, dtype=dtype, memory_format=memory_format)
    model.backbone.register_forward_pre_hook(enter)  # type: ignore[attr-defined]


def networks(model: GeneralizedRCNN) -> list[nn.Module]:
    """The backbone, and the modules with parameters in the other stages."""
    found = []
    for name, stage in model.named_children():
        is_network = name == "backbone" or any(True for _ in stage.parameters(recurse=False))
        found += [stage] if is_network else list(stage.children())
    return [network for network in found if any(True for _ in network.parameters())]


def _convert_images(
    _: nn.Module,
    args: tuple[Tensor, ...],
    dtype: torch.dtype | None,
    memory_format: torch.memory_format,
) -> tuple[Tensor, ...]:
    return tuple(images.to(dtype=dtype, memory_format=memory_format) for images in args)
