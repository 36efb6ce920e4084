"""The options of a model that trains in seconds."""

from maskrcnn_scratch.builders.from_config import ModelConfig

TINY = ModelConfig(
    architecture="small",
    weights="none",
    widths=(8, 16, 16, 16),
    min_size=(64,),
    max_size=64,
    anchor_sizes=(8, 16, 32, 48, 64),
    pre_nms_top_n=50,
    post_nms_top_n=20,
    rpn_samples=32,
    box_samples=16,
)
