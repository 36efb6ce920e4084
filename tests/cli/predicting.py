"""What the tests of ``maskrcnn predict`` share."""

import json

THRESHOLD = 0.3


def contents(folder):
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*"))


def write_annotations(path, images, names=("dog", "cat")):
    categories = [{"id": 5 + index, "name": name} for index, name in enumerate(names)]
    entries = [{"id": id, "file_name": name, **rest} for id, name, rest in images]
    path.write_text(json.dumps({"images": entries, "annotations": [], "categories": categories}))
    return path
