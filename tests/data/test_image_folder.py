"""Where the images of an annotation file are found."""

import json

import pytest

from maskrcnn_scratch.data.image_folder import find_image_folder, locate_image


def write(folder, names, file="instances_train.json", encoding="utf-8"):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / file
    path.write_text(json.dumps({"images": [{"file_name": n} for n in names]}), encoding=encoding)
    return path


def touch(folder, names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


NAMES = [f"{index:03}.png" for index in range(20)]


@pytest.mark.parametrize("folder", ["images/train", "images/other", "data", "images", "train"])
def test_layouts_of_tools(tmp_path, folder):
    file = write(tmp_path / "annotations", NAMES)
    touch(tmp_path / folder, NAMES)
    assert find_image_folder(file).resolve() == (tmp_path / folder).resolve()


def test_the_folder_with_most_images_is_chosen(tmp_path):
    file = write(tmp_path / "annotations", NAMES)
    touch(tmp_path / "images", NAMES[1:])  # the first one is missing
    touch(tmp_path / "annotations", NAMES[:1])
    assert find_image_folder(file).resolve() == (tmp_path / "images").resolve()


def test_a_sample_is_drawn_from_many_names(tmp_path):
    names = [f"{index:05}.png" for index in range(2000)]
    file = write(tmp_path / "annotations", names)
    touch(tmp_path / "annotations", names[:10])
    touch(tmp_path / "images", names[10:])
    assert find_image_folder(file).name == "images"


def test_utf_16(tmp_path):
    file = write(tmp_path / "annotations", NAMES, encoding="utf-16")
    touch(tmp_path / "images", NAMES)
    assert find_image_folder(file).name == "images"


@pytest.mark.parametrize(
    "name",
    ["a.png", "sub/a.png", "sub\\a.png", "C:\\pictures\\a.png", "https://host/x/a.png?b=1"],
)
def test_forms_of_file_names(tmp_path, name):
    target = tmp_path / ("sub/a.png" if name.startswith("sub") else "a.png")
    target.parent.mkdir(exist_ok=True)
    target.touch()
    assert locate_image(tmp_path, name) == target
    assert find_image_folder(write(tmp_path, [name])) == tmp_path


def test_a_missing_image_is_named_in_the_folder(tmp_path):
    assert locate_image(tmp_path, "sub\\a.png") == tmp_path / "sub/a.png"
