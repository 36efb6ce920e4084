"""``python -m maskrcnn_scratch``: the ``maskrcnn`` command."""

import sys

from maskrcnn_scratch.cli import main

sys.exit(main())
