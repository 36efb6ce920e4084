"""``maskrcnn parity`` from a checkout: compares every part of the model with torchvision."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from maskrcnn_scratch.cli import main

sys.exit(main(["parity", *sys.argv[1:]]))
