"""The source archive and the wheel: what is in them, and that it works outside of the checkout."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from maskrcnn_scratch.cli import COMMANDS, EXTRAS

ROOT = Path(__file__).parents[1]
# Not part of a checkout.
BUILT = (
    ".git", ".venv", "*.egg-info", "build", "dist", "runs", "__pycache__", ".*_cache",
    ".hypothesis", "_build", "jupyter_execute", "*.so", "*.part", "fuzz-findings", "kernel-ipc-*",
)  # fmt: skip

# Predicts, encodes and evaluates with the installed package, which has no kernels.
SMOKE = """
import sys, warnings
from importlib.resources import files
from importlib.util import find_spec
import torch
# An editable install of the checkout would find the kernels there.
sys.meta_path[:] = [f for f in sys.meta_path if "__editable__" not in getattr(f, "__module__", "")]
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import maskrcnn_scratch
    from maskrcnn_scratch.builders.small import small_maskrcnn
    from maskrcnn_scratch.data.shapes import ShapesDataset, write_coco
    from maskrcnn_scratch.evaluation.model_results import detect_rle, evaluate_model
    from maskrcnn_scratch.ops import rle

    assert maskrcnn_scratch.__file__.startswith(sys.argv[1]), maskrcnn_scratch.__file__
    torch.manual_seed(0)
    model = small_maskrcnn(num_classes=4, min_size=96, max_size=128).eval()
    shapes = ShapesDataset(2, side=96)
    pixels, target = shapes[0]
    (detected,), (encoded,) = model([pixels]), detect_rle(model, [pixels])
    assert len(detected["masks"]) == len(encoded["masks"]) > 0
    for soft, mask in zip(detected["masks"], encoded["masks"]):
        differs = torch.from_numpy(rle.decode(mask)).bool() != (soft[0] >= 0.5)
        assert ((soft[0] - 0.5).abs()[differs] < 1e-5).all()
    if find_spec("hotcoco"):
        import json
        from maskrcnn_scratch.data.coco import CocoDataset
        from maskrcnn_scratch.evaluation.coco_ap import score

        file = write_coco(shapes, "shapes")
        annotations = json.loads(file.read_text())
        perfect = [{**entry, "score": 1.0} for entry in annotations["annotations"]]
        assert score(file, perfect, "segm").metrics["segm/AP"] == 1
        scores = evaluate_model(model, CocoDataset(file, file.parent), iou_types=("bbox", "segm"))
        assert set(scores) == {"bbox", "segm"}
ours = [str(w.message) for w in caught if "maskrcnn_scratch" in str(w.message)]
assert len(ours) == 1 and "built without kernels" in ours[0], ours
assert (files("maskrcnn_scratch") / "inspect" / "page" / "page.html").is_file()
"""


def run(*arguments: str, cwd: Path, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, (result.stdout + result.stderr)[-2000:]
    return result.stdout


def build(kind: str, source: Path, out: Path) -> Path:
    """The archive that pip would get of the build backend, without kernels."""
    out.mkdir()
    call = f"import sys, build_backend; build_backend.build_{kind}(sys.argv[1])"
    run("-c", call, str(out), cwd=source, PYTHONPATH=str(source), MASKRCNN_BUILD="none")
    (archive,) = out.iterdir()
    return archive


def files_below(folder: Path) -> set[str]:
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return {path for path in found if "__pycache__" not in path and not path.endswith(".so")}


@pytest.mark.slow
def test_archive_wheel_and_what_is_installed(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", "77")
    checkout, target, work = tmp_path / "checkout", tmp_path / "target", tmp_path / "work"
    shutil.copytree(ROOT, checkout, ignore=shutil.ignore_patterns(*BUILT))
    (checkout / "maskrcnn_scratch" / "_cpu.abi3.so").touch()  # built in place: not to be packed
    shutil.unpack_archive(build("sdist", checkout, tmp_path / "sdist"), tmp_path / "unpacked")
    (source,) = (tmp_path / "unpacked").iterdir()
    for folder in ("csrc", "maskrcnn_scratch", "tests", "tools", "docs", ".ci"):
        assert files_below(source / folder) == files_below(checkout / folder), folder
    assert {file.suffix for file in source.glob("csrc/*/*")} == {".h", ".cpp", ".cuh", ".cu"}
    assert (source / "csrc" / "cuda_module.cpp").is_file() and (source / "Makefile").is_file()
    assert not list(source.rglob("*.so"))

    wheel = build("wheel", source, tmp_path / "wheel")
    assert wheel.name.endswith("-py3-none-any.whl")
    shutil.unpack_archive(wheel, target, format="zip")
    assert files_below(target / "maskrcnn_scratch") == files_below(ROOT / "maskrcnn_scratch")
    assert {path.name for path in target.iterdir() if path.suffix != ".dist-info"} == {
        "maskrcnn_scratch"
    }
    work.mkdir()
    run("-c", SMOKE, str(target), cwd=work, PYTHONPATH=str(target), OMP_NUM_THREADS="1")


# As in pip's build environment: the folders of the environment are not on the path.
HIDDEN = """
import setuptools.build_meta, site, sys
from importlib.util import find_spec
sys.path[:] = [path for path in sys.path if path != {folder!r}]
import build_backend
site.getsitepackages = lambda: {folders!r}
site.getusersitepackages = lambda: "none"
assert not find_spec("torch")
print(build_backend.get_requires_for_build_wheel(), build_backend.get_requires_for_build_sdist())
assert bool(find_spec("torch")) == bool({folders!r})
"""


@pytest.mark.parametrize(
    "there, expected", [(True, "['ninja']"), (False, "['ninja', 'torch>=2.11']")]
)
def test_torch_is_asked_for_only_where_there_is_none(there: bool, expected: str) -> None:
    folder = str(Path(torch.__file__).parents[1])
    code = HIDDEN.format(folder=folder, folders=[folder] if there else [])
    assert run("-c", code, cwd=ROOT, MASKRCNN_BUILD="auto").strip() == f"{expected} []"
    code = HIDDEN.format(folder=folder, folders=[])
    assert run("-c", code, cwd=ROOT, MASKRCNN_BUILD="none").strip() == "[] []"


def extras() -> dict[str, set[str]]:
    """Extra -> names of its packages, those of extras that it includes too."""
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found: dict[str, set[str]] = {}
    for extra, requirements in project["optional-dependencies"].items():  # included ones come first
        found[extra] = set()
        for requirement in requirements:
            name, _, included = re.split(r"[><=]", requirement)[0].rstrip("]").partition("[")
            packages = [found[part] for part in included.split(",") if part] or [{name}]
            found[extra].update(*packages)
    return found


@pytest.mark.parametrize(
    "command, package",
    [
        ("predict", "tqdm"),
        ("train", "torchvision"),
        ("train", "hotcoco"),
        ("evaluate", "hotcoco"),
        ("evaluate", "matplotlib"),
        ("data", "matplotlib"),
        ("export", "onnxruntime"),
        ("inspect", "matplotlib"),
        ("parity", "scikit-image"),
    ],
)
def test_the_extra_that_an_error_names_has_the_package(command: str, package: str) -> None:
    assert package in extras()[EXTRAS.get(command, "cli")]


def test_extras_that_are_named_exist() -> None:
    assert set(EXTRAS) <= {command.split()[0] for command in COMMANDS}
    files = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "docs/howto").glob("*.md")]
    for file in [*files, *(ROOT / "maskrcnn_scratch").rglob("*.py")]:
        for names in re.findall(
            r"maskrcnn_scratch\[([a-z,]+)\]|'\.\[([a-z,]+)\]'", file.read_text()
        ):
            named = set("".join(names).split(","))
            assert named <= set(extras()), f"{file}: no extra {named - set(extras())}"


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("nm"), reason="needs Linux and nm")
@pytest.mark.parametrize("name", ["_cpu", "_cuda"])
def test_the_binary_fits_every_python_and_torch(name: str) -> None:
    """It uses the limited API of Python, and torch's C functions only, no C++ of torch."""
    binaries = list((ROOT / "maskrcnn_scratch").glob(f"{name}.*"))
    if not binaries:
        pytest.skip(f"{name} was not built")
    (binary,) = binaries
    assert binary.name == f"{name}.abi3.so"
    listing = subprocess.check_output(["nm", "-D", "--undefined-only", str(binary)], text=True)
    symbols = [line.split()[-1] for line in listing.splitlines()]
    assert [symbol for symbol in symbols if symbol.startswith(("Py", "_Py"))] == [
        "PyModule_Create2"
    ]
    torch_symbols = [symbol for symbol in symbols if "torch" in symbol or "c10" in symbol]
    assert torch_symbols
    assert all(symbol.startswith(("aoti_torch_", "torch_")) for symbol in torch_symbols)


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
@pytest.mark.parametrize(
    "megabytes, cores, limit, workers",
    [(3900, 8, "max", 1), (3900, 1, "max", 1), (8000, 2, "max", 2), (64000, 8, "max", 4),
     (64000, 8, "4000000000", 1), (64000, 8, "9223372036854771712", 4)],
)  # fmt: skip
def test_workers_fit_into_memory(
    megabytes: int, cores: int, limit: str, workers: int, tmp_path: Path
) -> None:
    """``limit`` is that of a container."""
    (tmp_path / "meminfo").write_text(f"MemTotal:  {megabytes * 1000} kB\nMemFree:  7 kB\n")
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    limits = f"{tmp_path}/meminfo {tmp_path}/memory.max {tmp_path}/missing"
    environment = {name: value for name, value in os.environ.items() if "MAKE" not in name}
    environment.pop("WORKERS", None)
    commands = subprocess.check_output(
        ["make", "--dry-run", "test", f"CORES={cores}", f"LIMITS={limits}"],
        cwd=ROOT, env=environment, text=True,
    )  # fmt: skip
    assert re.findall(r"pytest -n (\d+) ", commands) == [str(workers)]
