"""int8 networks on the CPU: post-training quantisation by torchao, compiled by ``torch.compile``.

Weights become int8 with a scale for each output channel, the inputs of convolutions and fully
connected layers uint8 with a scale and a zero point for each tensor (Jacob et al. 2018,
"Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
section 2). The scales of the inputs come from calibration images.

Backbone, RPN head, box head and mask head are quantised. The predictors after the last two, and the
features between all networks, are bfloat16. Shapes: see ``structures``.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from maskrcnn_scratch.check_parts import probe, remember_parts
from maskrcnn_scratch.generalized_rcnn import GeneralizedRCNN
from maskrcnn_scratch.inference.merged_rpn_head import MergedRPNHead


def quantizable_networks(model: GeneralizedRCNN) -> dict[str, nn.Module]:
    """What replaces modules of a float32 model, by their names: see ``use_int8``.

    An RPN head that is not a ``MergedRPNHead`` stays as it is.

    Raises:
        ImportError: torchao is not installed.
        ValueError: no graph can be made of a network.
    """
    try:
        import_module("torchao.quantization.pt2e")
    except ImportError:
        message = "dtype='int8' needs torchao: pip install 'maskrcnn_scratch[int8]'"
        raise ImportError(message, name="torchao") from None
    images, features = probe(model)
    backbone: nn.Module = model.backbone  # type: ignore[assignment]
    networks = {"backbone": observed("backbone", backbone, images.tensors, (0, 2, 3))}
    if isinstance(rpn_head := model.rpn.head, MergedRPNHead):
        layers = nn.Sequential(rpn_head.conv, rpn_head.predict)
        finest = next(iter(features.values()))
        networks["rpn.head.conv"] = observed("rpn.head", layers, finest, (0, 2, 3))
        networks["rpn.head.predict"] = nn.Identity()
    rois = images.tensors.new_zeros(1, 5)
    for branch in ("box", "mask"):
        name = f"roi_heads.{branch}_head"
        head = getattr(model.roi_heads, f"{branch}_head", None)
        if head is not None:
            pool = getattr(model.roi_heads, f"{branch}_roi_pool")
            networks[name] = observed(name, head, pool(features, rois, [images.padded_size]), (0,))
    return networks


def use_int8(
    model: GeneralizedRCNN, networks: Mapping[str, nn.Module], images: Sequence[Tensor]
) -> None:
    """Puts ``networks`` into ``model``, in place, and quantises them by what they see on images.

    Args:
        model: the same model in bfloat16.
        networks: ``quantizable_networks`` of the float32 model.
        images: ``[3, H, W]`` in 0-1.

    Raises:
        ValueError: one of the networks was not called, such as the mask head without a detection.
    """
    for name, network in networks.items():
        model.set_submodule(name, network)
    remember_parts(model)
    for image in images:
        model([image])
    for name, network in networks.items():
        if isinstance(network, QuantizedNetwork):
            if not network.num_observed:
                raise ValueError(
                    f"{name} got no input from the {len(images)} calibration images: use images on "
                    "which the model detects something"
                )
            network.quantize()


def observed(name: str, network: nn.Module, example: Tensor, dynamic: Sequence[int]) -> nn.Module:
    """A ``QuantizedNetwork`` that observes. ``example`` is one image or RoI, of any size.

    Raises:
        ValueError: see ``quantizable_networks``.
    """
    try:
        return QuantizedNetwork(network, torch.cat([example] * 2), dynamic)
    except Exception as error:  # of torch.export, of any type
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{name} cannot be quantised: {reason}") from error


class QuantizedNetwork(nn.Module):
    """A graph in place of a network. Until ``quantize`` it is float32 and observes its inputs.

    Args:
        network: takes one tensor, and returns a tensor or a dict of tensors.
        example: an input. A size of 1 would be fixed in the graph.
        dynamic: dimensions along which later inputs may differ from it.
    """

    def __init__(self, network: nn.Module, example: Tensor, dynamic: Sequence[int]) -> None:
        super().__init__()
        outputs = network(example)
        self.names = list(outputs) if isinstance(outputs, Mapping) else None
        self.out_channels = getattr(network, "out_channels", None)
        sizes = dict.fromkeys(dynamic, torch.export.Dim.DYNAMIC)
        # Unless it is strict, calls of one ReLU module look like one layer to torchao.
        program = torch.export.export(
            _Outputs(copy.deepcopy(network)), (example,), dynamic_shapes=(sizes,), strict=True
        )
        graph = program.module(check_guards=False)
        graph._forward_pre_hooks.clear()  # they refuse one image, or no RoI
        self.graph = _observing(graph)
        self.num_observed = 0  # numbers
        self.run = self._observe

    def quantize(self) -> None:
        """Ends the observation. The next call compiles the graph, which then computes in int8."""
        self.graph = _quantized(self.graph)
        self.run = torch.compile(self._int8)

    def forward(self, x: Tensor) -> Any:
        """The outputs in bfloat16."""
        # As an option of torch.compile, freezing would come too late to lay out int8 weights.
        with torch._inductor.config.patch(freezing=True), torch.no_grad():
            outputs = self.run(x)
        return outputs[0] if self.names is None else dict(zip(self.names, outputs, strict=True))

    def _observe(self, x: Tensor) -> list[Tensor]:
        self.num_observed += x.numel()
        return self._in_bfloat16(x)

    def _int8(self, x: Tensor) -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16):  # the kernels return bfloat16
            return self._in_bfloat16(x)

    def _in_bfloat16(self, x: Tensor) -> list[Tensor]:
        return [output.to(torch.bfloat16) for output in self.graph(x.float())]


class _Outputs(nn.Module):
    """The outputs of a network as a list."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> list[Tensor]:
        outputs = self.network(x)
        return list(outputs.values()) if isinstance(outputs, Mapping) else [outputs]


def _observing(graph: GraphModule) -> GraphModule:
    """``graph`` with an observer at each input that will be quantised."""
    from torchao.quantization.pt2e import allow_exported_model_train_eval
    from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    quantizer = x86.X86InductorQuantizer()
    # Without VNNI, sums of two products saturate at 16 bits: inputs then have 7 bits.
    reduce_range = not torch.cpu._is_vnni_supported()
    quantizer.set_global(
        x86.get_default_x86_inductor_quantization_config(reduce_range=reduce_range)
    )
    return allow_exported_model_train_eval(prepare_pt2e(graph, quantizer))


def _quantized(graph: GraphModule) -> GraphModule:
    """``graph`` with the scales and zero points that its observers chose."""
    from torchao.quantization.pt2e import allow_exported_model_train_eval
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

    return allow_exported_model_train_eval(convert_pt2e(graph))
