"""Imports run downwards: every part of the package imports only parts that stand above it here."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import maskrcnn_scratch

PACKAGE = Path(maskrcnn_scratch.__file__).parent
CONTRIBUTING = PACKAGE.parent / "CONTRIBUTING.md"

# Files and folders of the package, from the bottom to the top. CONTRIBUTING.md explains the order.
LAYERS = [
    "files", "plain_values", "user_code", "structures", "host_sync", "without_memory", "ops",
    "conv", "onednn", "winograd", "weights", "interfaces", "stage_interfaces", "call_part",
    "conventions", "transform", "backbone", "losses", "targets", "rpn", "roi_heads",
    "generalized_rcnn", "check_parts", "faster_rcnn", "mask_rcnn", "checkpoint", "builders", "data",
    "dataset_check", "training", "evaluation", "pictures", "inference", "export", "inspect",
    "parity", "component_check", "cli",
]  # fmt: skip


def layer_of(module: str) -> str:
    return module.split(".")[1]


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        if len(parts) > 2 or parts[-1] not in ("__init__", "__main__"):  # those open the package
            yield ".".join(parts), path


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Modules of the package that a file imports, at its top or inside of a function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [
                f"{node.module}.{name.name}"
                if node.module == "maskrcnn_scratch" or is_module(f"{node.module}.{name.name}")
                else node.module
                for name in node.names
            ]
        for name in names:
            if name.startswith("maskrcnn_scratch.") and name != "maskrcnn_scratch.__version__":
                public = name.removeprefix("maskrcnn_scratch.")
                if public in maskrcnn_scratch.__all__:  # "from maskrcnn_scratch import MaskRCNN"
                    name = getattr(maskrcnn_scratch, public).__module__
                yield name, node.lineno


def is_module(name: str) -> bool:
    path = PACKAGE.parent.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def test_imports_run_downwards() -> None:
    upwards = []
    for module, path in modules():
        here = LAYERS.index(layer_of(module))
        for imported, line in imports(path):
            if LAYERS.index(layer_of(imported)) > here:
                upwards.append(f"{path.relative_to(PACKAGE.parent)}:{line} imports {imported}")
    assert not upwards, "\n".join(upwards)


def test_imports_are_absolute() -> None:
    """The other tests would not see ``from . import rpn``."""
    relative = [
        f"{path.relative_to(PACKAGE.parent)}:{node.lineno}"
        for _, path in modules()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.level > 0
    ]
    assert relative == []


def test_modules_import_in_no_circle() -> None:
    imported = {module: {name for name, _ in imports(path)} for module, path in modules()}
    folders = {module.removesuffix(".__init__"): module for module in imported}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        if module in path:
            raise AssertionError(" -> ".join((*path[path.index(module) :], module)))
        if module in done:
            return
        for name in imported.get(module, set()):
            if name in folders:
                visit(folders[name], (*path, module))
        done.add(module)

    for module in imported:
        visit(module, ())


def test_no_file_is_long() -> None:
    files = [path for path in PACKAGE.rglob("*") if path.suffix in (".py", ".js", ".css", ".html")]
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert len(files) > 250
    assert {str(path): count for path, count in lengths.items() if count > 350} == {}


def test_contributing_states_the_order() -> None:
    block = re.search(r"```layers\n(.*?)```", CONTRIBUTING.read_text(), re.DOTALL)
    assert block is not None
    assert block[1].split() == LAYERS


def test_every_part_has_one_place_in_the_order() -> None:
    assert sorted({layer_of(module) for module, _ in modules()}) == sorted(LAYERS)
