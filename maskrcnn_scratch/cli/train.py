"""``maskrcnn train``: trains Mask R-CNN on a data set in COCO format, or resumes a run."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import nn

from maskrcnn_scratch.builders.from_config import (
    build_model,
    load_starting_weights,
    with_resolved_eps,
)
from maskrcnn_scratch.cli import INTERRUPTED, UsageError, pick_device
from maskrcnn_scratch.data.augment import AugmentedDataset
from maskrcnn_scratch.data.categories import match_categories, warn_about_classes
from maskrcnn_scratch.data.coco import CocoDataset
from maskrcnn_scratch.data.coco_json import read_json
from maskrcnn_scratch.data.image_folder import find_image_folder
from maskrcnn_scratch.evaluation.coco_ap import NOT_COMPUTED
from maskrcnn_scratch.evaluation.model_results import evaluate_model
from maskrcnn_scratch.files import write_json
from maskrcnn_scratch.plain_values import from_dict
from maskrcnn_scratch.training import distributed
from maskrcnn_scratch.training.config import TrainConfig
from maskrcnn_scratch.training.interrupt import Stopped
from maskrcnn_scratch.training.run_lock import lock_run
from maskrcnn_scratch.training.trainer import Trainer

LOGGED = ("AP", "AP50", "AP75")  # of COCO's twelve numbers, for boxes and masks
METRICS = tuple(f"{kind}/{name}" for kind in ("bbox", "segm") for name in LOGGED)


def train(
    config: Annotated[
        TrainConfig, tyro.conf.arg(name=""), tyro.conf.OmitArgPrefixes
    ] = TrainConfig(),  # noqa: B008, it is immutable
    resume: Path | None = None,
) -> int:
    """Train Mask R-CNN on a data set in COCO format.

    On several GPUs: torchrun --nproc-per-node N -m maskrcnn_scratch train ...

    Args:
        config: The configuration.
        resume: Output folder of a run to resume, with the configuration stored there.
    """
    if resume is None:
        config = find_images(config)
        config = replace(config, model=with_resolved_eps(config.model))
    elif config == TrainConfig():
        config = replace(
            from_dict(TrainConfig, read_json(resume / "config.json")), output=str(resume)
        )
    else:
        raise UsageError("--resume uses the configuration of the run: do not give other options")
    if config.val_annotations is not None and config.best_metric not in METRICS:
        raise UsageError(
            f"--best-metric is {config.best_metric}; it must be one of {', '.join(METRICS)}"
        )
    with (
        distributed.process_group(torch.device(pick_device(config.device))) as device,
        lock_run(Path(config.output)) if distributed.is_main() else nullcontext(),
    ):
        if resume is None:
            check_output(config)
        trainer = make_trainer(config, device)
        if distributed.is_main():
            write_json(trainer.output / "config.json", asdict(config), indent=2)
            print(json.dumps(asdict(config), indent=2), flush=True)
        trainer.resume()
        try:
            trainer.train()
        except Stopped as stopped:
            if distributed.is_main():
                print(f"{stopped}; resume with: maskrcnn train --resume {config.output}")
            return INTERRUPTED
        if distributed.is_main():
            names = [name for name in ("best.pt", "last.pt") if (trainer.output / name).exists()]
            print(f"done: {', '.join(str(trainer.output / name) for name in names)}")
    return 0


def find_images(config: TrainConfig) -> TrainConfig:
    """The configuration with image folders filled in where they are not given."""
    if config.train_annotations is None:
        raise UsageError("--train-annotations is missing: give a COCO annotation file to train on")
    if config.train_images is None:
        folder = find_image_folder(Path(config.train_annotations))
        config = replace(config, train_images=str(folder))
    if config.val_annotations is not None and config.val_images is None:
        config = replace(config, val_images=str(find_image_folder(Path(config.val_annotations))))
    return config


def check_output(config: TrainConfig) -> None:
    """Raises a UsageError if the output folder has the checkpoint of another run.

    A run that ended before its first checkpoint may be overwritten.
    """
    output = Path(config.output)
    if (output / "last.pt").exists():
        raise UsageError(
            f"{output} contains a run: resume it with --resume {output}, or choose another --output"
        )


def make_trainer(config: TrainConfig, device: torch.device) -> Trainer:
    """The trainer for a configuration: data sets, model and evaluation."""
    assert config.train_annotations is not None and config.train_images is not None
    crowds = config.crowds_as_objects
    images = CocoDataset(
        config.train_annotations,
        config.train_images,
        crowds_as_objects=crowds,
        allow_outside=config.allow_outside,
    )
    if images.crowd_only:
        raise ValueError(
            f"{images.annotation_file}: {', '.join(map(repr, images.crowd_only[:3]))} has crowd "
            "regions only (iscrowd 1), which are not trained on: if they are single objects, use "
            "--crowds-as-objects"
        )
    val_set = None
    if config.val_annotations is not None and config.val_images is not None:
        val_set = CocoDataset(
            config.val_annotations,
            config.val_images,
            partial(match_categories, class_names=images.class_names),
            crowds_as_objects=crowds,
            allow_outside=config.allow_outside,
        )
        warn_about_classes(
            val_set.annotation_file,
            val_set.categories,
            val_set.category_labels,
            images.class_names,
            "the training set",
        )

    def evaluate(model: nn.Module) -> dict[str, float]:
        scores = evaluate_model(model, val_set, device=device, num_workers=config.num_workers)
        metrics = {k: v for score in scores.values() for k, v in score.metrics.items()}
        return {name: metrics[name] for name in METRICS if metrics[name] != NOT_COMPUTED}

    torch.manual_seed(config.seed)
    model = build_model(config.model, images.num_classes)
    if not (Path(config.output) / "last.pt").exists():
        load_starting_weights(model, config.model)
    return Trainer(
        model,
        AugmentedDataset(images, config.augmentation.build(), config.seed),
        images.sizes,
        config,
        device,
        val_set,
        None if val_set is None else evaluate,
        {"class_names": images.class_names, "category_labels": images.category_labels},
    )
