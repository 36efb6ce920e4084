"""Returns intermediate outputs of a module: here, the stages of a backbone."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


class IntermediateLayerGetter(nn.ModuleDict):
    """Runs the children of a module in order and returns the outputs of some of them by name.

    Args:
        model: a module whose direct children are called one after another.
        return_layers: name of the child to name of its output, such as ``{"layer1": "0"}``.
            Children after the last of them are dropped.

    Raises:
        ValueError: ``return_layers`` names a child that ``model`` does not have.
    """

    def __init__(self, model: nn.Module, return_layers: Mapping[str, str]) -> None:
        children = dict(model.named_children())
        missing = [name for name in return_layers if name not in children]
        if missing:
            raise ValueError(f"return_layers names {missing}, the model has {list(children)}")
        last = max(list(children).index(name) for name in return_layers)
        super().__init__(dict(list(children.items())[: last + 1]))
        self.return_layers = dict(return_layers)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        outputs = {}
        for name, module in self.items():
            x = module(x)
            if name in self.return_layers:
                outputs[self.return_layers[name]] = x
        return outputs
