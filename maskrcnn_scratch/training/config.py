"""Everything a training run depends on: one frozen dataclass, its defaults, its checks.

The defaults are the published recipe (Mask R-CNN, section 3.1; torchvision's references), for four
images a step. The text under each field is what ``maskrcnn train --help`` shows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from maskrcnn_scratch.builders.from_config import ModelConfig
from maskrcnn_scratch.data.augment import Augmentation
from maskrcnn_scratch.plain_values import check_positive


@dataclass(frozen=True)
class TrainConfig:
    """A training run."""

    train_annotations: str | None = None
    """COCO annotation file to train on."""
    train_images: str | None = None
    """Folder of its images; by default it is looked for around the annotation file."""
    val_annotations: str | None = None
    """COCO annotation file for the validation loss and AP."""
    val_images: str | None = None
    """Folder of its images; likewise."""
    allow_outside: bool = False
    """Read images whose file_name leads out of their folder."""
    output: str = "runs/train"
    """Folder for checkpoints, logs and the configuration; must not hold another run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    augmentation: Augmentation = field(default_factory=Augmentation)

    epochs: int = 12
    """Passes over the training images."""
    batch_size: int = 4
    """Images a step, over all processes and accumulated micro-batches together."""
    accumulate: int = 1
    """Micro-batches whose gradients are added up for a step, to save memory."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with momentum, or AdamW."""
    learning_rate: float = 0.005
    """Base learning rate; for SGD and COCO 0.02 / 16 for each image of a batch."""
    momentum: float = 0.9
    """Of SGD."""
    weight_decay: float = 1e-4
    """Of all trained parameters."""
    schedule: Literal["step", "cosine", "constant"] = "step"
    """How the learning rate falls."""
    milestones: tuple[int, ...] = (8, 11)
    """Epochs after which the step schedule divides the learning rate by ten."""
    warmup: float = 0.05
    """Part of all steps over which the learning rate rises from a thousandth, in 0 to 1."""
    clip_grad_norm: float | None = None
    """Largest norm of the whole gradient; longer ones are scaled down to it."""
    ema_decay: float | None = None
    """Decay of the running average of the weights, such as 0.999, which is then what is validated
    and saved as the model."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of convolutions and matrix products; fp16 scales the loss."""
    compile: bool = False
    """Backbone and heads through torch.compile: faster steps after minutes of compiling, and losses
    that differ by rounding."""
    device_sampling: bool = False
    """Draw the anchors and proposals of the losses on the GPU, which then is not waited for inside
    of a step: the same distribution, but not torchvision's numbers for a seed."""
    sync_batch_norm: bool = False
    """Batch-norm statistics over all processes (GPUs only)."""
    aspect_ratio_groups: bool = True
    """Portrait and landscape images in separate batches, which saves padding."""
    seed: int = 0
    """Of the order, the augmentation, and what the model draws."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes a GPU if there is one."""
    num_workers: int = 2
    """Processes that read images; the results do not depend on it."""
    validate_every: int = 1
    """Epochs between validations; there is one at the end in any case."""
    save_every: int = 500
    """Steps between checkpoints; there is one at the end and on Ctrl-C in any case."""
    log_every: int = 20
    """Steps that a line of log.jsonl averages over."""
    tensorboard: bool = True
    """Write curves for TensorBoard as well."""
    best_metric: str = "segm/AP"
    """Validation figure whose highest value makes best.pt; the validation loss where it is not
    computed."""

    def __post_init__(self) -> None:
        check_positive(
            self, "epochs", "batch_size", "accumulate", "learning_rate", "clip_grad_norm",
            "validate_every", "save_every", "log_every",
        )  # fmt: skip
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"warmup must be in 0 to 1, got {self.warmup}")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be in 0 to 1, got {self.ema_decay}")
        if self.num_workers < 0:
            raise ValueError(f"num_workers must not be negative, got {self.num_workers}")
