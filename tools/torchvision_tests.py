"""Runs torchvision's own tests with our parts in the place of torchvision's.

    python -m tools.torchvision_tests CHECKOUT     a folder with torchvision's source and its test/

Each test runs twice, with torchvision's parts and with ours. A test that passes with torchvision's
only is listed with its reason. ``EXPECTED`` are differences by choice; any other ends with 1.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from functools import partial, wraps
from pathlib import Path
from xml.etree import ElementTree

FILES = (
    "test_ops.py",
    "test_models_detection_utils.py",
    "test_models_detection_anchor_utils.py",
    "test_models_detection_negative_samples.py",
    "test_backbone_utils.py",
    "test_models.py",
)
SELECTION = (  # the tests of what we have, by words of their names
    "TestRoIAlign or MultiScaleRoIAlign or TestNMS or FrozenBNT or BoxConversionToRoi or BoxArea "
    "or TestBoxIou or ModelsDetectionUtils or anchor or targets_to or negative_sample_frcnn or "
    "negative_sample_mrcnn or ResnetFPN or resnet50_fpn or fasterrcnn_double or generalizedrcnn"
)
EXCLUDED = "PSRoI or keypointrcnn or retinanet or fcos or mobilenet"
OURS = {  # module of torchvision -> module of ours -> names
    "ops": {"ops": "roi_align nms batched_nms", "backbone": "FrozenBatchNorm2d"},
    "ops.roi_align": {"ops": "roi_align"},
    "ops.boxes": {
        "ops": "nms batched_nms",
        "ops.boxes": "box_area box_iou clip_boxes_to_image remove_small_boxes",
    },
    "ops.misc": {"backbone": "FrozenBatchNorm2d"},
    "ops.poolers": {"roi_heads": "MultiScaleRoIAlign"},
    "models.detection._utils": {
        "ops.boxes": "BoxCoder",
        "targets.matcher": "Matcher",
        "targets.sampler": "BalancedPositiveNegativeSampler",
    },
    "models.detection.anchor_utils": {"rpn": "AnchorGenerator"},
    "models.detection.image_list": {"structures": "ImageList"},
    "models.detection.transform": {"transform": "GeneralizedRCNNTransform"},
    "models.detection.rpn": {"rpn": "AnchorGenerator RegionProposalNetwork RPNHead"},
    "models.detection.roi_heads": {"roi_heads": "RoIHeads"},
    "models.detection.faster_rcnn": {"roi_heads": "FastRCNNPredictor TwoMLPHead"},
    "models.detection.backbone_utils": {"backbone": "resnet_fpn_backbone"},
}
OURS["ops"] |= {"ops.boxes": OURS["ops.boxes"]["ops.boxes"], "roi_heads": "MultiScaleRoIAlign"}
MODELS = (
    "maskrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn_v2",
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
)
TORCHSCRIPT = "TorchScript; export gives ONNX and pt2"
QUANTIZED = "quantized tensors"
ERROR_TYPE = "a ValueError or TypeError for wrong input, where torchvision asserts"
EXPECTED = (TORCHSCRIPT, QUANTIZED, ERROR_TYPE)
REPLACE = "MASKRCNN_REPLACE_TORCHVISION"


def replace() -> None:
    """Puts our parts into torchvision's modules."""
    import torchvision

    import maskrcnn_scratch

    for theirs, homes in OURS.items():
        importlib.import_module(f"torchvision.{theirs}")
        # By sys.modules: torchvision.ops.roi_align as an attribute is the function.
        module = sys.modules[f"torchvision.{theirs}"]
        for home, names in homes.items():
            for name in names.split():
                ours = getattr(importlib.import_module(f"maskrcnn_scratch.{home}"), name)
                assert hasattr(module, name), (theirs, name)
                setattr(module, name, ours)
    for name in MODELS:
        builder = getattr(maskrcnn_scratch, name)
        # Under torchvision's name and module, by which its tests list the models.
        renamed = wraps(getattr(torchvision.models.detection, name))(partial(builder))
        setattr(torchvision.models.detection, name, renamed)
        torchvision.models._api.BUILTIN_MODELS[name] = renamed


def pytest_configure() -> None:
    """Makes this file a plugin of pytest."""
    if os.environ.get(REPLACE):
        replace()


def outcomes(checkout: Path, ours: bool) -> dict[str, tuple[str, str]]:
    """Of each test that was run: "passed", "failed" or "skipped", and the text of its failure."""
    root = Path(__file__).resolve().parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root), REPLACE: "1" if ours else ""}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", *FILES, "-q", "-p", "tools.torchvision_tests"]
        command += ["-k", f"({SELECTION}) and not ({EXCLUDED})", f"--junitxml={report}"]
        command += ["-p", "no:cacheprovider", "-p", "no:xdist", "--tb=long"]
        subprocess.run(command, cwd=checkout / "test", env=environment, stdout=sys.stderr)
        cases = ElementTree.parse(report).getroot().iter("testcase")
        found = {}
        for case in cases:
            verdict, text = "passed", ""
            for child in case:
                if child.tag in ("failure", "error", "skipped"):
                    verdict = "skipped" if child.tag == "skipped" else "failed"
                    text = f"{child.get('message')}\n{child.text}"
            found[f"{case.get('classname')}::{case.get('name')}"] = verdict, text
    return found


def reason(text: str) -> str:
    """Why a test failed: one of ``EXPECTED``, or the first line of its message."""
    if re.match(r"(?s)(ValueError|TypeError).*pytest\.raises\(AssertionError", text):
        return ERROR_TYPE
    # Not the source of the test, which pytest prints too: errors, and the lines that raised them.
    lines = text.strip().splitlines()
    errors = "\n".join(line for line in lines if re.match(r"E  |\S+:\d+: ", line))
    if re.search(r"torch[./]jit|TorchScript", errors):
        return TORCHSCRIPT
    if re.search(r"quantize|q(u)?int\d|Quantized", errors):
        return QUANTIZED
    return lines[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path)
    checkout = parser.parse_args().checkout
    theirs, ours = outcomes(checkout, False), outcomes(checkout, True)
    if not any(verdict == "passed" for verdict, _ in theirs.values()):
        parser.error(f"no test of {checkout} passes with torchvision's parts")
    reasons = {
        name: reason(text)
        for name, (verdict, text) in ours.items()
        if verdict == "failed" and theirs.get(name, ("",))[0] == "passed"
    }
    for label, found in (("torchvision's parts", theirs), ("our parts", ours)):
        print(f"{label}: {dict(Counter(verdict for verdict, _ in found.values()))}")
    counts = Counter(reasons.values())
    for text, count in counts.most_common():
        print(f"{count:4} fail with ours only: {text}")
    others = [name for name, text in reasons.items() if text not in EXPECTED]
    lost = theirs.keys() - ours.keys()
    print("\n".join([*others, *(f"not run with ours: {name}" for name in sorted(lost))]))
    return 1 if others or lost else 0


if __name__ == "__main__":
    sys.exit(main())
