"""Batch normalisation with fixed statistics: one scale and one bias per channel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class FrozenBatchNorm2d(nn.Module):
    """``(x - running_mean) / sqrt(running_var + eps) * weight + bias``, all of them fixed.

    Batches of detection training are too small to estimate statistics, so those of the ImageNet
    training are kept (He et al. 2015, Appendix A).

    Args:
        num_features: channels of the input ``[N, num_features, H, W]``.
        eps: added to the variance; see ``Conventions.frozen_batch_norm_eps``.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self._cached: tuple[list[Any], tuple[Tensor, Tensor], list[Tensor]] | None = None

    def scale_and_bias(self) -> tuple[Tensor, Tensor]:
        """Scale and bias, ``[num_features]`` each: the layer computes ``x * scale + bias``.

        They are cached until a buffer is written to or replaced.
        """
        buffers = list(self.buffers())
        if torch.compiler.is_compiling() or any(buffer.is_inference() for buffer in buffers):
            return self._scale_and_bias()  # no version counters to compare
        if buffers[0].is_cuda and torch.cuda.is_current_stream_capturing():
            return self._scale_and_bias()  # the graph would keep the cached values
        state = [(id(buffer), buffer.data_ptr(), buffer._version) for buffer in buffers]
        if self._cached is None or self._cached[0] != state:
            with torch.inference_mode(False):  # training may use the cached values later
                result = self._scale_and_bias()
            self._cached = state, result, buffers  # kept alive, so that no id is reused
        return self._cached[1]

    def _scale_and_bias(self) -> tuple[Tensor, Tensor]:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cached": None}  # copies and pickles have no cache

    def forward(self, x: Tensor) -> Tensor:
        scale, bias = self.scale_and_bias()
        return torch.addcmul(bias[:, None, None], x, scale[:, None, None])  # one pass over x

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # Weights of a BatchNorm2d also have a batch counter, which is not used here.
        state_dict.pop(prefix + "num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}"
