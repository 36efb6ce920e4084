"""torch.export programs in a fresh process, and a compiled package in C++."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from maskrcnn_scratch.export import Detector, ExportOptions, export_program, export_to_file

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
LOAD = """
import sys
import torch
import maskrcnn_scratch.ops

program = torch.export.load(sys.argv[1]).module()
torch.save([program(images) for images in torch.load(sys.argv[2])], sys.argv[3])
assert "maskrcnn_scratch.mask_rcnn" not in sys.modules
"""


def test_program_in_a_fresh_process(model, photos, tmp_path):
    path = tmp_path / "model.pt2"
    options = ExportOptions((200, 240), dynamic=True)
    assert export_to_file(model, path, options, "pt2", photos).verdict == "passed"

    batches = [
        torch.stack([photo[:, :height, :width] for photo in photos[:number]])
        for height, width, number in ((200, 240, 1), (300, 280, 3), (97, 260, 2))
    ]
    torch.save(batches, tmp_path / "batches.pt")
    arguments = [LOAD, path, tmp_path / "batches.pt", tmp_path / "outputs.pt"]
    subprocess.run([sys.executable, "-c", *arguments], check=True, cwd=ROOT)
    detector = Detector(model, options)
    for images, outputs in zip(batches, torch.load(tmp_path / "outputs.pt"), strict=True):
        for name, expected in detector(images).items():
            torch.testing.assert_close(outputs[name], expected, rtol=1e-5, atol=1e-4, msg=name)


def test_sizes_and_batch_stay_symbols(model):
    program = export_program(model, ExportOptions((200, 240), dynamic=True))
    [images] = (
        node for node in program.graph.nodes if node.op == "placeholder" and node.name == "images"
    )
    batch, channels, height, width = images.meta["val"].shape
    assert channels == 3
    assert all(isinstance(size, torch.SymInt) for size in (batch, height, width))


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "c++")) is None, reason="no C++ compiler")
def test_package_runs_from_cpp(model, photos, tmp_path):
    path = tmp_path / "model.pt2"
    options = ExportOptions((200, 240), batch=2)
    images = torch.stack([photo[:, :200, :240] for photo in photos[:2]])
    assert export_to_file(model, path, options, "aoti", photos).verdict == "passed"
    files = []
    for n, image in enumerate(images):
        files.append(tmp_path / f"{n}.ppm")
        pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(files[-1])

    program = tmp_path / "detect"
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    subprocess.run(
        [ROOT / "tools" / "aoti_example" / "build.sh", program], check=True, env=environment
    )
    printed = subprocess.run(
        [program, path, *files], check=True, capture_output=True, text=True
    ).stdout.splitlines()

    expected = [
        (
            result["labels"][d],
            result["scores"][d],
            *result["boxes"][d],
            (result["masks"][d] > 0.5).sum(),
        )
        for result in model(list(images))
        for d in range(len(result["scores"]))
    ]
    found = torch.tensor([[float(value) for value in line.split()] for line in printed])
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=2e-2)

    broken = tmp_path / "broken.ppm"
    broken.write_bytes(b"P6 240 200 255\n")
    failed = subprocess.run([program, path, broken, broken], capture_output=True, text=True)
    assert failed.returncode == 1
    assert "broken.ppm: ends too early" in failed.stderr
