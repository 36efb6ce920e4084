"""Batch normalisation with fixed statistics: one scale and one bias a channel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class FrozenBatchNorm2d(nn.Module):
    """``(x - running_mean) / sqrt(running_var + eps) * weight + bias`` with nothing to learn.

    Detection batches are too small to estimate statistics from, so those of the ImageNet training
    are kept (ResNet as used in Faster R-CNN; He et al. 2015, Appendix A).

    Args:
        num_features: channels of the input ``[N, num_features, H, W]``.
        eps: added to the variance; 0 only for weights that were trained so.
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
        """The two vectors ``[num_features]`` that the layer comes down to: ``x * scale + bias``.

        Remembered until a buffer is written to or replaced.
        """
        buffers = list(self.buffers())
        if torch.compiler.is_compiling() or any(buffer.is_inference() for buffer in buffers):
            return self._scale_and_bias()  # neither has versions to look at
        if buffers[0].is_cuda and torch.cuda.is_current_stream_capturing():
            return self._scale_and_bias()  # a graph would keep what is remembered for ever
        state = [(id(buffer), buffer.data_ptr(), buffer._version) for buffer in buffers]
        if self._cached is None or self._cached[0] != state:
            with torch.inference_mode(False):  # it may serve in training later
                result = self._scale_and_bias()
            self._cached = state, result, buffers  # kept alive, lest an id be given again
        return self._cached[1]

    def _scale_and_bias(self) -> tuple[Tensor, Tensor]:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cached": None}  # copies and files do without

    def forward(self, x: Tensor) -> Tensor:
        scale, bias = self.scale_and_bias()
        return torch.addcmul(bias[:, None, None], x, scale[:, None, None])  # one pass over x

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # A trained BatchNorm2d counts its batches; there is nothing to count here.
        state_dict.pop(prefix + "num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}"
