"""log.jsonl: its means, and its lines after a kill."""

import json
import os

import pytest

from maskrcnn_scratch.training.run_log import RunLog, drop_lines_after


def lines(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_means_over_steps_and_up_to_validations(tmp_path):
    with RunLog(tmp_path, 0, 10, log_every=3) as log:
        for step in range(1, 6):
            losses = {"loss_a": step, "loss_b": 1.0}
            log.train_step(step, losses, 0.25 * step, images=2, validation_due=step == 5)
        log.validation(5, {"segm/AP": 0.5})
        log.validation(5, {})
    first, second, third = lines(tmp_path)
    assert first.pop("images_per_s") > 0
    assert first == {"step": 3, "loss": 3.0, "loss_a": 2.0, "loss_b": 1.0, "learning_rate": 0.5}
    assert second["step"] == 5 and second["loss_a"] == 4.5
    assert third == {"step": 5, "segm/AP": 0.5}


def test_lines_are_on_the_disk_before_a_checkpoint(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr("os.fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino))
    with RunLog(tmp_path, 0, 10, log_every=2) as log:
        assert log.save_state()["steps"] == 0
        for step in range(1, 4):
            log.train_step(step, {"loss_a": 1.0}, 0.1, images=2)
        state = log.save_state()
    assert (state["steps"], state["images"], state["sums"]["loss_a"]) == (1, 2, 1.0)
    assert synced == [(tmp_path / "log.jsonl").stat().st_ino]


def test_disabled_writes_nothing(tmp_path):
    with RunLog(tmp_path, 0, 10, log_every=1, enabled=False) as log:
        log.train_step(1, {"loss_a": 1.0}, 0.1, images=2)
        log.validation(1, {"segm/AP": 0.5})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("cut", ["", '{"step": 9, "lo', "\0\0\0"])
def test_lines_after_the_checkpoint_are_dropped(cut, tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text("".join(f'{{"step": {step}}}\n' for step in (2, 4, 4, 6)) + cut)
    drop_lines_after(path, 4)
    assert [line["step"] for line in lines(tmp_path)] == [2, 4, 4]
    path.write_text('{"step": 4, "learning_rate": 1}\n{"step": 4, "val/loss": 1}\n')
    drop_lines_after(path, 4)
    assert len(lines(tmp_path)) == 2
    drop_lines_after(path, 4, validation_due=True)
    assert lines(tmp_path) == [{"step": 4, "learning_rate": 1}]
    drop_lines_after(tmp_path / "nothing.jsonl", 4)
    assert not (tmp_path / "nothing.jsonl").exists()
