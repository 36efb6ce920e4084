"""Kills commands at random points, and looks at what they leave.

python -m tests.faults.kills --kills 50

A point is a number of calls that Python reports to its audit hooks: opening, renaming and removing
files, starting processes, connecting. So half-written files get more kills than loops of
arithmetic. After a kill every file that has its final name must be complete, and the command, run
again, must give what it gives without a kill.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image

from maskrcnn_scratch.builders.from_config import ModelConfig, build_model
from maskrcnn_scratch.checkpoint import load_checkpoint, save_checkpoint
from maskrcnn_scratch.cli import main as maskrcnn
from maskrcnn_scratch.data.shapes import ShapesDataset, write_coco
from maskrcnn_scratch.weights.download import download_weights
from tests.training import toy

JOBS = ("train", "evaluate", "predict", "download", "export")
MODEL = ModelConfig(
    architecture="small", weights="none", widths=(8, 16, 16, 16), min_size=(64,), max_size=64,
    anchor_sizes=(8, 16, 32, 48, 64), pre_nms_top_n=50, post_nms_top_n=20, rpn_samples=32,
    box_samples=16, detections=5,
)  # fmt: skip
Job = Callable[[Path], None]


def prepare(inputs: Path) -> None:
    """Weights, three annotated images and a file to download."""
    torch.manual_seed(0)
    content = {
        "model": build_model(MODEL, 4).state_dict(),
        "config": {"model": asdict(MODEL)},
        "class_names": {1: "circle", 2: "square", 3: "triangle"},
        "category_labels": {1: 1, 2: 2, 3: 3},
    }
    save_checkpoint(content, inputs / "weights.pt")
    write_coco(ShapesDataset(3, seed=1, side=64), inputs / "images")


def command(*arguments: object) -> None:
    assert maskrcnn([str(argument) for argument in arguments]) == 0


def train(inputs: Path, output: Path) -> None:
    """A run of a model of milliseconds, or what is left of it."""
    toy.main(output / "run")


def evaluate(inputs: Path, output: Path) -> None:
    (annotations,) = (inputs / "images").glob("*.json")
    command("evaluate", "--annotations", annotations, "--weights", inputs / "weights.pt", "--json",
            output / "scores.json", "--save-results", output / "results.json",
            "--num-workers", 0)  # fmt: skip


def predict(inputs: Path, output: Path) -> None:
    command("predict", inputs / "images", "--weights", inputs / "weights.pt", "--out",
            output / "out", "--overwrite", "--format", "coco", "json", "png",
            "--score-threshold", 0)  # fmt: skip


def export(inputs: Path, output: Path) -> None:
    command("export", output / "model.pt2", "--weights", inputs / "weights.pt", "--format", "pt2",
            "--image-size", 64, 64, "--raw-masks")  # fmt: skip


def download(inputs: Path, output: Path) -> None:
    """From a server in this process, into the cache folder of torch.hub."""
    handler = partial(QuietHandler, directory=str(inputs))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        os.environ["no_proxy"] = "127.0.0.1"
        torch.hub.set_dir(str(output))
        download_weights(f"http://127.0.0.1:{server.server_port}/weights.pt")
        server.shutdown()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


def run_counted(job: str, inputs: Path, output: Path, kill_at: int) -> None:
    """Runs a job that kills itself at that call; without one, writes how many there were."""
    sys.stdout = sys.stderr = (inputs / f"{job}.log").open("w")
    calls = 0

    def count(event: str, _: Any) -> None:
        nonlocal calls
        if event.startswith(("open", "os.", "shutil.", "socket.", "subprocess.", "fcntl.")):
            calls += 1
            if calls == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    globals()[job](inputs, output)
    if not kill_at:
        counted, calls = calls, 0
        (inputs / f"{job}-calls").write_text(str(counted))


def content_of(folder: Path) -> dict[str, Any]:
    """What each file with a final name says; a file that is not complete raises.

    Times, and orders that do not matter, are ignored.
    """
    found: dict[str, Any] = {}
    for file in sorted(folder.rglob("*")):
        name = str(file.relative_to(folder))
        if file.is_dir() or file.suffix == ".lock" or ".part" in name:
            continue
        if file.suffix == ".jsonl":
            found[name] = [without_times(json.loads(line)) for line in file.open()]
        elif file.suffix == ".json":
            found[name] = without_times(json.loads(file.read_text()))
        elif file.suffix == ".pt":
            found[name] = {k: v.tolist() for k, v in load_checkpoint(file)["model"].items()}
        elif file.suffix == ".pt2":
            found[name] = sorted(torch.export.load(file).state_dict)
        elif file.suffix in (".png", ".jpg"):
            found[name] = np.asarray(Image.open(file)).tolist()
        else:
            found[name] = file.read_bytes()
    return found


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        kept = (k for k in value if k not in ("images_per_s", "seconds", "time", "output"))
        return {key: without_times(value[key]) for key in kept}
    return [without_times(item) for item in value] if isinstance(value, list) else value


class Experiment:
    """A job, what it gives without a kill, and kills of it.

    Args:
        folder: an empty one, for inputs and outputs.
    """

    def __init__(self, job: str, folder: Path) -> None:
        self.job, self.folder = job, folder
        self.inputs = folder / "inputs"
        self.inputs.mkdir()
        prepare(self.inputs)
        (folder / "whole").mkdir()
        code = toy.run(run_counted, job, self.inputs, folder / "whole", 0)
        assert code == 0, (self.inputs / f"{job}.log").read_text()
        self.calls = int((self.inputs / f"{job}-calls").read_text())
        self.expected = content_of(folder / "whole")

    def kill(self, random: Random) -> str:
        """Kills it once, and runs it again; returns at which call."""
        at = random.randint(1, self.calls)
        where = f"{self.job}, killed at call {at} of {self.calls}"
        output = self.folder / f"killed-{at}"
        output.mkdir(exist_ok=True)
        code = toy.run(run_counted, self.job, self.inputs, output, at)
        assert code in (-signal.SIGKILL, 0), f"{where}: exit status {code}"
        content_of(output)
        code = toy.run(run_counted, self.job, self.inputs, output, 0)
        assert code == 0, f"{where}: then fails: {(self.inputs / f'{self.job}.log').read_text()}"
        assert content_of(output) == self.expected, f"{where}: then gives something else"
        left = [str(file.relative_to(output)) for file in output.rglob("*.part*")]
        assert not left, f"{where}: then leaves {left}"
        return where


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=JOBS)
    options = parser.parse_args()
    random = Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        for number, job in enumerate(options.jobs):
            place = Path(folder) / job
            place.mkdir()
            experiment = Experiment(job, place)
            for _ in range(options.kills * (number + 1) // len(options.jobs)
                           - options.kills * number // len(options.jobs)):  # fmt: skip
                print(experiment.kill(random), flush=True)
    print(f"{options.kills} kills, nothing lost")
    return 0


if __name__ == "__main__":
    sys.exit(main())
