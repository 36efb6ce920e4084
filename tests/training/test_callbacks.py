"""Callbacks hear of the log's lines, validations and the end; trackers of other packages."""

import json
import sys
from types import SimpleNamespace

import pytest

from maskrcnn_scratch.training.callbacks import MLflow, TensorBoard, WeightsAndBiases, flat
from maskrcnn_scratch.training.run_log import RunLog, peak_memory
from tests.training import toy


class Recorder:
    def __init__(self):
        self.calls = []

    def on_step(self, step, metrics):
        self.calls.append(("step", step, metrics["loss_mask"]))

    def on_validation(self, step, metrics, is_best):
        self.calls.append(("validation", step, is_best))

    def on_end(self):
        self.calls.append(("end",))


def trained(folder, scores=(0.1, 0.3, 0.2, 0.3, 0.1, 0.1), recorder=None, **changes):
    """The trainer after training. Each validation gives the next of ``scores``."""
    given = iter(scores)
    trainer = toy.toy_trainer(folder, **changes)
    trainer.evaluate = lambda model: {"score": next(given)}
    trainer.callbacks = [recorder or Recorder()]
    trainer.resume()
    trainer.train()
    return trainer


def test_callbacks_hear_of_lines_validations_and_the_end(tmp_path):
    (recorder,) = trained(tmp_path, log_every=2).callbacks
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    expected = [
        ("step", line["step"], line["loss_mask"])
        if "loss_mask" in line
        else ("validation", line["step"], line["score"] in (0.1, 0.3))
        for line in lines
    ]
    assert recorder.calls == [*expected, ("end",)]
    assert [call[1:] for call in recorder.calls if call[0] == "validation"] == [
        (3, True), (6, True), (9, False),
    ]  # fmt: skip


def test_callbacks_hear_of_the_end_of_a_run_that_fails(tmp_path):
    recorder = Recorder()
    with pytest.raises(StopIteration):
        trained(tmp_path, scores=[0.1], recorder=recorder)
    assert recorder.calls[-1] == ("end",)


def test_only_the_main_process_calls_them(tmp_path):
    recorder = Recorder()
    with RunLog(tmp_path, 0, 1, 1, [recorder], enabled=False) as log:
        log.train_step(1, {"loss_mask": 1.0}, 0.1, images=2)
        log.validation(1, {"score": 1.0}, True)
    assert recorder.calls == []


def test_patience_stops_and_stays_stopped(tmp_path):
    trainer = trained(tmp_path, patience=2, epochs=6)
    assert trainer.step == 12 and trainer.best == 0.3  # the best at 6, equal or worse at 9 and 12
    again = trained(tmp_path, patience=2, epochs=6)
    assert again.step == 12
    further = trained(tmp_path, scores=(0.2, 0.4), patience=4, epochs=6)
    assert further.step == 18 and further.best == 0.4
    with pytest.raises(ValueError, match="patience must be positive"):
        toy.toy_config(tmp_path, patience=0)


def test_patience_survives_a_resume(tmp_path):
    trained(tmp_path, epochs=3)
    trainer = trained(tmp_path, scores=(0.2, 0.2), patience=2, epochs=6)
    assert trainer.step == 12 and trainer.validations_since_best == 2


def test_a_finished_run_is_extended(tmp_path):
    trained(tmp_path, epochs=2, schedule="constant", warmup=0)
    longer = trained(tmp_path, scores=(0.5,), epochs=3, schedule="constant", warmup=0)
    whole = trained(tmp_path / "whole", epochs=3, schedule="constant", warmup=0)
    assert longer.step == whole.step == 9
    for name, value in whole.model.state_dict().items():
        assert value.equal(longer.model.state_dict()[name]), name
    with pytest.raises(ValueError, match="9 steps are done, and 1 epochs have 3: give more"):
        trained(tmp_path, epochs=1)


def test_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracker = TensorBoard(tmp_path / "tensorboard")
    assert not (tmp_path / "tensorboard").exists()
    tracker.on_step(1, {"loss": 2.0})
    tracker.on_validation(1, {"segm/AP": 0.5}, True)
    tracker.on_end()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 2.0)]
    assert [e.value for e in events.Scalars("segm/AP")] == [0.5]
    TensorBoard(tmp_path / "none").on_end()


class FakeWandb:
    def __init__(self):
        self.calls = []

    def init(self, **options):
        self.calls.append(options)
        return SimpleNamespace(
            log=lambda metrics, step: self.calls.append((step, metrics)),
            finish=lambda: self.calls.append("finish"),
        )


def test_wandb_continues_a_resumed_run(tmp_path, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for step in (1, 2):
        tracker = WeightsAndBiases(tmp_path, "shapes", {"epochs": 3})
        tracker.on_step(step, {"loss": 2.0})
        tracker.on_validation(step, {"segm/AP": 0.5}, True)
        tracker.on_end()
    first, second = (call for call in fake.calls if isinstance(call, dict))
    assert first == second and first["project"] == "shapes" and first["config"] == {"epochs": 3}
    assert first["resume"] == "allow" and first["id"] == (tmp_path / "wandb.id").read_text()
    assert fake.calls[1:4] == [(1, {"loss": 2.0}), (1, {"segm/AP": 0.5}), "finish"]


class FakeMlflow:
    def __init__(self):
        self.calls = []

    def start_run(self, run_id, run_name):
        self.calls.append(("start_run", run_id, run_name))
        return SimpleNamespace(info=SimpleNamespace(run_id="r7"))

    def __getattr__(self, name):
        return lambda *values, **options: self.calls.append((name, *values, *options.values()))


def test_mlflow_continues_a_resumed_run(tmp_path, monkeypatch):
    fake = FakeMlflow()
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    for _ in range(2):
        tracker = MLflow(tmp_path, "shapes", {"epochs": 3, "model": {"weights": "none"}})
        tracker.on_step(1, {"loss": 2.0})
        tracker.on_end()
    start = ("set_experiment", "shapes")
    rest = [("log_metrics", {"loss": 2.0}, 1), ("end_run",)]
    assert fake.calls == [
        start, ("start_run", None, tmp_path.name),
        ("log_params", {"epochs": 3, "model.weights": "none"}), *rest,
        start, ("start_run", "r7", tmp_path.name), *rest,
    ]  # fmt: skip
    assert flat({"a": {"b": {"c": 1}}}) == {"a.b.c": 1}


@pytest.mark.parametrize(
    "module, make",
    [
        ("wandb", lambda folder: WeightsAndBiases(folder, "p", {})),
        ("mlflow", lambda folder: MLflow(folder, "e", {})),
        ("torch.utils.tensorboard", TensorBoard),
    ],
)
def test_a_missing_tracker_is_named(tmp_path, monkeypatch, module, make):
    monkeypatch.setitem(sys.modules, module, None)
    name = module.rsplit(".", 1)[-1]
    with pytest.raises(ImportError, match=f"{name} is missing: pip install {name}, or train with"):
        make(tmp_path)


def test_memory_where_the_system_does_not_tell(monkeypatch):
    assert peak_memory() > 0
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    assert peak_memory() == 0
