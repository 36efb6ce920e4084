"""COCO metrics of a model, or of a results file."""
