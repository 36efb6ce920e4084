"""Data sets of other tools, read as COCO annotations.

Each file of this folder reads one format. ``read_dataset`` recognises a format by its content.
"""

from maskrcnn_scratch.data.formats.recognise import FORMATS, Source, read_dataset

__all__ = ["FORMATS", "Source", "read_dataset"]
