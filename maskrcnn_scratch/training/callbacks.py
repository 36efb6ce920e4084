"""Callbacks of a training run: the interface, and trackers that record the curves.

They are called on the main process only, once per line of the log and not once per step:
``--log-every 1`` makes the two the same.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from maskrcnn_scratch.files import write_atomically


class Callback(Protocol):
    """Is called as a run progresses."""

    def on_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """After every ``log_every`` steps, with the means since the last call.

        Args:
            step: steps done so far.
            metrics: ``loss``, each loss by name, ``learning_rate`` and ``images_per_s``.
        """

    def on_validation(self, step: int, metrics: Mapping[str, float], is_best: bool) -> None:
        """After a validation. ``is_best``: its weights have become ``best.pt``."""

    def on_end(self) -> None:
        """When training ends: finished, stopped, or by an error."""


class TensorBoard:
    """Curves for TensorBoard.

    Args:
        folder: folder of its files.

    Raises:
        ImportError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        self._library = _import("torch.utils.tensorboard", "tensorboard", "--no-tensorboard")
        self._folder = folder
        self._writer: Any = None

    def on_step(self, step: int, metrics: Mapping[str, float]) -> None:
        # A resumed run repeats the lines after its checkpoint.
        self._write(step, metrics, purge_step=step)

    def on_validation(self, step: int, metrics: Mapping[str, float], is_best: bool) -> None:
        self._write(step, metrics, purge_step=step + 1)

    def on_end(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _write(self, step: int, metrics: Mapping[str, float], purge_step: int) -> None:
        if self._writer is None:
            self._writer = self._library.SummaryWriter(self._folder, purge_step=purge_step)
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()


class WeightsAndBiases:
    """A run of Weights & Biases, which a resumed run continues.

    Args:
        folder: folder of the run.
        project: name of the project.
        config: the configuration, as plain values.

    Raises:
        ImportError: wandb is not installed.
    """

    def __init__(self, folder: Path, project: str, config: dict[str, Any]) -> None:
        wandb = _import("wandb", "wandb", "no --wandb")
        id = _read_id(folder / "wandb.id") or uuid.uuid4().hex[:12]
        self._run = wandb.init(
            project=project, dir=str(folder), config=config, id=id, resume="allow"
        )
        _write_id(folder / "wandb.id", id)

    def on_step(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def on_validation(self, step: int, metrics: Mapping[str, float], is_best: bool) -> None:
        self._run.log(dict(metrics), step=step)

    def on_end(self) -> None:
        self._run.finish()


class MLflow:
    """A run of MLflow, which a resumed run continues.

    Args:
        folder: folder of the run; its name is the run's name.
        experiment: name of the experiment.
        config: the configuration, as plain values; its sections become ``section.key``.

    Raises:
        ImportError: mlflow is not installed.
    """

    def __init__(self, folder: Path, experiment: str, config: dict[str, Any]) -> None:
        self._mlflow = _import("mlflow", "mlflow", "no --mlflow")
        self._mlflow.set_experiment(experiment)
        known = _read_id(folder / "mlflow.id")
        run = self._mlflow.start_run(run_id=known, run_name=folder.name)
        if known is None:
            self._mlflow.log_params(flat(config))
            _write_id(folder / "mlflow.id", run.info.run_id)

    def on_step(self, step: int, metrics: Mapping[str, float]) -> None:
        self._mlflow.log_metrics(dict(metrics), step=step)

    def on_validation(self, step: int, metrics: Mapping[str, float], is_best: bool) -> None:
        self._mlflow.log_metrics(dict(metrics), step=step)

    def on_end(self) -> None:
        self._mlflow.end_run()


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested dict as one with keys ``section.key``."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def _import(module: str, package: str, otherwise: str) -> ModuleType:
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{package} is missing: pip install {package}, or train with {otherwise}"
        ) from error


def _read_id(path: Path) -> str | None:
    return path.read_text().strip() if path.exists() else None


def _write_id(path: Path, id: str) -> None:
    write_atomically(path, lambda file: file.write(id.encode()))
