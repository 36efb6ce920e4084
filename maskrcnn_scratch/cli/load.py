"""The model of ``--weights``, for every command that runs one."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from maskrcnn_scratch.builders.from_config import TrainedModel


def load(
    weights: str, score_threshold: float | None = None, model: str | None = None
) -> TrainedModel:
    """The model of a name of published weights, a file or an address.

    Args:
        weights: such as COCO_V1, or as ``weights_file`` takes it.
        score_threshold: least score of a detection; by default the model's own.
        model: the user's function that builds the model, FILE.py:NAME, if it was trained with one.
    """
    from maskrcnn_scratch.builders.custom import find_builder
    from maskrcnn_scratch.builders.from_config import load_trained
    from maskrcnn_scratch.weights import MaskRCNN_ResNet50_FPN_Weights, WeightsError
    from maskrcnn_scratch.weights.download import download_weights
    from maskrcnn_scratch.weights.remote import weights_file

    if weights in MaskRCNN_ResNet50_FPN_Weights.__members__:
        try:
            file = download_weights(MaskRCNN_ResNet50_FPN_Weights[weights].url)
        except WeightsError as error:
            raise WeightsError(f"{error}, or elsewhere and pass it with --weights FILE") from error
    else:
        file = weights_file(weights)
    trained = load_trained(file, None if model is None else find_builder(model))
    if score_threshold is not None:
        trained.model.roi_heads.score_thresh = score_threshold
    return trained
