"""``maskrcnn train``: trains Mask R-CNN or Faster R-CNN on your data, or resumes a run."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, fields, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
import tyro
from torch import nn

from maskrcnn_scratch.builders.custom import find_builder
from maskrcnn_scratch.builders.from_config import (
    build_model,
    load_starting_weights,
    with_resolved_eps,
)
from maskrcnn_scratch.cli import INTERRUPTED, UsageError, pick_device
from maskrcnn_scratch.cli.train_data import largest, read_data
from maskrcnn_scratch.data.augment import AugmentedDataset
from maskrcnn_scratch.data.categories import match_categories, warn_about_classes
from maskrcnn_scratch.data.coco import CocoDataset
from maskrcnn_scratch.data.coco_json import read_json
from maskrcnn_scratch.data.loader import Draw
from maskrcnn_scratch.data.pixel_limit import pixel_limit
from maskrcnn_scratch.dataset_check.report import Report
from maskrcnn_scratch.evaluation.coco_ap import NOT_COMPUTED, IouType
from maskrcnn_scratch.evaluation.evaluator import Evaluator
from maskrcnn_scratch.files import write_json
from maskrcnn_scratch.plain_values import from_dict, shown
from maskrcnn_scratch.training import distributed
from maskrcnn_scratch.training.batch_size import automatic_batch_size
from maskrcnn_scratch.training.callbacks import Callback, MLflow, TensorBoard, WeightsAndBiases
from maskrcnn_scratch.training.config import TrainConfig
from maskrcnn_scratch.training.config_file import read_config
from maskrcnn_scratch.training.interrupt import Stopped
from maskrcnn_scratch.training.run_lock import lock_run
from maskrcnn_scratch.training.trainer import Trainer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOGGED = ("AP", "AP50", "AP75")  # of COCO's twelve numbers, for boxes and masks
METRICS = tuple(f"{kind}/{name}" for kind in ("bbox", "segm") for name in LOGGED)
# What may differ when a run is resumed: how long it goes on, where, and what it writes.
CHANGEABLE = (
    "epochs", "patience", "device", "num_workers", "max_pixels", "validate_every", "save_every",
    "log_every", "tensorboard", "wandb", "mlflow", "pictures",
)  # fmt: skip


def train(
    config: Annotated[
        TrainConfig, tyro.conf.arg(name=""), tyro.conf.OmitArgPrefixes
    ] = TrainConfig(),  # noqa: B008, it is immutable
    resume: Path | None = None,
    config_file: Annotated[Path | None, tyro.conf.arg(name="config")] = None,
) -> int:
    """Train Mask R-CNN or Faster R-CNN on your data.

    On several GPUs: torchrun --nproc-per-node N -m maskrcnn_scratch train ...

    Args:
        config: The configuration.
        resume: Output folder of a run to resume, with the configuration stored there. More --epochs
            extend a finished run; options of speed, log and device may also differ.
        config_file: YAML or JSON file with the same keys as the options, such as config.json of a
            run. Other options override it.
    """
    if resume is not None:
        config = config_of_resumed(config, resume)
    else:
        if config.train_annotations is None:
            raise UsageError("--train-annotations is missing: give a file or folder to train on")
        if config_file is not None:
            check_model(config, read_config(config_file), config_file)
        config = replace(config, model=with_resolved_eps(config.model))
    if config.val_annotations is not None and config.best_metric not in METRICS:
        raise UsageError(
            f"--best-metric is {config.best_metric}; it must be one of {', '.join(METRICS)}"
        )
    with (
        distributed.process_group(torch.device(pick_device(config.device))) as device,
        lock_run(Path(config.output)) if distributed.is_main() else nullcontext(),
        pixel_limit(config.max_pixels),
    ):
        if resume is None:
            check_output(config)
        trainer = make_trainer(config, device)
        config = replace(config, batch_size=trainer.batch_size)  # "auto" as a number
        trainer.resume()
        if distributed.is_main():
            write_json(trainer.output / "config.json", asdict(config), indent=2)
            print(json.dumps(asdict(config), indent=2), flush=True)
        try:
            trainer.train()
        except Stopped as stopped:
            if distributed.is_main():
                print(f"{stopped}; resume with: maskrcnn train --resume {config.output}")
            return INTERRUPTED
        if distributed.is_main():
            if trainer.step < trainer.total_steps:
                print(f"stopped early: no better validation in the last {config.patience}")
            names = [name for name in ("best.pt", "last.pt") if (trainer.output / name).exists()]
            print(f"done: {', '.join(str(trainer.output / name) for name in names)}")
    return 0


def with_stored_defaults(args: Sequence[str]) -> Callable[..., int]:
    """``train`` with the defaults of the file or run that ``--config`` or ``--resume`` names.

    The other options on the command line then override them.
    """
    options = {}
    for argument, following in zip(args, [*args[1:], ""], strict=True):
        name, equals, value = argument.partition("=")
        if name in ("--config", "--resume"):
            options[name] = value if equals else following
    if len(options) == 2:
        raise UsageError("--resume uses the configuration of the run: do not give --config")
    if "--config" in options:
        return partial(train, config=without_model(read_config(Path(options["--config"]))))
    if "--resume" in options:
        return partial(train, config=without_model(stored_config(Path(options["--resume"]))))
    return train


def without_model(config: TrainConfig) -> TrainConfig:
    """``config`` without ``--model``, whose code runs only if the command line has it."""
    return replace(config, model=replace(config.model, model=None))


def check_model(config: TrainConfig, stored: TrainConfig, source: Path) -> None:
    """Raises a UsageError if ``source`` has a ``--model`` and ``config`` has none."""
    if stored.model.model is not None and config.model.model is None:
        raise UsageError(
            f"{source} has the model of {shown(stored.model.model, 200)}: give --model again, "
            "which runs that code"
        )


def stored_config(folder: Path) -> TrainConfig:
    """The configuration of the run in ``folder``, which may have been moved."""
    return replace(from_dict(TrainConfig, read_json(folder / "config.json")), output=str(folder))


def config_of_resumed(config: TrainConfig, folder: Path) -> TrainConfig:
    """The configuration to resume the run in ``folder`` with.

    Args:
        config: that of the run with changes; ``TrainConfig()`` stands for no changes.

    Raises:
        UsageError: something else than ``CHANGEABLE`` differs.
    """
    stored = stored_config(folder)
    check_model(config, stored, folder)
    if config == TrainConfig():
        return stored
    same_code = bool(config.model.model) == bool(stored.model.model)  # which may have moved
    before, now = (without_model(each) if same_code else each for each in (stored, config))
    for field in fields(TrainConfig):
        name = field.name
        if name not in CHANGEABLE and getattr(now, name) != getattr(before, name):
            options = ", ".join(f"--{each.replace('_', '-')}" for each in CHANGEABLE)
            raise UsageError(
                "--resume uses the configuration of the run: do not give other options than "
                f"{options}; {name} differs"
            )
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
    """The trainer for a configuration: data sets, model, evaluation and callbacks."""
    data = read_data(config)
    crowds = config.crowds_as_objects
    images = CocoDataset(
        data["train"].annotation_file,
        data["train"].image_folder,
        apply_exif=config.exif,
        crowds_as_objects=crowds,
        allow_outside=config.allow_outside,
    )
    if images.crowd_only:
        raise ValueError(
            f"{config.train_annotations}: {', '.join(map(repr, images.crowd_only[:3]))} has crowd "
            "regions only (iscrowd 1), which are not trained on: if they are single objects, use "
            "--crowds-as-objects"
        )
    torch.manual_seed(config.seed)
    builder = build_model if config.model.model is None else find_builder(config.model.model)
    build = partial(builder, config.model, images.num_classes)
    model = build()
    new = not (Path(config.output) / "last.pt").exists()
    if new:
        load_starting_weights(model, config.model)
    has_masks = model.roi_heads.has_mask()
    objects = data["train"].report.objects
    if has_masks and not images.masks_exist and objects and objects.names:
        warnings.warn(
            f"{config.train_annotations}: no object has a mask, so the mask branch does not learn; "
            "--architecture fasterrcnn_resnet50_fpn has none",
            stacklevel=2,
        )
    val_set = None
    if "val" in data:
        val_set = CocoDataset(
            data["val"].annotation_file,
            data["val"].image_folder,
            partial(match_categories, class_names=images.class_names),
            apply_exif=config.exif,
            crowds_as_objects=crowds,
            allow_outside=config.allow_outside,
        )
        warn_about_classes(
            config.val_annotations,
            val_set.categories,
            val_set.category_labels,
            images.class_names,
            "the training set",
            val_set.used_categories,
        )
        if config.best_metric == "segm/AP" and not (has_masks and val_set.masks_exist):
            config = replace(config, best_metric="bbox/AP")
    evaluator = None
    if val_set is not None:
        kinds: tuple[IouType, ...] = ("bbox", "segm") if has_masks else ("bbox",)
        evaluator = Evaluator(val_set, kinds, device, config.num_workers, details=config.pictures)

    def evaluate(model: nn.Module) -> dict[str, float]:
        assert evaluator is not None
        metrics = evaluator(model)
        computed = {name for name, value in metrics.items() if value != NOT_COMPUTED}
        return {name: metrics[name] for name in METRICS if name in computed}

    train_set = AugmentedDataset(images, config.augmentation.build(), config.seed)
    if config.batch_size == "auto":
        samples = [train_set[Draw(0, index)] for index in largest(images)]
        size = automatic_batch_size(config, build, samples, device, len(images))
        config = replace(config, batch_size=size)
    trainer = Trainer(
        model,
        train_set,
        images.sizes,
        config,
        device,
        val_set,
        None if val_set is None else evaluate,
        {"class_names": images.class_names, "category_labels": images.category_labels},
    )
    if distributed.is_main():
        trainer.callbacks = make_callbacks(config, evaluator)
        if config.pictures and new:
            draw_data(trainer, images, data["train"].report)
    return trainer


def make_callbacks(config: TrainConfig, evaluator: Evaluator | None) -> list[Callback]:
    """The trackers and pictures that the configuration asks for."""
    output = Path(config.output)
    callbacks: list[Callback] = []
    if config.tensorboard:
        callbacks.append(TensorBoard(output / "tensorboard"))
    if config.wandb:
        callbacks.append(WeightsAndBiases(output, config.wandb, asdict(config)))
    if config.mlflow:
        callbacks.append(MLflow(output, config.mlflow, asdict(config)))
    if config.pictures:
        try:
            from maskrcnn_scratch.pictures.run_pictures import RunPictures
        except ImportError as error:
            warnings.warn(f"no pictures of the run: {error}", stacklevel=2)
        else:
            callbacks.append(RunPictures(output, evaluator))
    return callbacks


def draw_data(trainer: Trainer, images: CocoDataset, report: Report) -> None:
    """Writes ``labels.png``, and ``train_batch.jpg`` of the first step."""
    try:
        from maskrcnn_scratch.pictures.labels import labels_figure
        from maskrcnn_scratch.pictures.save import try_to_save
        from maskrcnn_scratch.pictures.train_batch import MOST_IMAGES, train_batch_figure
    except ImportError:
        return  # make_callbacks has warned

    def draw_batch() -> Figure:
        batches = islice(trainer.batches, trainer.config.accumulate)
        draws = [draw for batch in batches for draw in batch][:MOST_IMAGES]
        items = [trainer.train_set[draw] for draw in draws]
        pixels, targets = zip(*items, strict=True)
        return train_batch_figure(pixels, targets, trainer.model.transform, images.class_names)

    names, objects = list(images.class_names.values()), report.objects
    if objects is not None:
        try_to_save(
            trainer.output / "labels.png",
            lambda: labels_figure(objects, names, report.annotation_file, report.fit),
        )
    try_to_save(trainer.output / "train_batch.jpg", draw_batch)
