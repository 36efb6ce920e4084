"""What the dataset check found: problems, statistics, and the fit to a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from torch import Tensor

from maskrcnn_scratch.dataset_check.model_fit import ModelFit

Severity = Literal["error", "warning"]
ID_GIVEN_TWICE = "annotation id given twice"
INCOMPLETE = "entry incomplete"
TURNED = "turned by EXIF, and the size does not tell whether the annotations are for that"


def turned_text(source: object, images: Sequence[object]) -> str:
    """A warning of images of ``source`` that EXIF turns, perhaps unlike their annotations."""
    return (
        f"{source}: {len(images)} images, such as {images[0]}, are turned by their EXIF "
        "orientation, and their size does not tell whether the annotations are for that; "
        "--no-exif reads images as they are stored"
    )


@dataclass(frozen=True)
class Objects:
    """The objects of a data set that have a usable box, without crowds.

    Shapes: G objects of all images together.
    """

    boxes: Tensor
    """``[G, 4]``, (x1, y1, x2, y2) in pixels of their image."""
    image_sizes: Tensor
    """``[G, 2]``, (height, width) of the image of each object."""
    names: list[str]
    """Category name of each object."""
    per_image: list[int]
    """Number of objects of each image of the data set."""


@dataclass(frozen=True)
class Problem:
    """One problem of one entry, image file or annotation."""

    severity: Severity
    kind: str
    """What is wrong; the same text for all problems of a kind."""
    detail: str = ""
    image: str | None = None
    """File name of the image."""
    annotation_id: int | None = None


@dataclass
class Report:
    """Everything found in one annotation file."""

    annotation_file: str
    image_folder: str
    problems: list[Problem] = field(default_factory=list)
    statistics: dict[str, Any] = field(default_factory=dict)
    fit: ModelFit | None = None
    """None if no object has a usable box."""
    objects: Objects | None = None
    """None if the annotations could not be read."""

    def of(self, severity: Severity) -> list[Problem]:
        """The problems of this severity."""
        return [problem for problem in self.problems if problem.severity == severity]

    def to_json(self) -> dict[str, Any]:
        """Plain lists and dicts, without the objects."""
        return asdict(replace(self, objects=None))

    def blocking(self) -> list[Problem]:
        """The errors of single images and annotations, with which training would fail."""
        return [
            problem
            for problem in self.of("error")
            if problem.kind != ID_GIVEN_TWICE
            and (problem.image or problem.annotation_id is not None or INCOMPLETE in problem.kind)
        ]


def format_problems(problems: Sequence[Problem], show: int) -> Iterator[str]:
    """The problems as lines of text, by kind, with up to ``show`` examples of each kind."""
    by_kind: dict[tuple[str, str], list[Problem]] = {}
    for problem in problems:
        by_kind.setdefault((problem.severity, problem.kind), []).append(problem)
    for (severity, kind), found in by_kind.items():
        yield f"  {severity}: {kind} ({len(found)})"
        for problem in found[:show]:
            names = [problem.image] if problem.image else []
            if problem.annotation_id is not None:
                names.append(f"annotation {problem.annotation_id}")
            if names or problem.detail:
                yield "      " + ": ".join(filter(None, [", ".join(names), problem.detail]))
        if len(found) > show:
            yield f"      ... and {len(found) - show} more"
