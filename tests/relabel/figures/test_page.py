"""The page of label maps: its numbers by hand, names that try to break out, and what a browser makes of it."""

import base64
import io
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from relabel import __main__ as tools
from relabel.annotation.export import export_cleaning
from relabel.annotation.label_set import open_label_set
from relabel.checks.report import make_report
from relabel.figures.colours import PALETTE
from relabel.figures.page import draw_page
from relabel.label_map import LabelMap
from relabel.stores.manifest import Manifest
from relabel.stores.pt_folder import write_label_map
from tests.memory_store import left_right_map, uniform_map

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
EVIL = "</script><img src=x onerror=document.title=1><b>.jpg"  # the class folder "<", then a slash, then the file
MAPS = {
    EVIL: left_right_map(12.0, 0, 1),
    "ant/right.jpg": uniform_map(12.0, 1),
    "ant/wrong.jpg": uniform_map(12.0, 2),
    "bee/unsure.jpg": uniform_map(1.0, 2),
}
SIZES = ((200, 100), (60, 40), (40, 60), (50, 50))  # width and height


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four images of three classes, <, ant and bee, in `images` and their maps in `maps`."""
    for (name, label_map), size in zip(MAPS.items(), SIZES, strict=True):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (200, 90, 30)).save(path)
        write_label_map(tmp_path / "maps", name.rpartition(".")[0], label_map)
    return tmp_path


def page_of(folder: Path, images: str = "images", maps: str = "maps", **options: Any) -> str:
    options = {"count": 9, "seed": 0, "fill": 0.0, "temperature": 1.0} | options
    draw_page(options.pop("words", []), folder / maps, folder / images, folder / "page.html", **options)
    return (folder / "page.html").read_text(encoding="utf-8")


def data_of(page: str) -> dict[str, Any]:
    (island,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, flags=re.DOTALL)
    found: dict[str, Any] = json.loads(island)
    return found


def test_the_numbers_of_an_image(photos: Path) -> None:
    data = data_of(page_of(photos))
    assert (data["rows"], data["columns"], data["classes"]) == (4, 6, ["<", "ant", "bee"])
    evil, right, wrong, unsure = data["images"]
    assert [image["name"] for image in data["images"]] == sorted(MAPS)
    assert sorted(evil["top"])[:2] == [[0, pytest.approx(0.5, abs=0.01), 0], [1, pytest.approx(0.5, abs=0.01), 1]]
    assert evil["entropy"] == pytest.approx(np.log(2), abs=0.02) and evil["disagreement"] == 0
    cells = np.frombuffer(base64.b64decode(evil["cells"]), np.uint8).reshape(4, 6)
    assert [evil["used"][i] for i in cells[2] & 15] == [[0, 0]] * 3 + [[1, 1]] * 3 and (cells >> 4 == 15).all()
    assert (right["disagreement"], wrong["disagreement"]) == (0, pytest.approx(1, abs=1e-4))
    assert unsure["leak"] == pytest.approx(2 / (np.e + 2), abs=1e-4) and unsure["label"] == 2
    assert [image["size"] for image in data["images"]] == [[128, 64], [128, 85], [85, 128], [128, 128]]
    thumbnail = Image.open(io.BytesIO(base64.b64decode(evil["jpeg"])))
    assert thumbnail.size == (128, 64)
    assert np.asarray(thumbnail)[32, 64].tolist() == pytest.approx([200, 90, 30], abs=6)


def test_check_page_and_export_count_the_same_images(photos: Path, tmp_path: Path) -> None:
    """Two classes share the first image: neither is its top class."""
    labels = open_label_set(photos / "maps", photos / "images")
    calibration = make_report(labels).calibration
    assert calibration and calibration.top1_agreement_percent
    page = page_of(photos)
    assert [image["wrong"] for image in data_of(page)["images"]] == [True, False, True, False]
    assert "the label is not the top class of 2" in page
    assert (calibration.agreement.correct, calibration.top1_agreement_percent.value) == (2, 50)
    options = {"threshold": 0.1, "fill": 0.0, "temperature": 1.0}
    found = export_cleaning(labels, tmp_path / "keep.txt", agreeing=True, **options)
    assert found == (3, 4, 2)  # the half of the first is above the threshold


def test_many_classes_share_four_bits_of_a_cell(tmp_path: Path) -> None:
    """24 cells of 24 classes out of 1,000, the first in two more cells: 15 have a place, the others are grey."""
    classes = np.arange(24, dtype=np.int16).reshape(1, 4, 6)
    classes[0, 3, 4:] = 0
    (tmp_path / "images").mkdir()
    Image.new("RGB", (60, 40)).save(tmp_path / "images" / "photo.jpg")
    write_label_map(tmp_path / "maps", "photo", LabelMap(np.full((1, 4, 6), 20, np.float32), classes))
    names = [f"class_{i}" for i in range(1000)]
    Manifest(form="pt", maps=1, k=1, h=4, w=6, class_names=names, made_by={}).write(tmp_path / "maps" / "manifest.json")
    (image,) = data_of(page_of(tmp_path))["images"]
    assert image["label"] is None and len(image["used"]) == 15 and image["used"][0][0] == 0
    assert len({place for _, place in image["used"]}) == 15
    places = np.frombuffer(base64.b64decode(image["cells"]), np.uint8) & 15
    assert (np.bincount(places) == [3, *[1] * 14, 7]).all()
    assert image["others"] == 999 and image["top"][-1][0] is None


def test_a_map_of_other_classes_than_the_folders_has_a_uniform_target(photos: Path) -> None:
    maps = photos / "of_wasp_too"
    for name, label_map in (MAPS | {"ant/right.jpg": uniform_map(12.0, 3)}).items():
        write_label_map(maps, name.rpartition(".")[0], label_map)
    names = ["<", "ant", "bee", "wasp"]
    Manifest(form="pt", maps=4, k=1, h=4, w=6, class_names=names, made_by={}).write(maps / "manifest.json")
    images = data_of(page_of(photos, maps="of_wasp_too"))["images"]
    assert [image["uniform"] for image in images] == [False, True, False, False] and images[1]["wrong"]
    assert not (np.frombuffer(base64.b64decode(images[1]["cells"]), np.uint8) >> 4).any()  # nothing is painted


def test_no_name_becomes_html_and_nothing_is_loaded(photos: Path) -> None:
    (photos / "maps").rename(photos / "<b>&maps")
    page = page_of(photos, maps="<b>&maps")
    assert page.count("<script") == page.count("</script>") == 2 and "<img" not in page and "<b>" not in page
    assert "&lt;b&gt;&amp;maps" in page
    own = re.sub(r'id="data">.*?</script>', "", page, flags=re.DOTALL)
    assert not re.search(r"https?:|(src|href)=|@import|url\(", own) and "default-src 'none'" in own


def test_the_line_says_what_is_shown_and_wrong_endings_are_refused(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "maps" / "ant" / "wrong.pt").unlink()
    show = ["show", "--labels", str(photos / "maps"), "--images", str(photos / "images")]
    cases = {
        "2 of 4 images, 1 of them without a label map, drawn at random with seed 0": [
            "--count",
            "2",
            "--figure",
            "page",
        ],
        "3 of 4 images, 1 of them without a label map": ["--count", "201"],
    }
    for shown, flags in cases.items():
        with pytest.raises(SystemExit) as stopped:
            tools.main([*show, *flags, "--out", str(photos / "maps.png")])
        assert stopped.value.code == 2 and not (photos / "maps.png").exists()
        err = capsys.readouterr().err
        remedy = re.search(r"(--figure page )?--out \S+\.html$", err.strip())
        assert remedy, err
        tools.main([*show, *flags, *remedy[0].split()])
        assert f"{photos / 'maps.html'}, 0.0 MB; open it in a browser\n{shown}" in capsys.readouterr().out


PROBE = """<script>
const texts = (selector) => [...document.querySelectorAll(selector)].map((element) => element.textContent);
const pick = (id, value, kind) => {
  find(id).value = value;
  find(id).dispatchEvent(new Event(kind));
  return texts(".name");
};
const found = { orders: {} };
for (const key of ["disagreement", "entropy", "leak", "name"]) found.orders[key] = pick("sort", key, "change");
found.by_class = pick("search", "BEE", "input");
found.by_file = pick("search", "ant right", "input");
found.count = texts("#count")[0];
found.hash = location.hash;
pick("search", "", "input");
const photo = document.querySelector(".photo"), canvas = photo.querySelector("canvas");
const overlay = () => getComputedStyle(canvas).visibility;
const tap = () => {
  const box = canvas.getBoundingClientRect(), at = { clientX: box.right - 5, clientY: box.top + 5, bubbles: true };
  photo.dispatchEvent(new PointerEvent("pointerdown", { pointerType: "touch", ...at }));
  photo.dispatchEvent(new MouseEvent("click", { detail: 1, ...at }));
};
found.overlay = [overlay()];
for (const step of [1, 2]) { tap(); found.overlay.push(overlay()); }
found.cell = photo.textContent;
for (const kind of ["pointermove", "pointerleave"]) {
  photo.dispatchEvent(new PointerEvent(kind, { pointerType: "mouse", clientX: 9, clientY: 9 }));
  found.overlay.push(overlay());
}
const pixel = (x) => [...canvas.getContext("2d").getImageData(x, 0, 1, 1).data];
found.pixels = [pixel(0), pixel(5)];
found.label = texts(".label")[0];
found.injected = document.title === "1" || document.querySelectorAll("img[src=x], b b").length;
found.overflow = document.documentElement.scrollWidth - innerWidth;
document.body.replaceChildren();
document.body.textContent = JSON.stringify(found);
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium, to open the page")
def test_a_browser_sorts_searches_and_shows_maps(photos: Path) -> None:
    page = page_of(photos).replace("</body>", f"{PROBE}</body>")
    (photos / "probe.html").write_text(page, encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", "--window-size=390,844"]
    command = [str(BROWSER), *flags, f"--user-data-dir={photos / 'profile'}", (photos / "probe.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    body = re.search(r"<body>(.*)</body>", done.stdout, flags=re.DOTALL)
    assert body, done.stdout
    found = json.loads(body[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    evil, right, wrong, unsure = sorted(MAPS)
    assert found["orders"]["disagreement"][0] == wrong and found["orders"]["name"] == [evil, right, wrong, unsure]
    assert found["orders"]["entropy"][:2] == [unsure, evil] and found["orders"]["leak"][0] == unsure
    assert found["by_class"] == [wrong, unsure] and found["by_file"] == [right]
    assert found["count"] == "1 of 4 images" and found["hash"] == "#sort=name&search=ant+right"
    assert found["overlay"] == ["hidden", "visible", "hidden", "visible", "hidden"] and found["cell"] == "ant"
    for pixel, colour in zip(found["pixels"], PALETTE, strict=False):
        assert pixel[:3] == pytest.approx([int(colour[i : i + 2], 16) for i in (1, 3, 5)], abs=3)
        assert pixel[3] == pytest.approx(0.6 * 255, abs=2)
    assert found["label"] == "≠ <" and not found["injected"] and found["overflow"] <= 0
