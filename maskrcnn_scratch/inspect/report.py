"""Reports: of one image, or of several with an index page."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from maskrcnn_scratch.generalized_rcnn import GeneralizedRCNN
from maskrcnn_scratch.inspect.collect import Inspected, inspect_image
from maskrcnn_scratch.inspect.collect_objects import sentence
from maskrcnn_scratch.inspect.collect_training import collect_training
from maskrcnn_scratch.inspect.comparison import Change, Side, compare
from maskrcnn_scratch.inspect.missed import Fate, explain_objects
from maskrcnn_scratch.inspect.pictures import data_uri, to_pixels
from maskrcnn_scratch.inspect.write import write_index, write_page
from maskrcnn_scratch.structures import Target
from maskrcnn_scratch.transform import resize_image

THUMBNAIL_SIDE = 240


class Sample(NamedTuple):
    """One image of a report."""

    name: str
    image: Tensor  # [3, H, W] in 0-1
    target: Target | None  # in its pixels; None without annotations


@dataclasses.dataclass(frozen=True)
class ReportOptions:
    """What a report shows beside the stages.

    Attributes:
        class_names: by label, from 1.
        weights: where the model's weights come from, for the header.
        training: whether the image is shown as a training sample; it needs annotations.
        other: a second model, or the same with other settings, to compare with.
        other_name: what it is called.
    """

    class_names: dict[int, str]
    weights: str | None = None
    training: bool = False
    other: GeneralizedRCNN | None = None
    other_name: str = "B"


def write_report(
    model: GeneralizedRCNN,
    sample: Sample,
    path: Path,
    options: ReportOptions,
    index: str | None = None,
) -> dict[str, Any]:
    """Writes the report of one image and returns its entry for an index.

    Args:
        model: in eval mode.
        path: of the HTML file.
        index: address of the index page, relative to ``path``.

    Raises:
        StageError: a part of the model raised, naming it; nothing is written.
        OSError: the file cannot be written, naming it.
    """
    inspected = inspect_image(
        model,
        sample.image,
        name=sample.name,
        class_names=options.class_names,
        target=sample.target,
    )
    content = {**inspected.content, "weights": options.weights, "index": index}
    if options.training and sample.target is not None:
        image = inspected.image
        target: Target = {
            name: value.to(image.device)
            for name, value in sample.target.items()
            if isinstance(value, Tensor)
        }
        content["training"] = collect_training(model, image, target, inspected.stages)
    if options.other is not None:
        content["compare"] = _comparison(inspected, sample, options)
    write_page(content, path)
    return _entry(sample, content, path)


def write_reports(
    model: GeneralizedRCNN, samples: Sequence[Sample], path: Path, options: ReportOptions
) -> Iterator[Path]:
    """Writes a report for each image and, of several, an index page at ``path``.

    Yields:
        the path of each report, once it is written. Those of several images lie in a folder beside
        the index that has its name without the suffix.
    """
    if len(samples) == 1:
        write_report(model, samples[0], path, options)
        yield path
        return
    entries = []
    for number, sample in enumerate(samples, 1):
        page = path.with_suffix("") / f"{number:03d}-{Path(sample.name).stem}.html"
        entry = write_report(model, sample, page, options, index=f"../{path.name}")
        entries.append({**entry, "address": f"{page.parent.name}/{page.name}"})
        yield page
    write_index(
        {"entries": entries, "annotated": any(e["objects"] is not None for e in entries)}, path
    )


def _comparison(a: Inspected, sample: Sample, options: ReportOptions) -> dict[str, Any]:
    assert options.other is not None
    b = inspect_image(
        options.other,
        sample.image,
        name=sample.name,
        class_names=options.class_names,
        target=sample.target,
    )
    names = options.class_names
    changes = [
        {**dataclasses.asdict(change), "fate": _fate_elsewhere(change, a, b, names)}
        for change in compare(Side("A", a.model, a.stages), Side("B", b.model, b.stages))
    ]
    return {
        "a": options.weights or "the model",
        "b": options.other_name,
        "changes": changes,
        "detections": {**b.content["detections"], "masks": _masks_only(b)},
        "objects": b.content["objects"],
    }


def _fate_elsewhere(
    change: Change, a: Inspected, b: Inspected, class_names: dict[int, str]
) -> str | None:
    """Where the other run loses a detection that only one of them has."""
    if change.kind not in ("lost", "gained"):
        return None
    here, there, index = (a, b, change.a) if change.kind == "lost" else (b, a, change.b)
    result = here.stages.results[0]
    target = {"boxes": result["boxes"][index][None], "labels": result["labels"][index][None]}
    fate = explain_objects(there.model, there.stages, [target], [there.page_size])[0][0]
    return None if fate.fate is Fate.FOUND else sentence(fate, class_names)


def _masks_only(inspected: Inspected) -> Any:
    masks = inspected.content["detections"]["masks"]
    return None if masks is None else {"pasted": masks["pasted"]}


def _entry(sample: Sample, content: dict[str, Any], path: Path) -> dict[str, Any]:
    height, width = sample.image.shape[1:]
    scale = min(1.0, THUMBNAIL_SIDE / max(height, width))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    objects = content["objects"]
    fates: dict[str, int] = {}
    for entry in objects or []:
        if entry["lost"]:
            fates[entry["fate"]] = fates.get(entry["fate"], 0) + 1
    return {
        "name": sample.name,
        "address": path.name,
        "thumbnail": data_uri(to_pixels(resize_image(sample.image.cpu().float(), size))),
        "size": [height, width],
        "detections": len(content["detections"]["scores"]),
        "objects": None if objects is None else len(objects),
        "missed": None if objects is None else sum(fates.values()),
        "fates": fates,
        "seconds": content["total"],
    }
