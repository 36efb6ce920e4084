"""Using a trained model: predictions, pictures of them, and more speed."""

from maskrcnn_scratch.inference.optimize import optimize
from maskrcnn_scratch.inference.predictor import Predictor
from maskrcnn_scratch.inference.visualize import draw_detections

__all__ = ["Predictor", "draw_detections", "optimize"]
