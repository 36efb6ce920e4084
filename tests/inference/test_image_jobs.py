"""Which entry of an annotation file belongs to which image, and what is read."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskrcnn_scratch.data.image import read_image
from maskrcnn_scratch.data.pixel_limit import pixel_limit
from maskrcnn_scratch.inference.image_jobs import (
    Entry,
    ImageJob,
    JobReader,
    make_jobs,
    match_entries,
    read_annotations,
)


def entries(*names):
    return {name: Entry(10 + index, name, None) for index, name in enumerate(names)}


def ids(files, names):
    found = match_entries([Path(file) for file in files], entries(*names))
    return [None if entry is None else entry.image_id for entry in found]


def test_the_longest_end_of_the_path_decides():
    names = ["1.png", "a/1.png", "b/a/1.png"]
    assert ids(["x/1.png", "x/a/1.png", "b/a/1.png"], names) == [10, 11, 12]
    assert ids(["/data/a/1.png"], ["b/1.png", "a/1.png"]) == [11]


def test_other_ways_to_write_a_path():
    assert ids(["x/a/1.png", "x/b/1.png"], ["a\\1.png", "./b/1.png"]) == [10, 11]
    assert ids(["x/1.png"], ["/home/someone/images/1.png"]) == [10]
    assert ids(["x/1.png"], ["http://host/images/1.png"]) == [10]


def test_a_name_that_several_entries_have_decides_nothing():
    assert ids(["x/1.png", "x/2.png"], ["a/1.png", "b/1.png"]) == [None, None]


def test_two_files_of_one_entry():
    with pytest.raises(ValueError, match=r"1\.png and .*1\.png are both '1\.png'"):
        ids(["a/1.png", "b/1.png"], ["1.png"])


def test_entries_of_a_file(tmp_path):
    path = tmp_path / "val.json"
    images = [
        {"id": "7", "file_name": "a.png", "height": 4, "width": 5.0},
        {"id": 8, "file_name": "b.png"},
    ]
    categories = [{"id": 3, "name": "cat"}]
    path.write_text(json.dumps({"images": images, "categories": categories}))
    with pytest.warns(UserWarning, match="numbers given as text"):
        found = read_annotations(path)
    assert found.entries == {
        "a.png": Entry(7, "a.png", (4, 5)),
        "b.png": Entry(8, "b.png", None),
    }
    assert found.categories == {3: "cat"}


@pytest.fixture
def animation(tmp_path):
    frames = [Image.fromarray(np.full((6, 8, 3), 80 * i, np.uint8)) for i in range(3)]
    path = tmp_path / "moving.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    return path


def test_jobs_of_all_pages(animation, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_text("no image")
    files = {animation: "moving.gif", broken: "broken.png"}
    jobs = make_jobs(files, all_pages=True)
    assert [(job.page, job.image_id) for job in jobs] == [(0, 1), (1, 2), (2, 3), (None, 4)]
    assert [job.output_name for job in jobs][1:] == ["moving-page2", "moving-page3", "broken"]
    reader = JobReader()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        grays = [round(float(reader.read(job).mean()) * 255) for job in jobs[:3]]
    assert grays == [0, 80, 160]
    assert [job.page for job in make_jobs(files)] == [None, None]


def test_each_kind_of_warning_comes_once(animation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3
    turned = tmp_path / "turned.png"
    Image.new("RGB", (8, 6)).save(turned, exif=exif)
    reader = JobReader()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for file in (turned, animation, turned, animation):
            reader.read(ImageJob(file, file.name, 1))
    assert len(caught) == 2
    assert "turned.png: turned by its EXIF orientation" in str(caught[0].message)
    assert "moving.gif: only the first of its 3 pages" in str(caught[1].message)


def test_a_cameras_previews_are_no_pages(tmp_path):
    path = tmp_path / "camera.jpg"
    small = Image.new("RGB", (4, 3))
    Image.new("RGB", (8, 6)).save(path, format="MPO", save_all=True, append_images=[small])
    assert [job.page for job in make_jobs({path: "camera.jpg"}, all_pages=True)] == [None]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        JobReader().read(ImageJob(path, "camera.jpg", 1))


def test_pixel_limit(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (9, 7)).save(path)
    before = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pixel_limit(63):
            read_image(path)
        with pixel_limit(62), pytest.raises(ValueError, match=r"a\.png: too many pixels"):
            read_image(path)
    assert before == Image.MAX_IMAGE_PIXELS
    with pytest.raises(ValueError, match=r"a\.png: cannot be read"):
        read_image(path, page=1)
