"""The training loop: reads batches, updates the weights, validates and saves checkpoints.

Every random number is a function of the seed and the step: the order and augmentation of images
(``data/loader.py``), and the sampling in the model, since torch is seeded for each micro-batch. So
a run that was killed and resumed equals an uninterrupted run; on the CPU it is equal bit for bit.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, nullcontext
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset

from maskrcnn_scratch.checkpoint import load_checkpoint, save_checkpoint
from maskrcnn_scratch.data.batch import Batch, Target
from maskrcnn_scratch.data.loader import (
    TrainingBatches,
    training_loader,
    without_worker_traceback,
)
from maskrcnn_scratch.targets.check_targets import check_targets
from maskrcnn_scratch.targets.sampler import use_device_sampler
from maskrcnn_scratch.training import distributed
from maskrcnn_scratch.training.callbacks import Callback
from maskrcnn_scratch.training.compile_parts import compile_parts
from maskrcnn_scratch.training.config import TrainConfig
from maskrcnn_scratch.training.ema import ExponentialMovingAverage
from maskrcnn_scratch.training.finite_losses import check_finite
from maskrcnn_scratch.training.interrupt import Stopped, StopRequest
from maskrcnn_scratch.training.optimizer import build_optimizer
from maskrcnn_scratch.training.run_log import RunLog
from maskrcnn_scratch.training.schedule import schedule_for
from maskrcnn_scratch.training.step_context import autocast, seed_torch
from maskrcnn_scratch.training.validation import validation_losses
from maskrcnn_scratch.training.winograd import train_with_winograd


class Trainer:
    """Trains ``model`` and writes ``last.pt`` and ``best.pt`` to the output folder.

    Args:
        model: in training mode ``model(images, targets)`` returns a dict of losses; in eval mode
            ``model.losses(images, targets)`` returns the same without side effect.
        train_set: indexed by ``Draw``, as ``AugmentedDataset``.
        image_sizes: (height, width) of each training image, ``[images, 2]``.
        config: the configuration. Its data, model and augmentation sections are not used here.
        device: device to train on, as yielded by ``distributed.process_group``.
        val_set: images for the validation loss, indexed by integers.
        evaluate: returns metrics of a model by name, such as AP. It is called on every process and
            must return the same on each.
        metadata: further entries of the checkpoints, such as class names; plain values.
        callbacks: are called as the run progresses, on the main process.
        batches: makes the batches of this process, given the arguments of ``TrainingBatches``; its
            ``order`` may be another one.

    Raises:
        ValueError: ``config.batch_size`` is not a multiple of processes times micro-batches, or is
            "auto".
    """

    def __init__(
        self,
        model: nn.Module,
        train_set: Dataset[Any],
        image_sizes: np.ndarray,
        config: TrainConfig,
        device: torch.device | str = "cpu",
        val_set: Dataset[Any] | None = None,
        evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
        metadata: dict[str, Any] | None = None,
        callbacks: Sequence[Callback] = (),
        batches: Callable[..., TrainingBatches] = TrainingBatches,
    ) -> None:
        self.callbacks = callbacks
        self.config, self.device, self.metadata = config, torch.device(device), metadata or {}
        self.train_set, self.val_set, self.evaluate = train_set, val_set, evaluate
        self.output = Path(config.output)
        self.output.mkdir(parents=True, exist_ok=True)

        if config.batch_size == "auto":
            raise ValueError("batch_size is auto: give a number, or use maskrcnn train")
        self.batch_size = config.batch_size
        processes = distributed.world_size()
        micro_batch, rest = divmod(config.batch_size, processes * config.accumulate)
        if rest:
            raise ValueError(
                f"batch_size {config.batch_size} does not split evenly over {processes} processes "
                f"that accumulate {config.accumulate} micro-batches each"
            )
        self.batches = batches(
            image_sizes, micro_batch, config.seed, distributed.rank(), processes,
            config.aspect_ratio_groups,
        )  # fmt: skip
        self.steps_per_epoch = max(1, self.batches.steps_per_epoch // config.accumulate)
        self.total_steps = config.epochs * self.steps_per_epoch
        self.schedule = schedule_for(config, self.total_steps)

        if config.sync_batch_norm:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        # The layout of the features. Gradients then have the layout that processes exchange.
        self.model: Any = model.to(self.device).to(memory_format=torch.channels_last)
        if config.winograd:
            train_with_winograd(self.model)
        if config.device_sampling:
            use_device_sampler(self.model)
        self.ema = ExponentialMovingAverage(model, config.ema_decay) if config.ema_decay else None
        if config.compile:
            compile_parts(self.model)
        self.optimizer = build_optimizer(model, config)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")
        self.learning_rate = config.learning_rate
        self.step = 0  # updates of the weights so far
        self.validation_due = False  # before the next step
        self.best = -math.inf  # score of best.pt
        self.validations_since_best = 0
        self.log_state: dict[str, Any] | None = None  # of the log at the current step

        self.parallel = self.model
        if processes > 1:
            distributed.average_losses_over_all_ranks(self.model)
            gpus = [self.device] if self.device.type == "cuda" else None
            self.parallel = DistributedDataParallel(self.model, gpus)

    def train(self) -> None:
        """Trains from the current step to the end.

        Raises:
            NonFiniteLossError: a loss or gradient is NaN or infinite; the weights are unchanged.
            Stopped: after Ctrl-C or SIGTERM; the run is saved and can be resumed.
            Exception: an image or its annotations cannot be read; the run is saved as well.
            OSError: a checkpoint could not be written; the previous one is intact.
        """
        config = self.config
        validation_steps = config.validate_every * self.steps_per_epoch
        with (
            StopRequest() as stop,
            self.open_log() as log,
            closing(self.read_batches()) as micro_batches,
        ):
            ahead = self.read_step(micro_batches)
            while not self.finished():  # each iteration is a step or a validation
                validating = self.validation_due
                if validating:
                    found = self.validate()
                    log.validation(self.step, found, self.validations_since_best == 0)
                    self.validation_due = False
                elif not isinstance(ahead, Exception):
                    losses = self.train_step(iter(ahead))
                    self.validation_due = (
                        self.step == self.total_steps or self.step % validation_steps == 0
                    )
                    log.train_step(
                        self.step, losses, self.learning_rate, self.batch_size,
                        self.validation_due,
                    )  # fmt: skip
                    ahead = self.read_step(micro_batches)
                failed = isinstance(ahead, Exception)
                stopping = distributed.any_rank(stop.requested or failed, self.device)
                saving = validating or self.validation_due or self.step % config.save_every == 0
                if self.step > 0 and (saving or stopping):
                    self.log_state = log.save_state()
                    self.save("last.pt", resumable=True)
                if isinstance(ahead, Exception):
                    try:
                        raise ahead
                    finally:
                        del ahead  # its traceback refers to this frame, and thus to the workers
                if stopping and not self.finished():
                    raise Stopped(f"stopped after step {self.step} of {self.total_steps}")

    def finished(self) -> bool:
        """Whether the last step and its validation are done, or patience has run out."""
        ended = self.step == self.total_steps or self.out_of_patience()
        return ended and not self.validation_due

    def out_of_patience(self) -> bool:
        """Whether the last ``config.patience`` validations were not better than one before."""
        patience = self.config.patience
        return patience is not None and self.validations_since_best >= patience

    def train_step(self, micro_batches: Iterator[Batch]) -> dict[str, float]:
        """Updates the weights once and returns the losses, averaged over all processes."""
        config = self.config
        self.learning_rate = config.learning_rate * self.schedule(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
        self.parallel.train()
        parts: list[Tensor] = []  # the losses of each micro-batch, on the device
        seen: list[Sequence[Target]] = []  # the targets of each micro-batch
        for part, (images, targets) in enumerate(islice(micro_batches, config.accumulate)):
            seen.append(targets)
            seed_torch(config.seed, self.step, part, distributed.rank())
            with self.no_exchange() if part < config.accumulate - 1 else nullcontext():
                with autocast(self.device, config.precision):
                    losses = self.parallel(images, targets)
                parts.append(torch.stack([loss.detach().float() for loss in losses.values()]))
                self.scaler.scale(sum(losses.values()) / config.accumulate).backward()

        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(
            self.model.parameters(),
            math.inf if config.clip_grad_norm is None else config.clip_grad_norm,
        )
        mean = distributed.sum_over_ranks(torch.stack(parts).mean(0)) / distributed.world_size()
        # The only host synchronisation of a step: all its numbers at once.
        rows = torch.stack((*parts, mean, norm.float().expand_as(mean))).tolist()
        *of_parts, of_step, (gradient, *_) = rows
        for values, their_targets in zip(of_parts, seen, strict=True):
            check_finite(
                dict(zip(losses, values, strict=True)),
                self.step + 1,
                self.learning_rate,
                their_targets,
            )
        if not self.scaler.is_enabled():  # the scaler skips steps whose gradients overflowed
            all_targets = list(chain.from_iterable(seen))
            check_finite({"gradient": gradient}, self.step + 1, self.learning_rate, all_targets)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.step += 1
        if self.ema is not None:
            self.ema.update(self.model, self.step)
        return dict(zip(losses, of_step, strict=True))

    def read_step(self, micro_batches: Iterator[Batch]) -> list[Batch] | Exception:
        """The micro-batches of the next step, or the error that occurred while reading them.

        The list is empty after the last step. Processes read before they agree to continue, so
        that an error on one of them ends all.
        """
        if self.step == self.total_steps:
            return []
        try:
            return list(islice(micro_batches, self.config.accumulate))
        except Exception as error:
            return error

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Losses and metrics on the validation images. Saves the best weights as ``best.pt``.

        The best weights have the highest ``config.best_metric``, or the lowest loss if that metric
        is not computed.
        """
        model = self.inference_model()
        distributed.broadcast_buffers(model)
        model.eval()
        found: dict[str, float] = {}
        if self.val_set is not None:
            workers = self.config.num_workers
            found = validation_losses(model, self.val_set, workers, self.to_device)
        if self.evaluate is not None:
            found |= self.evaluate(model)
        score = found.get(self.config.best_metric, -found.get("val/loss", math.inf))
        self.validations_since_best += 1
        if score > self.best:
            self.best, self.validations_since_best = score, 0
            self.save("best.pt", resumable=False)
        return found

    def save(self, name: str, *, resumable: bool) -> None:
        """Writes a checkpoint: the model for prediction and, if resumable, the training state."""
        if not distributed.is_main():
            return
        checkpoint = {
            "model": self.inference_model().state_dict(),
            "config": dataclasses.asdict(self.config),
            "step": self.step,
            **self.metadata,
        }
        if resumable:
            checkpoint["training"] = {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "best": self.best,
                "validations_since_best": self.validations_since_best,
                "validation_due": self.validation_due,
                "log": self.log_state,
            }
        save_checkpoint(checkpoint, self.output / name)

    def resume(self) -> None:
        """Restores the state of ``last.pt``, if there is one.

        Raises:
            ValueError: it has more steps than the configuration.
        """
        path = self.output / "last.pt"
        if not path.exists():
            return
        checkpoint = load_checkpoint(path)
        training = checkpoint["training"]
        self.model.load_state_dict(training["model"])
        self.optimizer.load_state_dict(training["optimizer"])
        self.scaler.load_state_dict(training["scaler"])
        if self.ema is not None:
            self.ema.module.load_state_dict(checkpoint["model"])
        self.step, self.best = checkpoint["step"], training["best"]
        self.validations_since_best = training.get("validations_since_best", 0)
        if self.step > self.total_steps:
            raise ValueError(
                f"{path}: {self.step} steps are done, and {self.config.epochs} epochs have "
                f"{self.total_steps}: give more epochs"
            )
        self.validation_due = training["validation_due"]
        self.log_state = training.get("log")

    def read_batches(self) -> Generator[Batch]:
        """Endless micro-batches of this process, from the current step on."""
        self.batches.start = self.step * self.config.accumulate
        loader = training_loader(self.train_set, self.batches, self.config.num_workers)
        for batch in without_worker_traceback(loader):
            yield self.to_device(batch)

    def to_device(self, batch: Batch) -> Batch:
        """Copies a batch to the device."""
        images, targets = batch
        if self.config.device_sampling:  # the model does not check targets on a GPU
            sizes = [(image.shape[-2], image.shape[-1]) for image in images]
            check_targets(targets, sizes, self.model.roi_heads.num_classes(), has_mask=False)
        return batch.to(self.device)

    def inference_model(self) -> nn.Module:
        """The model with averaged weights if there is one, else the current model."""
        return self.model if self.ema is None else self.ema.module

    def no_exchange(self) -> Any:
        """Context that accumulates gradients without exchanging them between processes."""
        if isinstance(self.parallel, DistributedDataParallel):
            return self.parallel.no_sync()
        return nullcontext()

    def open_log(self) -> RunLog:
        """The log of the run, cut back to the current step."""
        return RunLog(
            self.output, self.step, self.total_steps, self.config.log_every, self.callbacks,
            self.validation_due, self.log_state, enabled=distributed.is_main(),
        )  # fmt: skip
