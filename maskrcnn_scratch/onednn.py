"""Layers on the CPU that oneDNN computes, and PyTorch by default does not.

The operations are those that ``torch.compile`` uses.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.jit import is_tracing  # type: ignore[attr-defined]

onednn: Any = torch.ops.mkldnn


def can_use_onednn(layer: nn.Conv2d | nn.Linear, x: Tensor) -> bool:
    """Whether oneDNN's operations can compute ``layer(x)``, and what follows it."""
    return (
        x.device.type == "cpu"
        and bool(torch.backends.mkldnn.enabled)  # false where PyTorch comes without it
        and (
            x.dtype == torch.float32
            or (x.dtype == torch.bfloat16 and onednn._is_mkldnn_bf16_supported())
        )
        and x.numel() > 0
        and is_eager(layer, x)
    )


def is_eager(layer: nn.Conv2d | nn.Linear, x: Tensor) -> bool:
    """Whether ``layer(x)`` runs operator by operator, in the dtype of its weight.

    Not under autocast, and not in a graph that is compiled, exported or traced.
    """
    return (
        x.dtype == layer.weight.dtype
        and not torch.is_autocast_enabled(x.device.type)
        and not torch.compiler.is_compiling()
        and not is_tracing()
    )


def needs_gradient(layer: nn.Conv2d | nn.Linear, x: Tensor) -> bool:
    """Whether there may be a backward pass."""
    return torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in (x, layer.weight, layer.bias)
    )


class OneDNNLinear(nn.Linear):
    """A fully connected layer, with the ReLU that follows it, if any; the same state dict.

    PyTorch computes float32 layers on the CPU by MKL, which takes twice as long on an AMD EPYC
    (``docs/reference/speed.md``). There are first derivatives only.

    Args:
        linear: gives the parameters, which are shared.
        relu: whether negative outputs become 0.
    """

    def __init__(self, linear: nn.Linear, relu: bool = False) -> None:
        sizes = linear.in_features, linear.out_features
        super().__init__(*sizes, linear.bias is not None, device="meta")
        self.weight, self.bias, self.relu = linear.weight, linear.bias, relu
        self.train(linear.training)

    def forward(self, input: Tensor) -> Tensor:
        """``[..., in_features]`` -> ``[..., out_features]``."""
        if not can_use_onednn(self, input):
            output = super().forward(input)
        elif needs_gradient(self, input):
            rows = input.reshape(-1, self.in_features)
            output = _Linear.apply(rows, self.weight, self.bias).view(*input.shape[:-1], -1)
        else:
            return multiply(input, self.weight, self.bias, "relu" if self.relu else "none")
        return F.relu(output) if self.relu else output

    def extra_repr(self) -> str:
        """The arguments, as in ``nn.Linear``."""
        return f"{super().extra_repr()}, relu={self.relu}"


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None, then: str = "none") -> Tensor:
    """``x [..., in]``, ``weight [out, in]``, ``bias [out]`` -> ``x weight^T + bias [..., out]``."""
    return onednn._linear_pointwise(x, weight, bias, then, [], "")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return multiply(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        return (
            multiply(grad, weight.mT) if for_x else None,
            multiply(grad.mT, x.mT) if for_weight else None,
            grad.sum(0) if for_bias else None,
        )
