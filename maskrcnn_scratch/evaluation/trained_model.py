"""A trained model from its file, with what its labels mean."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from maskrcnn_scratch.builders import load_model
from maskrcnn_scratch.mask_rcnn import GeneralizedRCNN
from maskrcnn_scratch.training.build_model import ModelConfig, build_model
from maskrcnn_scratch.training.checkpoint import load_checkpoint
from maskrcnn_scratch.training.plain_values import from_dict


@dataclass(frozen=True)
class TrainedModel:
    """A model in eval mode.

    ``num_classes`` counts the background. ``category_labels`` maps the category ids it was trained
    on to its labels; None for weights that do not say.
    """

    model: GeneralizedRCNN
    num_classes: int
    category_labels: dict[int, int] | None = None

    def labels_of(self, category_ids: Iterable[int]) -> dict[int, int]:
        """Label of each category of a data set.

        Weights that do not say have either one label for each category, in the order of the ids, or
        the ids themselves as labels, as the published COCO weights.

        Raises:
            ValueError: neither fits.
        """
        if self.category_labels is not None:
            return self.category_labels
        ids = sorted(category_ids)
        if len(ids) == self.num_classes - 1:
            return {category: label for label, category in enumerate(ids, 1)}
        if ids and ids[0] >= 1 and ids[-1] < self.num_classes:
            return {category: category for category in ids}
        raise ValueError(
            f"the model has {self.num_classes} classes with the background, which does not fit "
            f"the data's {len(ids)} categories"
        )


def load_trained(path: str | PathLike[str]) -> TrainedModel:
    """The model of a checkpoint of ``maskrcnn train``, or of a weights file of any known layout.

    Raises:
        FileNotFoundError, ValueError, WeightsError: there is no such file, or it is no such thing.
    """
    path = Path(path)
    try:
        checkpoint = load_checkpoint(path)
    except ValueError:  # plain weights, which load_model reads, or else says what is wrong
        checkpoint = {}
    if "config" not in checkpoint:
        model = load_model(path)
        return TrainedModel(
            model, len(model.state_dict()["roi_heads.box_predictor.cls_score.bias"])
        )
    category_labels = checkpoint["category_labels"]
    num_classes = max(category_labels.values()) + 1
    trained = build_model(from_dict(ModelConfig, checkpoint["config"]["model"]), num_classes)
    trained.load_state_dict(checkpoint["model"])
    return TrainedModel(trained.eval(), num_classes, category_labels)
