"""A small model whose detections mean something, and photographs to find them in."""

import numpy as np
import pytest
import torch

from maskrcnn_scratch.builders.small import small_maskrcnn
from maskrcnn_scratch.parity.calibrate import calibrate


@pytest.fixture(scope="session")
def photos(photographs):
    return [
        torch.from_numpy(np.ascontiguousarray(photographs[name].transpose(2, 0, 1))).float() / 255
        for name in ("astronaut", "coffee", "cat")
    ]


@pytest.fixture(scope="session")
def model(photos):
    """Finds a handful of objects in each photograph and none in a flat image."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(2)
        model = small_maskrcnn(
            7,
            widths=(16, 16, 32, 32),
            min_size=128,
            max_size=192,
            rpn_pre_nms_top_n_test=100,
            rpn_post_nms_top_n_test=50,
            box_detections_per_img=20,
        ).eval()
        calibrate(model, photos[0], background_logit=2.0)
        flat = torch.full((3, 200, 240), 0.5)
        model.roi_heads.score_thresh = float(model([flat])[0]["scores"].max()) + 0.02
        assert len(model([flat])[0]["scores"]) == 0
        assert all(3 < len(result["scores"]) <= 20 for result in model(photos))
    return model
