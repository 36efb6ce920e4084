"""Checks that every kind of part has in common.

Shapes: see ``structures``.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from maskrcnn_scratch.component_check.result import (
    CheckFailed,
    CheckResult,
    NotApplicable,
    outcome,
    require,
)
from maskrcnn_scratch.component_check.subject import (
    Subject,
    flatten,
    map_tensors,
    relative_error,
    shapes,
)

# Rounding of other summation orders; a part that mixes up images or channels is off by 0.1 or more.
TOLERANCE = 1e-4

Call = Callable[[Any], Any]  # runs a part on fixed inputs
Run = Callable[..., Any]  # runs a part, its first argument, on the others


def part_checks(subject: Subject, run: Run, *inputs: Any) -> Iterator[CheckResult]:
    """Determinism, copies and side effects.

    Args:
        run: ``run(part, *inputs)``.
        inputs: nested tensors. No call may have seen them: each of these checks passes copies, so
            that a part that overwrites its input is noticed.
    """
    on_copies = _on_copies(run)

    def call(part: Any) -> Any:
        return on_copies(part, *inputs)

    yield outcome("inputs unchanged", lambda: inputs_unchanged(subject.part, run, inputs))
    yield outcome("deterministic", lambda: deterministic(subject.part, call))
    yield outcome("deepcopy", lambda: copies(subject.part, call, copy.deepcopy))
    yield outcome("pickle", lambda: copies(subject.part, call, _through_pickle))
    yield outcome("state_dict", lambda: state_dict_is_complete(subject, call))


def network_checks(subject: Subject, inputs: Any) -> Iterator[CheckResult]:
    """The checks of ``part_checks``, and that the rows of a batch are independent.

    Args:
        inputs: the argument of the part; a tensor, or a list of them, whose first dimension counts
            images or RoIs, at least 3. No call may have seen them.
    """

    def call(part: Any, given: Any) -> Any:
        return part(given)

    run = _on_copies(call)
    part = subject.part
    yield outcome("batch independence", lambda: batch_independence(part, run, inputs))
    yield outcome("channels-last", lambda: channels_last(part, run, inputs))
    yield from part_checks(subject, call, inputs)


@torch.no_grad()
def deterministic(part: Any, call: Call) -> str:
    """The same input gives the same bits."""
    require_equal(call(part), call(part), "a second call with the same input")
    return "two calls give the same bits"


@torch.no_grad()
def inputs_unchanged(part: Any, run: Run, inputs: tuple[Any, ...]) -> str:
    """A part must not write into its caller's tensors."""
    given = map_tensors(Tensor.clone, inputs)
    run(part, *given)
    for index, (value, kept) in enumerate(zip(flatten(given), flatten(inputs), strict=True)):
        require(
            torch.equal(value, kept),
            f"input tensor {index}, {shapes(value)}, was overwritten by the call",
        )
    return ""


@torch.no_grad()
def copies(part: Any, call: Call, copy_of: Callable[[Any], Any]) -> str:
    """A copy of the part gives the same bits."""
    require_equal(call(copy_of(part)), call(part), "the copy")
    return ""


@torch.no_grad()
def state_dict_is_complete(subject: Subject, call: Call) -> str:
    """A second part that loads the state_dict of the first gives the same bits."""
    part = subject.part
    if not isinstance(part, nn.Module):
        raise NotApplicable("the part is no module")
    if not part.state_dict():
        raise NotApplicable("the part has no parameters or buffers")
    torch.manual_seed(1)
    other = subject.build()
    if other is part:  # an object: there is no second one
        other = copy.deepcopy(part)
    other.eval()
    state = part.state_dict()
    other.load_state_dict(state)
    require_equal(
        call(other),
        call(part),
        "another instance that loaded the state_dict (is a tensor no parameter or buffer?)",
    )
    return f"{len(state)} tensors"


@torch.no_grad()
def batch_independence(part: Any, run: Run, inputs: Any) -> str:
    """Each image (or RoI) of a batch has the result that it has alone."""
    together = flatten(run(part, inputs))
    count = len(flatten(inputs)[0])
    worst = 0.0
    for n in {0, count - 1}:
        alone = flatten(run(part, _entry(inputs, n)))
        for index, (batch, single) in enumerate(zip(together, alone, strict=True)):
            error = relative_error(batch[n : n + 1], single)
            require(
                error <= TOLERANCE,
                f"output {index} of entry {n} differs by {error:.1e} of its norm between a batch "
                f"of {count} and a batch of 1",
            )
            worst = max(worst, error)
    return f"batches of {count} and 1 differ by {worst:.0e} at most"


@torch.no_grad()
def channels_last(part: Any, run: Run, inputs: Any) -> str:
    """Contiguous and channels-last input give the same values."""
    if not any(tensor.dim() == 4 for tensor in flatten(inputs)):
        raise NotApplicable("no input has four dimensions")
    contiguous = flatten(run(part, map_tensors(Tensor.contiguous, inputs)))
    other = flatten(run(part, map_tensors(_to_channels_last, inputs)))
    worst = 0.0
    for index, (one, two) in enumerate(zip(contiguous, other, strict=True)):
        error = relative_error(two, one)
        require(
            error <= TOLERANCE,
            f"output {index} differs by {error:.1e} of its norm between contiguous and "
            "channels-last input",
        )
        worst = max(worst, error)
    return f"differs from contiguous by {worst:.0e} at most"


def require_equal(values: Any, expected: Any, what: str) -> None:
    """Raises ``CheckFailed`` if nested tensors differ in any bit."""
    pairs = list(zip(flatten(values), flatten(expected), strict=False))
    require(
        shapes(values) == shapes(expected),
        f"{what} returns {shapes(values)} instead of {shapes(expected)}",
    )
    for index, (one, two) in enumerate(pairs):
        # NaN differs from itself.
        if not torch.equal(one.nan_to_num(), two.nan_to_num()):
            largest = (one.detach().double() - two.detach().double()).abs().nan_to_num(torch.inf)
            raise CheckFailed(f"output {index} of {what} differs by up to {largest.max():.3g}")


def require_finite(values: Any, what: str) -> None:
    """Raises ``CheckFailed`` if a tensor holds NaN or infinity."""
    for index, tensor in enumerate(flatten(values)):
        bad = int((~tensor.isfinite()).sum())
        require(bad == 0, f"{what}: {bad} of {tensor.numel()} values of output {index} not finite")


def require_tensor(
    value: Any, what: str, shape: tuple[int | None, ...], dtype: torch.dtype = torch.float32
) -> None:
    """Raises ``CheckFailed`` unless ``value`` has this dtype and shape; None is any size."""
    require(isinstance(value, Tensor), f"{what} is a {type(value).__name__}, not a tensor")
    fits = value.dim() == len(shape) and all(
        wanted in (None, found) for wanted, found in zip(shape, value.shape, strict=True)
    )
    expected = ", ".join("any" if side is None else str(side) for side in shape)
    kind = str(dtype).removeprefix("torch.")
    require(
        fits and value.dtype == dtype, f"{what} is {shapes(value)}, expected {kind} [{expected}]"
    )


def _on_copies(run: Run) -> Run:
    """``run`` on copies of its inputs, memory format included."""
    return lambda part, *inputs: run(part, *map_tensors(Tensor.clone, inputs))


def _through_pickle(part: Any) -> Any:
    return pickle.loads(pickle.dumps(part))


def _entry(value: Any, n: int) -> Any:
    return map_tensors(lambda tensor: tensor[n : n + 1], value)


def _to_channels_last(tensor: Tensor) -> Tensor:
    if tensor.dim() != 4:
        return tensor
    return tensor.contiguous(memory_format=torch.channels_last)
