"""Using a trained model: predictions, and pictures of them."""

from maskrcnn_scratch.inference.predictor import Predictor
from maskrcnn_scratch.inference.visualize import draw_detections

__all__ = ["Predictor", "draw_detections"]
