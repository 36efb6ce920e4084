"""Weights: the published files, files of other libraries, and loading either into a model."""

from maskrcnn_scratch.weights.enums import (
    FasterRCNN_ResNet50_FPN_V2_Weights,
    FasterRCNN_ResNet50_FPN_Weights,
    MaskRCNN_ResNet50_FPN_V2_Weights,
    MaskRCNN_ResNet50_FPN_Weights,
    ResNet50_Weights,
    Weights,
    WeightsEnum,
)
from maskrcnn_scratch.weights.errors import WeightsError
from maskrcnn_scratch.weights.loading import LoadReport, load_pretrained
from maskrcnn_scratch.weights.remote import weights_file
from maskrcnn_scratch.weights.state_dict import read_state_dict, write_state_dict

__all__ = [
    "FasterRCNN_ResNet50_FPN_V2_Weights",
    "FasterRCNN_ResNet50_FPN_Weights",
    "LoadReport",
    "MaskRCNN_ResNet50_FPN_V2_Weights",
    "MaskRCNN_ResNet50_FPN_Weights",
    "ResNet50_Weights",
    "Weights",
    "WeightsEnum",
    "WeightsError",
    "load_pretrained",
    "read_state_dict",
    "weights_file",
    "write_state_dict",
]
