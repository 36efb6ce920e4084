"""Folds batch normalisation into the convolution before it.

In eval mode ``norm(conv(x))`` is one affine function of ``x``: with ``scale = gamma / sqrt(var +
eps)``, the convolution gets the weight ``weight * scale`` and the bias ``beta + (bias - mean) *
scale`` (Jacob et al. 2018, section 3.2).

That holds for plain layers alone. A subclass may compute something else, a hook may change the
output, a parametrization computes the weight anew at each call, and a convolution that several
norms share cannot have the scale of each. Such pairs are left as they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn

from maskrcnn_scratch.backbone import (
    BasicBlock,
    Bottleneck,
    FrozenBatchNorm2d,
    IntermediateLayerGetter,
)

_NORMS = (nn.modules.batchnorm._BatchNorm, FrozenBatchNorm2d)  # subclasses included
# Hooks that see or change what a module computes, by nn.Module's names.
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


@torch.no_grad()
def fold_batch_norms(model: nn.Module) -> list[str]:
    """Replaces each foldable pair of convolution and batch norm by one convolution with a bias.

    A pair is two neighbours among children that run in order, or ``conv1`` and ``bn1`` (2, 3) of a
    ResNet block.

    Args:
        model: in eval mode; it is changed in place.

    Returns:
        The batch norms that were left as they are, each with the reason, such as
        ``"backbone.body.bn1: it has a hook"``.
    """
    # Not children(), which lists a module once however often its parent has it.
    uses = Counter(child for parent in model.modules() for child in parent._modules.values())
    names = {module: name for name, module in model.named_modules()}
    left_alone = []
    paired = set()
    for parent, conv_name, norm_name in list(_pairs(model)):
        conv, norm = getattr(parent, conv_name), getattr(parent, norm_name)
        paired.add(norm)
        reason = _why_not(conv, norm, uses)
        if reason is None:
            _fold(conv, norm)
            setattr(parent, norm_name, nn.Identity())
        else:
            left_alone.append(f"{names[norm]}: {reason}")
    for name, module in model.named_modules():
        if isinstance(module, _NORMS) and module not in paired:
            left_alone.append(f"{name}: it does not follow a convolution in a known order")
    return left_alone


def _pairs(model: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
    """(parent, name of a convolution, name of the batch norm that runs next)."""
    for parent in model.modules():
        names = list(parent._modules)
        if type(parent).forward in (BasicBlock.forward, Bottleneck.forward):
            candidates = [(name, f"bn{name[4:]}") for name in names if name.startswith("conv")]
        elif type(parent).forward in (nn.Sequential.forward, IntermediateLayerGetter.forward):
            candidates = list(pairwise(names))
        else:
            continue
        for conv_name, norm_name in candidates:
            conv, norm = getattr(parent, conv_name), getattr(parent, norm_name)
            if isinstance(conv, nn.Conv2d) and isinstance(norm, _NORMS):
                yield parent, conv_name, norm_name


def _why_not(conv: nn.Module, norm: nn.Module, uses: Counter[nn.Module | None]) -> str | None:
    """Why the two cannot be folded; None if they can."""
    for module, exact in ((conv, (nn.Conv2d,)), (norm, (nn.BatchNorm2d, FrozenBatchNorm2d))):
        which = "it" if module is norm else "its convolution"
        if type(module) not in exact or "forward" in vars(module):
            return f"{which} is a {type(module).__name__} with a computation of its own"
        if any(getattr(module, hooks) for hooks in _HOOKS):
            return f"{which} has a hook"
        if uses[module] != 1:
            return f"{which} is used in {uses[module]} places"
    if isinstance(norm, nn.BatchNorm2d) and (norm.running_mean is None or not norm.affine):
        return "it has no running statistics or no weight"
    return None


def _fold(conv: nn.Module, norm: nn.Module) -> None:
    assert isinstance(conv, nn.Conv2d)
    scale, bias = _scale_and_bias(norm)
    if conv.bias is not None:
        bias = bias + conv.bias * scale
    conv.weight = nn.Parameter(conv.weight * scale[:, None, None, None], requires_grad=False)
    conv.bias = nn.Parameter(bias.clone(), requires_grad=False)


def _scale_and_bias(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """``norm(x) = x * scale + bias``, each ``[F]``."""
    if isinstance(norm, FrozenBatchNorm2d):
        return norm.scale_and_bias()
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_var is not None
    assert norm.running_mean is not None
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return scale, norm.bias - norm.running_mean * scale
