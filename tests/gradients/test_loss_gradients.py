"""The losses' gradients, against finite differences in float64."""

import torch
from torch.autograd import gradcheck

from maskrcnn_scratch import losses


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def test_gradcheck():
    torch.manual_seed(0)
    labels = torch.tensor([0, 2, 1, 0, 2])
    targets = torch.randn(5, 4, dtype=torch.float64)
    soft_masks = torch.rand(5, 4, 4, dtype=torch.float64)
    is_object = (labels > 0).double()
    objects = labels.clamp(min=1)
    assert gradcheck(lambda x: losses.loss_objectness(x, is_object), randn(5))
    assert gradcheck(lambda x: losses.loss_rpn_box_reg(x, is_object, targets), randn(5, 4))
    assert gradcheck(lambda x: losses.loss_classifier(x, labels), randn(5, 3))
    assert gradcheck(lambda x: losses.loss_box_reg(x, labels, targets), randn(5, 12))
    assert gradcheck(lambda x: losses.loss_mask(x, objects, soft_masks), randn(5, 3, 4, 4))
