"""The text that people read: the field's words, and one meaning per shape letter."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from maskrcnn_scratch import structures

ROOT = Path(__file__).parent.parent
FOLDERS = ("csrc", "docs", "maskrcnn_scratch", "tests", "tools")
SUFFIXES = (".py", ".md", ".h", ".cpp", ".cu", ".cuh", ".js", ".css", ".html", ".sh", ".toml")

# Words of this project's first notes, and what they are called now.
WORDS = {
    r"twins?": "reference implementation",
    r"ladders?|rungs?": "parity check",
    r"doctors?": "dataset check",
    r"way of the data": "data flow",
    r"waits? for the gpu|waiting_is_free": "host synchronisation, can_sync",
    r"culprits?": "name what is wrong",
    r"nearest (gt|ground.truth|box|object)": "best match",
    r"gr[eo]w from": "decoded from",
    r"of one's own|one's own": "your",
    r"certificates?": "verification report",
    r"restated": "reimplementation used as a reference",
    r"heats": "first pass over blocks",
    r"equals the first": "ties are broken by the lower index",
    r"(leav(e|es|ing)|left) (it |them |these |those )?(out|aside|behind)": "ignores, drops, skips",
    r"where objects may be": "proposes object regions",
    r"kinks?": "changes which ReLUs are active",
    r"by heart": "overfits",
    r"(one|anchors|boxes|masks?|images|bytes|bits|[kmg]i?b) an? "
    r"(anchor|bin|box|cell|class|epoch|image|level|line|location|mask|object|pixel|roi|second|step)":
    "per",
}  # fmt: skip


def texts() -> Iterator[Path]:
    yield from (ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "Makefile"))
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in SUFFIXES and "_build" not in path.parts and path != Path(__file__):
                yield path


def test_words_are_those_of_the_field() -> None:
    patterns = {re.compile(rf"\b(?:{old})\b", re.IGNORECASE): new for old, new in WORDS.items()}
    found = [
        f"{path.relative_to(ROOT)}:{number}: {match[0]}; say {new}"
        for path in texts()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        for pattern, new in patterns.items()
        for match in pattern.finditer(line)
    ]
    assert found == []


def test_each_kernel_says_which_thread_does_what() -> None:
    """In the comment right above it, with what is in shared memory."""
    kernels, silent = 0, []
    for path in sorted((ROOT / "csrc").rglob("*.cu*")):
        source = path.read_text(encoding="utf-8")
        for kernel in re.finditer(r"((?://.*\n)*)(?:template <.*>\n)?__global__", source):
            kernels += 1
            comment = kernel[1].lower()
            if "mapping:" not in comment or "shared memory" not in comment:
                line = source[: kernel.end()].count("\n") + 1
                silent.append(f"{path.relative_to(ROOT)}:{line}")
    assert kernels == sum(
        path.read_text(encoding="utf-8").count("__global__")
        for path in (ROOT / "csrc").rglob("*.cu*")
    )
    assert silent == []


def letters_of_table() -> set[str]:
    """The letters of the table in ``structures``: single ones, with an index or a prime or not."""
    assert structures.__doc__ is not None
    rows = re.findall(r"^    (\S.*)$", structures.__doc__, re.MULTILINE)
    cells = [cell for row in rows for cell in re.split(r"  +", row)]
    return {letter for cell in cells[::2] for letter in cell.split(", ")}


def comments_and_strings(path: Path) -> Iterator[tuple[int, str]]:
    with tokenize.open(path) as file:
        for token in tokenize.generate_tokens(io.StringIO(file.read()).readline):
            if token.type in (tokenize.COMMENT, tokenize.STRING):
                yield token.start[0], token.string


def letters_of_shapes(text: str) -> set[str]:
    """Capital letters in shapes such as ``[N, K, 4]`` or ``[N * P, 5]``."""
    shapes = re.findall(r"(?<!\w)\[([\w', *+/.()-]+)\]", text)
    return {
        letter
        for shape in shapes
        for letter in re.findall(r"\b[A-Z](?:_[a-z]\b|\d*)'*(?![\w.(])", shape)
    }


@pytest.mark.parametrize("shape, letters", [
    ("``[N, K', 4]``", {"N", "K'"}), ("# [N * T_h, H_l / 4]", {"N", "T_h", "H_l"}),
    ("boxes [R_n, 4]", {"R_n"}), ("``list[Tensor]``", set()),
])  # fmt: skip
def test_letters_are_found(shape: str, letters: set[str]) -> None:
    assert letters_of_shapes(shape) == letters


def test_each_letter_of_a_shape_is_explained() -> None:
    """In the table of ``structures``, or in the text at the top of the file."""
    table = letters_of_table()
    assert {"N", "H", "W", "H_l", "K", "O"} <= table
    unknown = []
    for path in sorted((ROOT / "maskrcnn_scratch").rglob("*.py")):
        top = re.match(r'"""(.*?)"""', path.read_text(encoding="utf-8"), re.DOTALL)
        explained = set(re.findall(r"\b[A-Z](?:_[a-z])?'*(?!\w)", top[1] if top else ""))
        for line, text in comments_and_strings(path):
            for letter in letters_of_shapes(text):
                plain = re.sub(r"(_[a-z]|\d+)?'*$", "", letter)  # K' and K_n count as K does
                if not {letter, plain} & table and letter not in explained:
                    unknown.append(f"{path.relative_to(ROOT)}:{line}: {letter}")
    assert unknown == []
