"""Answers to the exercises of the tour, computed on the model at hand.

python docs/answers.py 4a        one answer
python docs/answers.py           the list

They stand in ``tour_answers``, one file per part of the tour.
"""

from __future__ import annotations

import sys

from tour_answers import features, losses, roi_heads, rpn, winograd

ANSWERS = {
    name.removeprefix("answer_"): function
    for part in (features, rpn, roi_heads, losses, winograd)
    for name, function in vars(part).items()
    if name.startswith("answer_")
}


def main(arguments: list[str]) -> int:
    if len(arguments) == 1 and arguments[0] in ANSWERS:
        ANSWERS[arguments[0]]()
        return 0
    print(f"usage: python docs/answers.py NUMBER, one of {', '.join(ANSWERS)}")
    return int(bool(arguments)) * 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
