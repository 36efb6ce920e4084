"""Reports in a real browser: no script error, and what the page says is what the API says.

Skipped where Playwright or Chromium is missing. With MASKRCNN_SCREENSHOTS naming a folder, pictures
of the pages are kept there.
"""

from __future__ import annotations

import copy
import os
import shutil
from pathlib import Path

import pytest
import torch

from maskrcnn_scratch.builders.small import small_maskrcnn
from maskrcnn_scratch.inspect import box_selection, provenance, rpn_selection, suppressed_by
from maskrcnn_scratch.inspect.report import ReportOptions, Sample, write_report, write_reports
from maskrcnn_scratch.inspect.settings import with_settings
from maskrcnn_scratch.ops import batched_nms_padded

pytestmark = pytest.mark.slow

NAMES = {1: "cat", 2: "dog", 3: "bird", 4: "</script><b>horse"}
MOST_BYTES = 15_000_000
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="needs Playwright: pip install playwright"
    )
    found = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    path = next(filter(None, found), None)
    if path is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=path, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def show(browser):
    """Opens a page and collects what it complains of, and what it asks of the network."""
    pages = []

    def open_page(path: Path, dark: bool = False, width: int = 1360):
        assert path.stat().st_size < MOST_BYTES
        scheme = "dark" if dark else "light"
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.problems = []
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.on(
            "console",
            lambda message: (
                page.problems.append(message.text) if message.type in ("error", "warning") else None
            ),
        )
        page.on(
            "request",
            lambda request: (
                None
                if request.url.startswith(("file:", "data:"))
                else page.problems.append(request.url)
            ),
        )
        page.goto(path.as_uri())
        page.wait_for_selector("section.stage, a.card")
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.wait_for_timeout(50)
        assert page.problems == []
        page.close()


def keep_screenshots(page, name: str) -> None:
    folder = os.environ.get("MASKRCNN_SCREENSHOTS")
    if folder:
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def use_every_control(page) -> None:
    """Moves every slider to both ends, presses every button, chooses every option."""
    for control in page.query_selector_all("input[type=range]"):
        for end in ("max", "min"):
            control.evaluate(
                "(e, end) => { e.value = e[end]; e.dispatchEvent(new Event('input')); }", end
            )
    for control in page.query_selector_all("input[type=checkbox]"):
        control.evaluate("e => e.click()")
    page.evaluate("""() => {
        for (const list of document.querySelectorAll("select")) {
            for (const option of list.options) {
                list.value = option.value;
                list.dispatchEvent(new Event("change"));
            }
        }
        for (const button of document.querySelectorAll("button")) button.click();
        for (const canvas of document.querySelectorAll(".picture canvas")) {
            const { left, top, width, height } = canvas.getBoundingClientRect();
            const at = { clientX: left + width / 2, clientY: top + height / 2, bubbles: true };
            canvas.dispatchEvent(new MouseEvent("click", at));
            canvas.dispatchEvent(new PointerEvent("pointermove", at));
            for (const key of ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"]) {
                canvas.dispatchEvent(new KeyboardEvent("keydown", { key }));
            }
        }
    }""")


def target_of(image: torch.Tensor) -> dict[str, torch.Tensor]:
    """Two objects; the small one has no good anchor."""
    height, width = image.shape[1:]
    boxes = torch.tensor([[4.0, 3.0, width * 0.7, height * 0.8], [10.0, 10.0, 13.0, 12.0]])
    masks = torch.zeros(2, height, width, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.long().tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
    return {"boxes": boxes, "labels": torch.tensor([1, 4]), "masks": masks}


@pytest.fixture(scope="module")
def options():
    return ReportOptions(NAMES, "random.pt")


def test_a_click_on_a_detection_lights_up_its_origin(
    small_model, images, stages, options, show, tmp_path
):
    path = tmp_path / "report.html"
    write_report(small_model, Sample("cat.png", images[0], None), path, options)
    page = show(path)
    with torch.no_grad():
        alone = small_model.run_stages(images[:1])
    selection = box_selection(small_model, alone, 0)
    for detection in (3, 7, 0):
        before = page.evaluate("document.querySelector('#anchors canvas').toDataURL()")
        page.click(f"[data-detection='{detection}']")
        origin = provenance(small_model, alone, 0, detection)
        chosen = page.evaluate("chosen")
        assert chosen["anchor"] == origin.anchor
        assert chosen["proposal"] == origin.proposal
        assert chosen["classCandidate"] == int(selection.kept[detection])
        place = page.evaluate("anchorPlace(chosen.anchor)")
        assert tuple(place.values()) == tuple(origin.place)
        assert page.evaluate("boxOfAnchor(chosen.anchor)") == list(origin.anchor_box)
        assert before != page.evaluate("document.querySelector('#anchors canvas').toDataURL()")
    keep_screenshots(page, "report")


def test_who_suppressed_whom_is_in_the_page(small_model, images, options, show, tmp_path):
    path = tmp_path / "report.html"
    write_report(small_model, Sample("cat.png", images[0], None), path, options)
    page = show(path)
    with torch.no_grad():
        alone = small_model.run_stages(images[:1])
    for name, select in (("rpn", rpn_selection), ("box", box_selection)):
        suppression = suppressed_by(select(small_model, alone, 0))
        found = page.evaluate(f"Array.from({name}.suppressor.values)")
        assert found == suppression.suppressor.tolist()
    candidate = int(
        (suppressed_by(rpn_selection(small_model, alone, 0)).suppressor >= 0).nonzero()[0]
    )
    page.evaluate(f"choose({{candidate: {candidate}}})")
    assert "suppressed by candidate" in page.inner_text("#proposals .panel")


def test_every_control_works_in_light_and_dark_and_narrow(small_model, images, show, tmp_path):
    """With annotations, the training sample and a comparison: everything that a page can have."""
    other = with_settings(small_model, ("roi_heads.nms_thresh=0.3", "roi_heads.score_thresh=0.2"))
    full = ReportOptions(NAMES, "random.pt", True, other, "roi_heads.nms_thresh=0.3")
    path = tmp_path / "report.html"
    write_report(small_model, Sample("cat.png", images[0], target_of(images[0])), path, full)
    for name, dark, width in (("light", False, 1360), ("dark", True, 1360), ("narrow", False, 500)):
        page = show(path, dark, width)
        keep_screenshots(page, f"full-{name}")
        assert page.inner_text("#objects").count("missed") >= 1
        assert page.query_selector("#training table")
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        if name == "dark":
            use_every_control(page)
    changes = page.evaluate("D.compare.changes")
    kinds = {change["kind"] for change in changes}
    assert "lost" in kinds
    assert all(change["step"] for change in changes if change["kind"] != "same")
    # Only the box head's settings differ, so nothing before class-wise NMS does.
    assert {change["step"] for change in changes} <= {None, "class_nms", "mask_head"}


def test_a_missed_object_says_where_it_was_lost(small_model, images, options, show, tmp_path):
    path = tmp_path / "report.html"
    write_report(small_model, Sample("cat.png", images[0], target_of(images[0])), path, options)
    page = show(path)
    page.click("[data-object='1']")
    text = page.inner_text(".origin")
    assert text.startswith("Missed")
    assert page.evaluate("objects[1].text") in text
    assert page.evaluate("document.getElementById(objects[1].step) !== null")


def test_an_image_without_detections(small_model, images, options, show, tmp_path):
    model = with_settings(small_model, ("roi_heads.score_thresh=0.999999",))
    path = tmp_path / "report.html"
    write_report(model, Sample("cat.png", images[0], target_of(images[0])), path, options)
    page = show(path)
    assert "The model found nothing" in page.inner_text(".rail")
    use_every_control(page)


def test_a_model_without_masks_and_a_target_without_objects(
    small_model, images, options, show, tmp_path
):
    model = copy.deepcopy(small_model)
    model.roi_heads.mask_roi_pool = model.roi_heads.mask_head = None
    model.roi_heads.mask_predictor = None
    empty = {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
        "masks": torch.zeros(0, *images[0].shape[1:], dtype=torch.uint8),
    }
    path = tmp_path / "report.html"
    training = ReportOptions(NAMES, None, True)
    write_report(model, Sample("cat.png", images[0], empty), path, training)
    page = show(path)
    assert page.query_selector("#mask_head") is None
    assert "no object in this image" in page.inner_text(".rail")
    use_every_control(page)


@pytest.mark.parametrize("size", [(20, 400), (400, 20), (1, 1)])
def test_strips(small_model, options, show, tmp_path, size):
    path = tmp_path / "report.html"
    image = torch.rand(3, *size, generator=torch.Generator().manual_seed(0))
    write_report(small_model, Sample("strip.png", image, None), path, options)
    use_every_control(show(path))


def test_300_detections_of_91_classes_in_a_large_image(show, tmp_path):
    """3000 x 2000 pixels: the picture is reduced, the masks as well, the page stays small."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = small_maskrcnn(91, min_size=320, max_size=480, box_detections_per_img=300)
        model.eval().roi_heads.score_thresh = 0.01
    image = torch.rand(3, 50, 75).repeat_interleave(40, 1).repeat_interleave(40, 2)
    path = tmp_path / "report.html"
    write_report(model, Sample("large.jpg", image, None), path, ReportOptions({}))
    page = show(path)
    assert page.evaluate("detections.count") == 300
    assert page.evaluate("D.image.original") == [2000, 3000]
    assert max(page.evaluate("D.image.page")) == 1600


def test_swapped_components_are_not_guessed_about(small_model, images, options, show, tmp_path):
    class Pooler(torch.nn.Module):
        output_size = (7, 7)

        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, *args):
            return self.inner(*args)

    class RPN(type(small_model.rpn)):
        def forward(self, *args):
            return super().forward(*args)

    def agnostic(boxes, scores, groups, *rest):
        return batched_nms_padded(boxes, scores, torch.zeros_like(groups), *rest)

    model = copy.deepcopy(small_model)
    model.roi_heads.box_roi_pool = Pooler(model.roi_heads.box_roi_pool)
    model.roi_heads.nms = agnostic
    model.rpn.__class__ = RPN
    path = tmp_path / "report.html"
    write_report(model, Sample("cat.png", images[0], target_of(images[0])), path, options)
    page = show(path)
    page.click("[data-detection='0']")
    for stage in ("anchors", "objectness", "proposals", "roi_levels", "roi_align", "class_nms"):
        assert "not available for this component" in page.inner_text(f"#{stage}"), stage
    assert "test_report.py" in page.inner_text("#roi_align .facts")
    use_every_control(page)


def test_several_images_have_an_index(small_model, images, options, show, tmp_path):
    samples = [
        Sample("a.png", images[0], None),
        Sample("b.png", images[1], target_of(images[1])),
    ]
    path = tmp_path / "index.html"
    written = list(write_reports(small_model, samples, path, options))
    assert [page.name for page in written] == ["001-a.html", "002-b.html"]
    page = show(path)
    assert page.inner_text("a.card >> nth=0").startswith("b.png")  # most missed first
    page.select_option("#order", label="name")
    assert page.inner_text("a.card >> nth=0").startswith("a.png")
    keep_screenshots(page, "index")
    page.click("a.card >> nth=0")
    page.wait_for_selector("section.stage")
    page.click("text=All images")
    page.wait_for_selector("a.card")
