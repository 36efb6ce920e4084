"""``maskrcnn weights convert`` and ``maskrcnn weights show``: files of other libraries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import tyro
from torch import Tensor

from maskrcnn_scratch.builders.from_config import load_trained, model_reference
from maskrcnn_scratch.checkpoint import load_checkpoint
from maskrcnn_scratch.cli import UsageError
from maskrcnn_scratch.conventions import frozen_batch_norm_eps_of
from maskrcnn_scratch.plain_values import shown
from maskrcnn_scratch.weights import WeightsError, read_state_dict, write_state_dict
from maskrcnn_scratch.weights.errors import naming
from maskrcnn_scratch.weights.identify import convert as convert_layout
from maskrcnn_scratch.weights.identify import nearest_model
from maskrcnn_scratch.weights.layouts import LAYOUTS, detect_layout, first_three
from maskrcnn_scratch.weights.remote import weights_file

LayoutName = Literal["torchvision", "torchvision-old", "detectron2", "resnet50", "timm"]
CLASSES = "roi_heads.box_predictor.cls_score.bias"
STEM = "backbone.body.conv1.weight"


def convert(
    input: tyro.conf.Positional[str],
    output: tyro.conf.Positional[Path],
    to: LayoutName,
    source: Annotated[LayoutName | None, tyro.conf.arg(name="from")] = None,
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> int:
    """Rename and rearrange weights for another library; the values stay the same bits.

    Fails unless the input is exactly one of the models. Only what the other layout cannot store is
    dropped: an ImageNet classifier, batch counters, the boxes and masks of the background.

    Args:
        input: Weights or a checkpoint: .pth, .pt, .safetensors or a detectron2 .pkl; or its
            address: https://HOST/FILE#sha256=DIGITS or hf://OWNER/NAME/FILE.
        output: Where to write them; the ending says how (.pth, .pt, .safetensors, .pkl).
        to: Layout to write.
        source: Layout of the input; recognised by default.
        overwrite: Replace an output file that is there already.
    """
    file = weights_file(input)
    if output.exists() and (not overwrite or output.samefile(file)):
        hint = "it is the input" if output.samefile(file) else "or --overwrite"
        raise UsageError(f"{output} exists: choose another output, {hint}")
    state_dict = read_state_dict(file)
    layout = source or detect_layout(state_dict)
    with naming(input):
        converted = convert_layout(state_dict, layout, to)
    write_state_dict(converted, output)
    print(f"{input} ({layout}) -> {output} ({to}): {len(state_dict)} -> {len(converted)} tensors")
    if layout == "detectron2" and to != "detectron2":
        print("Run them with conventions=Conventions.detectron2(): the conversion cannot say so.")
    if frozen_batch_norm_eps_of(file) == 0:
        print("Run them with conventions=Conventions(frozen_batch_norm_eps=0.0), as the input.")
    return 0


def show(weights: tyro.conf.Positional[str], all: bool = False) -> int:
    """Show what a weights file or a checkpoint holds, and which model it fits.

    The exit status is 1 if it fits none.

    Args:
        weights: .pth, .pt, .safetensors or a detectron2 .pkl, or its address:
            https://HOST/FILE#sha256=DIGITS or hf://OWNER/NAME/FILE.
        all: List every tensor.
    """
    file = weights_file(weights)
    state_dict = read_state_dict(file)
    megabytes = file.stat().st_size / 1e6
    values = sum(tensor.numel() for tensor in state_dict.values())
    types = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in state_dict.values())
    print(f"{file}: {megabytes:.1f} MB, {len(state_dict)} tensors, {values:,} values")
    print(f"  types:   {', '.join(f'{count} {name}' for name, count in types.items())}")
    broken = [k for k, t in state_dict.items() if t.is_floating_point() and not t.isfinite().all()]
    if broken:
        print(f"  NaN or infinite values in {len(broken)} tensors: {first_three(broken)}")
    fits = show_run(file) or show_model(state_dict)
    if all:
        print("\n".join(f"  {key}  {list(t.shape)} {t.dtype}" for key, t in state_dict.items()))
    return int(not fits)


def show_run(file: Path) -> bool:
    """Prints what a checkpoint of ``maskrcnn train`` says of itself; False if it is none."""
    try:
        checkpoint = load_checkpoint(file)
    except ValueError:
        return False
    if "class_names" not in checkpoint:
        return False
    custom = model_reference(file)  # its code is not run
    if custom:
        names = [str(name) for name in checkpoint["class_names"].values()]
        architecture = f"--model {custom}"
    else:
        names = list(load_trained(file).class_names.values())
        architecture = checkpoint["config"]["model"]["architecture"]
    more = f" and {len(names) - 8} more" * (len(names) > 8)
    print(f"  run:     {architecture}, step {shown(checkpoint.get('step', 'unknown'))}")
    print(f"  classes: {', '.join(map(shown, names[:8]))}{more}")
    return True


def show_model(state_dict: Mapping[str, Tensor]) -> bool:
    """Prints layout and model; True if the keys are exactly those of a model."""
    layout = detect_layout(state_dict)
    if layout is None:
        print(f"  layout:  none that is known ({first_three(state_dict)})")
        return False
    print(f"  layout:  {layout}")
    try:
        ours = LAYOUTS[layout].to_torchvision(state_dict)
    except WeightsError as error:
        print(f"  model:   none that is known: {error}")
        return False
    match = nearest_model(ours)
    print(f"  model:   {match}")
    if CLASSES in ours:
        print(f"  classes: {len(ours[CLASSES])} with the background")
    if STEM in ours:
        print(f"  input:   {ours[STEM].shape[1]} channels")
    return match.exact
