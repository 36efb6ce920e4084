"""Learning rates and averages equal those of torch's classes."""

import pytest
import torch
from torch.optim import lr_scheduler
from torch.optim.swa_utils import AveragedModel

from maskrcnn_scratch.training import schedule
from maskrcnn_scratch.training.ema import ExponentialMovingAverage
from tests.training import toy


def torch_rates(make, steps):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = make(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(
    "ours, theirs",
    [
        (schedule.constant(), lambda o: lr_scheduler.ConstantLR(o, 1.0)),
        (schedule.multi_step([5, 12]), lambda o: lr_scheduler.MultiStepLR(o, [5, 12])),
        (schedule.cosine(20), lambda o: lr_scheduler.CosineAnnealingLR(o, 20)),
        (
            schedule.with_warmup(schedule.constant(), 6, start=0.1),
            lambda o: lr_scheduler.LinearLR(o, start_factor=0.1, total_iters=6),
        ),
        (
            schedule.with_warmup(schedule.cosine(20, warmup_steps=5), 5, start=0.1),
            lambda o: lr_scheduler.SequentialLR(
                o,
                [
                    lr_scheduler.LinearLR(o, start_factor=0.1, total_iters=5),
                    lr_scheduler.CosineAnnealingLR(o, 15),
                ],
                [5],
            ),
        ),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_schedules(ours, theirs):
    assert [ours(step) for step in range(20)] == pytest.approx(torch_rates(theirs, 20), abs=1e-7)


def test_schedule_of_a_config():
    config = toy.toy_config("", epochs=12, schedule="step", milestones=(8, 11), warmup=0.1)
    factors = [schedule.schedule_for(config, 120)(step) for step in (0, 6, 12, 79, 80, 110)]
    assert factors == pytest.approx([0.001, 0.5005, 1, 1, 0.1, 0.01])


def test_no_warmup():
    config = toy.toy_config("", schedule="constant", warmup=0.0)
    assert schedule.schedule_for(config, 100)(0) == 1


def test_average_equals_torch():
    model = toy.ToyModel()
    ours = ExponentialMovingAverage(model, decay=0.6)
    theirs = AveragedModel(
        model,
        multi_avg_fn=lambda old, new, n: torch._foreach_lerp_(
            old, new, 1 - min(0.6, (1 + int(n)) / (10 + int(n)))
        ),
    )
    theirs.update_parameters(model)  # the first one copies
    for step in range(1, 30):
        for parameter in model.parameters():
            parameter.data += torch.randn_like(parameter)
        model.norm.num_batches_tracked += 1
        ours.update(model, step)
        theirs.update_parameters(model)
    for name, value in theirs.module.named_parameters():
        torch.testing.assert_close(ours.module.get_parameter(name), value)
    assert ours.module.norm.num_batches_tracked == 29
    assert not ours.module.training and not any(p.requires_grad for p in ours.module.parameters())
