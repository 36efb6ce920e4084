"""The log of a run: a progress bar, log.jsonl, and callbacks, which are called for each line."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from maskrcnn_scratch.files import append_line, write_atomically
from maskrcnn_scratch.training.callbacks import Callback


class RunLog:
    """Shows every step, and writes the mean of every ``log_every`` steps.

    There is also a line before each validation, with the mean since the last line.

    Args:
        folder: folder of log.jsonl. Lines after ``step`` are dropped; a resumed run repeats them.
        step: steps done so far.
        total_steps: steps of the whole run.
        log_every: steps per line.
        callbacks: are called for each line, and at the end.
        validation_due: whether the validation after ``step`` has not been done yet.
        state: what ``save_state`` returned at ``step``; None starts a new mean.
        enabled: if False, nothing is shown or written and no callback is called (all processes
            but the main one).
    """

    def __init__(
        self,
        folder: Path,
        step: int,
        total_steps: int,
        log_every: int,
        callbacks: Sequence[Callback] = (),
        validation_due: bool = False,
        state: dict[str, Any] | None = None,
        enabled: bool = True,
    ) -> None:
        self.log_every, self.enabled = log_every, enabled
        self.callbacks = callbacks if enabled else ()
        # Of the steps since the last line.
        self.sums: dict[str, float] = {} if state is None else dict(state["sums"])
        self.steps = 0 if state is None else state["steps"]
        self.images = 0 if state is None else state["images"]
        self.seconds = 0.0 if state is None else state["seconds"]
        self.last = time.monotonic()
        if not enabled:
            return
        from tqdm import tqdm

        self.path = folder / "log.jsonl"
        drop_lines_after(self.path, step, validation_due)
        self.bar = tqdm(
            total=total_steps,
            initial=step,
            unit="step",
            dynamic_ncols=True,
            mininterval=0.1 if sys.stderr.isatty() else 30,
        )

    def train_step(
        self,
        step: int,
        losses: dict[str, float],
        learning_rate: float,
        images: int,
        validation_due: bool = False,
    ) -> None:
        """Logs the losses of a step and the number of its images."""
        if not self.enabled:
            return
        values = {"loss": sum(losses.values()), **losses}
        for name, value in {**values, "learning_rate": learning_rate}.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        now = time.monotonic()
        self.steps += 1
        self.images += images
        self.seconds += now - self.last
        self.last = now
        speed = self.images / self.seconds
        self.bar.set_postfix_str(
            f"{format_metrics(values)}, lr {learning_rate:.2g}, {speed:.1f} images/s, "
            f"{peak_memory() / 2**30:.1f} GiB",
            refresh=False,
        )
        self.bar.update()
        if self.steps == self.log_every or validation_due:
            self._write_means(step)

    def validation(self, step: int, metrics: dict[str, float], is_best: bool = False) -> None:
        """Prints and writes validation metrics. Validation time is not part of ``images_per_s``."""
        if not self.enabled:
            return
        if metrics:
            shown = {k: v for k, v in metrics.items() if not k.startswith("val/loss_")}
            self.bar.write(f"step {step}: {format_metrics(shown)}", file=sys.stderr)
            self._write(step, metrics)
            for callback in self.callbacks:
                callback.on_validation(step, metrics, is_best)
        self.last = time.monotonic()

    def save_state(self) -> dict[str, Any]:
        """The sums of the next line, for a checkpoint, after all lines so far are on the disk."""
        if self.enabled and self.path.exists():
            with self.path.open("rb+") as file:
                os.fsync(file.fileno())
        return {
            "sums": dict(self.sums),
            "steps": self.steps,
            "images": self.images,
            "seconds": self.seconds,
        }

    def _write_means(self, step: int) -> None:
        """Writes a line with the means since the last line."""
        means = {name: total / self.steps for name, total in self.sums.items()}
        means["images_per_s"] = self.images / self.seconds
        self._write(step, means)
        for callback in self.callbacks:
            callback.on_step(step, means)
        self.sums, self.steps, self.images, self.seconds = {}, 0, 0, 0.0

    def _write(self, step: int, metrics: dict[str, float]) -> None:
        append_line(self.path, json.dumps({"step": step, **metrics}))

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.enabled:
            self.bar.close()
        for callback in self.callbacks:
            callback.on_end()


def format_metrics(metrics: dict[str, float]) -> str:
    """``mask 0.123, ...``: names without the prefix "loss_", and values."""
    return ", ".join(f"{name.removeprefix('loss_')} {v:.3f}" for name, v in metrics.items())


def peak_memory() -> int:
    """Peak memory in bytes: of the GPU if one is in use, else of this process.

    0 where the operating system does not say (Windows).
    """
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def drop_lines_after(path: Path, step: int, validation_due: bool = False) -> None:
    """Drops the lines of a log that were written after the checkpoint of ``step``."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines(keepends=True):
        if not line.endswith("\n"):
            break  # incomplete: the process was killed while it wrote
        entry = json.loads(line)
        validation = "learning_rate" not in entry
        if entry["step"] > step or (entry["step"] == step and validation and validation_due):
            break
        kept.append(line)
    write_atomically(path, lambda file: file.write("".join(kept).encode()))
