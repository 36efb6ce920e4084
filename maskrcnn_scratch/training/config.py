"""The configuration of a training run: one frozen dataclass with defaults and checks.

The defaults are the published recipe (Mask R-CNN, section 3.1; torchvision's references), for four
images per step. ``maskrcnn train --help`` shows the text below each field.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from maskrcnn_scratch.builders.from_config import ModelConfig
from maskrcnn_scratch.data.augment import Augmentation
from maskrcnn_scratch.data.pixel_limit import MAX_PIXELS
from maskrcnn_scratch.plain_values import check_positive


@dataclass(frozen=True)
class TrainConfig:
    """A training run."""

    train_annotations: str | None = None
    """Annotations to train on: a COCO file, or a file or folder of labelme, Pascal VOC, YOLO, CVAT,
    VIA, Label Studio, Supervisely, FiftyOne or PNG masks."""
    train_images: str | None = None
    """Folder of the training images; by default it is searched near the annotation file."""
    val_annotations: str | None = None
    """Annotations for the validation loss and AP, as for training."""
    val_images: str | None = None
    """Folder of the validation images; by default it is searched near the annotation file."""
    crowds_as_objects: bool = False
    """Treat annotations with iscrowd 1 as single objects, as brush masks of CVAT need."""
    skip_bad: bool = False
    """Skip images and annotations with errors, and count them, instead of refusing to train. All
    images are read once more, before the first step."""
    allow_outside: bool = False
    """Read images whose file_name leads out of their folder."""
    exif: bool = True
    """Turn images by their EXIF orientation, as image viewers do."""
    max_pixels: int = MAX_PIXELS
    """Refuse images with more pixels."""
    output: str = "runs/train"
    """Folder for checkpoints, logs and the configuration; must not contain another run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    augmentation: Augmentation = field(default_factory=Augmentation)

    epochs: int = 12
    """Passes over the training images."""
    batch_size: int | Literal["auto"] = 4
    """Images per step, over all processes and accumulated micro-batches together. auto: as many as
    fit into the GPU's memory, a power of two; the learning rate stays as given."""
    accumulate: int = 1
    """Micro-batches per step, whose gradients are averaged; more need less memory."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with momentum, or AdamW."""
    learning_rate: float = 0.005
    """Base learning rate; for SGD and COCO 0.02 / 16 per image of a batch."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 1e-4
    """Weight decay of all trained parameters."""
    schedule: Literal["step", "cosine", "constant"] = "step"
    """How the learning rate decreases."""
    milestones: tuple[int, ...] = (8, 11)
    """Epochs after which the step schedule divides the learning rate by ten."""
    warmup: float = 0.05
    """Fraction of all steps, 0 to 1, in which the learning rate rises from a thousandth."""
    clip_grad_norm: float | None = None
    """Maximum norm of the gradient over all parameters; longer gradients are scaled down."""
    ema_decay: float | None = None
    """Decay of an exponential moving average of the weights, such as 0.999. The average is then
    validated and saved as the model."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of convolutions and matrix products; fp16 uses loss scaling."""
    compile: bool = False
    """Compile backbone and heads with torch.compile. It takes minutes at the start, and losses
    differ by rounding."""
    winograd: bool = False
    """Compute 3x3 convolutions and their gradients by Winograd's algorithm, and fully connected
    layers by oneDNN (CPU, fp32). Losses differ by rounding, and transformed weights need memory."""
    device_sampling: bool = False
    """Sample anchors and proposals for the losses on the GPU, without a host synchronisation inside
    a step. The distribution is torchvision's, but not the numbers for a seed."""
    sync_batch_norm: bool = False
    """Compute batch-norm statistics over all processes (GPUs only)."""
    aspect_ratio_groups: bool = True
    """Put portrait and landscape images in separate batches, which saves padding."""
    seed: int = 0
    """Seed of the image order, the augmentation and the random sampling in the model."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to train on; auto uses a GPU if there is one."""
    num_workers: int = 2
    """Processes that read images; results do not depend on their number."""
    validate_every: int = 1
    """Epochs between validations; there is always one at the end."""
    save_every: int = 500
    """Steps between checkpoints; there is always one at the end and on Ctrl-C."""
    log_every: int = 20
    """Steps per line of log.jsonl, which has their mean."""
    tensorboard: bool = True
    """Also write curves for TensorBoard."""
    wandb: str | None = None
    """Also log to this project of Weights & Biases, if wandb is installed."""
    mlflow: str | None = None
    """Also log to this experiment of MLflow, if mlflow is installed."""
    pictures: bool = True
    """Draw the data, a batch, the curves and the predictions into the output folder."""
    best_metric: str = "segm/AP"
    """Validation metric whose highest value selects best.pt; bbox/AP instead of segm/AP without
    masks, and the validation loss if the metric is not computed."""
    patience: int | None = None
    """Stop when the metric has not improved for this many validations."""

    def __post_init__(self) -> None:
        check_positive(
            self, "epochs", "accumulate", "learning_rate", "clip_grad_norm",
            "validate_every", "save_every", "log_every", "patience", "max_pixels",
        )  # fmt: skip
        if self.batch_size != "auto":
            check_positive(self, "batch_size")
        if self.winograd and (self.precision != "fp32" or self.compile):
            raise ValueError("winograd needs precision fp32, and no compile")
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"warmup must be in 0 to 1, got {self.warmup}")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be in 0 to 1, got {self.ema_decay}")
        for name in ("num_workers", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
