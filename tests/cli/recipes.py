"""Trainers of changed annotations, for the tests of ``maskrcnn train``."""

import json
from dataclasses import replace
from pathlib import Path

import torch

from maskrcnn_scratch.cli import train as train_command


def changed_copy(file, tmp_path, change):
    content = json.loads(Path(file).read_text())
    change(content)
    copy = tmp_path / f"{change.__name__}.json"
    copy.write_text(json.dumps(content))
    return str(copy)


def prepared(recipe, folder, **changes):
    """The trainer of a run with changed annotation files, and the recipe's image folders."""
    images = {f"{part}_images": str(Path(getattr(recipe, f"{part}_annotations")).parent)
              for part in ("train", "val")}  # fmt: skip
    changes = {"output": str(folder / "run"), "pictures": False, **images, **changes}
    changed = replace(recipe, **changes)
    return train_command.make_trainer(changed, torch.device("cpu"))
