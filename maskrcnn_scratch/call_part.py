"""How the stages call a custom part: what it may ask for, and what it may return, in addition.

A part asks for more by naming it: a matcher whose signature has ``level_sizes`` is given them.
``interfaces`` lists the names. The signature is read at each call, so that a part may be replaced
at any time. Shapes: see ``structures``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from inspect import Parameter, signature
from typing import Any

from torch import Tensor

from maskrcnn_scratch import ops
from maskrcnn_scratch.interfaces import NMS, BoxCoder
from maskrcnn_scratch.ops.boxes import clip_boxes_to_image, has_min_size
from maskrcnn_scratch.structures import gather_entries


def asks_for(part: Callable[..., Any], name: str) -> bool:
    """Whether the signature of ``part``, of its ``forward`` if it is a module, has ``name``."""
    return name in _parameters(part)


def accepts(part: Callable[..., Any], name: str) -> bool:
    """Whether ``part`` may be given ``name``: it asks for it, or has ``**kwargs``."""
    return asks_for(part, name) or any(
        parameter.kind is parameter.VAR_KEYWORD for parameter in _parameters(part).values()
    )


def _parameters(part: Callable[..., Any]) -> Mapping[str, Parameter]:
    while isinstance(part, partial):
        part = part.func
    try:
        return signature(getattr(part, "forward", part)).parameters
    except ValueError:  # some builtin functions have no signature
        return {}


def with_context(part: Callable[..., Any], **context: Any) -> Callable[..., Any]:
    """``part`` with those of the keyword arguments ``context`` that it asks for."""
    asked = {name: value for name, value in context.items() if asks_for(part, name)}
    return partial(part, **asked) if asked else part


def decode_boxes(
    box_coder: BoxCoder,
    deltas: Tensor,
    delta_indices: Tensor,
    references: Tensor,
    reference_indices: Tensor,
    image_sizes: Tensor,
    min_size: float,
) -> tuple[Tensor, Tensor]:
    """``box_coder.decode``, then the boxes are clipped to the image and their sides tested.

    Args:
        box_coder: the default one has an operator for all of this, ``ops.decode_boxes``.
        deltas: ``[N, A, 4]``.
        delta_indices: of the candidates, ``[N, K]`` in ``[0, A)``.
        references: anchors or proposals, ``[N, P, 4]``, or ``[1, P, 4]`` for all images.
        reference_indices: of the candidates, ``[N, K]`` in ``[0, P)``.
        image_sizes: (height, width) without padding, ``[N, 2]``.
        min_size: length in pixels that both sides of a box must have.

    Returns:
        Boxes ``[N, K, 4]``, and bool ``[N, K]``: whether both sides have ``min_size``.
    """
    if type(box_coder) is ops.boxes.BoxCoder:
        return ops.decode_boxes(
            box_coder, deltas, delta_indices, references, reference_indices, image_sizes, min_size
        )
    deltas = gather_entries(deltas, delta_indices)  # [N, K, 4]
    references = references.expand(deltas.shape[0], -1, -1)
    references = gather_entries(references, reference_indices)  # [N, K, 4]
    boxes = clip_boxes_to_image(box_coder.decode(deltas, references), image_sizes)
    return boxes, has_min_size(boxes, min_size)


def run_nms(
    nms: NMS,
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor,
    iou_threshold: float,
    max_out: int,
    num_groups: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """``nms``, and the scores of what it selects.

    The arguments are those of ``interfaces.NMS``.

    Returns:
        indices: int64 ``[N, max_out]`` in ``[0, K)``.
        counts: int64 ``[N]``.
        scores: ``[N, max_out]``: those that ``nms`` returns, if it does; else those it was given.
            The values of padding have no meaning.
    """
    indices, counts, *rescored = nms(boxes, scores, groups, iou_threshold, max_out, num_groups)
    return indices, counts, rescored[0] if rescored else scores.gather(1, indices)
