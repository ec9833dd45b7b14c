"""ImageFile against torchvision on Pillow images, over every mode, size and kind of damage."""

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision import transforms
from torchvision.transforms import functional

from relabel.crop_box import WHOLE_IMAGE, CropBox
from relabel.data.decode import DECODERS, ImageFile
from tests.conftest import ROOT
from utils.errors import UserError

SAMPLES = ROOT.parent / "shared" / "data" / "imagenet_sample"


def photo_like(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colours with edges and grain, RGB."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    smooth[height // 3 :, : width // 2] //= 3
    grained = smooth + rng.integers(-9, 10, smooth.shape)
    return Image.fromarray(grained.clip(0, 255).astype(np.uint8))


def sample_paths() -> list[Path]:
    """A few ImageNet files of different sizes; skips the test where there are none."""
    paths = sorted(SAMPLES.glob("*/*.JPEG"))
    if not paths:
        pytest.skip("the ImageNet sample is not beside the repository")
    return paths[::80]


def planes(image: Image.Image) -> np.ndarray:
    """A Pillow image as uint8 [3, H, W]."""
    return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


def random_pixels(rng: np.random.Generator, width: int, height: int) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of a box of at least one pixel."""
    left, top = int(rng.integers(width)), int(rng.integers(height))
    return left, top, int(rng.integers(left + 1, width + 1)), int(rng.integers(top + 1, height + 1))


@pytest.fixture(params=["made", "photos"])
def jpegs(request: pytest.FixtureRequest, tmp_path: Path) -> list[Path]:
    """JPEG files of different sizes, none square: one made here, or a few of ImageNet where they are at hand."""
    if request.param == "photos":
        return sample_paths()
    photo_like(151, 94).save(tmp_path / "made.jpg", quality=92)
    return [tmp_path / "made.jpg"]


def test_a_crop_equals_torchvisions_to_the_pixel(jpegs: list[Path]) -> None:
    """Random boxes and the whole image, enlarged and reduced."""
    rng = np.random.default_rng(1)
    for path in jpegs:
        file, image = ImageFile(path), Image.open(path).convert("RGB")
        width, height = image.size
        boxes = [(0, 0, width, height)] + [random_pixels(rng, width, height) for _ in range(12)]
        for left, top, right, bottom in boxes:
            box = CropBox.from_pixels(left, top, right, bottom, width, height)
            expected = functional.resized_crop(image, top, left, bottom - top, right - left, [37, 52])
            np.testing.assert_array_equal(file.resized_crop(box, 37, 52), planes(expected))


def test_a_crop_by_the_fast_decoder_is_the_reference(jpegs: list[Path]) -> None:
    """No value is more than 2 of 255 off, on average far less than 1; a shift by a pixel would show."""
    rng = np.random.default_rng(2)
    for path in jpegs:
        fast, reference = ImageFile(path, "simplejpeg"), ImageFile(path, "pillow")
        size = fast.width, fast.height
        assert size == (reference.width, reference.height)
        boxes = [CropBox.from_pixels(*random_pixels(rng, *size), *size) for _ in range(12)]
        pairs = [(fast.resized_crop(box, 52, 37), reference.resized_crop(box, 52, 37)) for box in boxes]
        for ours, theirs in [*pairs, (fast.centre_crop(48, 0.875), reference.centre_crop(48, 0.875))]:
            difference = ours.astype(int) - theirs
            assert abs(difference).max() <= 2 and (difference**2).mean() < 0.5


@pytest.mark.parametrize("options", [{}, {"restart_marker_rows": 1}, {"progressive": True}])
@pytest.mark.parametrize("kind", ["noise", "a marker"])
def test_the_fast_decoder_refuses_what_pillow_refuses(tmp_path: Path, kind: str, options: dict[str, Any]) -> None:
    """Damage anywhere, also below the crop: the same files fail in the same words, the others look alike.

    Except where data runs out below the crop: that only a decoder of the whole file meets.
    """
    rng, path = np.random.default_rng(4), tmp_path / "damaged.jpg"
    photo_like(300, 201).save(path, quality=90, **options)
    whole = path.read_bytes()
    for _ in range(25):
        at = int(rng.integers(2, len(whole) - 600))
        new = rng.bytes(512) if kind == "noise" else b"\xff" + bytes([int(rng.integers(0xC0, 0xFF))])
        path.write_bytes(whole[:at] + new + whole[at + len(new) :])
        fast, reference = (outcome(path, decoder) for decoder in ("simplejpeg", "pillow"))
        if isinstance(fast, str):
            assert fast == reference
        elif isinstance(reference, str):
            assert "Corrupt JPEG data" in reference
        else:
            assert abs(fast - reference).max() <= 2


def outcome(path: Path, decoder: str) -> np.ndarray | str:
    """A crop of the upper left, as whole numbers of any sign; or the words of the refusal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ImageFile(path, decoder).resized_crop(CropBox(0, 0, 0.7, 0.6), 31, 40).astype(int)
        except UserError as error:
            return str(error)


@pytest.mark.parametrize(("size", "crop_ratio"), [(32, 0.875), (45, 0.7), (45, 1.0), (224, 0.875)])
@pytest.mark.parametrize(("width", "height"), [(151, 94), (94, 151), (31, 30), (64, 64), (200, 41)])
def test_the_central_crop_equals_torchvisions_to_the_pixel(
    tmp_path: Path, width: int, height: int, size: int, crop_ratio: float
) -> None:
    image = photo_like(width, height)
    image.save(tmp_path / "made.png")
    file = ImageFile(tmp_path / "made.png")
    reference = transforms.Compose([transforms.Resize(math.ceil(size / crop_ratio)), transforms.CenterCrop(size)])
    np.testing.assert_array_equal(file.centre_crop(size, crop_ratio), planes(reference(image)))
    np.testing.assert_array_equal(file.centre_crop(size, None), file.resized_crop(WHOLE_IMAGE, size, size))
    assert file.centre_box(size, None) == WHOLE_IMAGE


def test_a_box_is_left_top_right_bottom(tmp_path: Path) -> None:
    """Red on the left, blue on the right, the lower quarter green: each box sees its own colour only."""
    pixels = np.zeros((8, 12, 3), dtype=np.uint8)
    pixels[:, :6, 0] = pixels[:, 6:, 2] = 200
    pixels[6:] = (0, 200, 0)
    Image.fromarray(pixels).save(tmp_path / "three.png")
    file = ImageFile(tmp_path / "three.png")
    for box, colour in [
        (CropBox(0, 0, 0.5, 0.75), (200, 0, 0)),
        (CropBox(0.5, 0, 1, 0.75), (0, 0, 200)),
        (CropBox(0, 0.75, 1, 1), (0, 200, 0)),
    ]:
        crop = file.resized_crop(box, 3, 5)
        assert crop.shape == (3, 3, 5) and crop.transpose(1, 2, 0).flags.c_contiguous and crop.flags.writeable
        assert (crop == np.array(colour, dtype=np.uint8)[:, None, None]).all()


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
def test_interpolation_goes_by_name(tmp_path: Path, interpolation: str) -> None:
    image = photo_like(60, 41)
    image.save(tmp_path / "made.png")
    expected = image.resize((20, 30), Image.Resampling[interpolation.upper()])
    crop = ImageFile(tmp_path / "made.png").resized_crop(WHOLE_IMAGE, 30, 20, interpolation)
    np.testing.assert_array_equal(crop, planes(expected))


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        ("L", "grey.JPEG"),
        ("CMYK", "print.jpg"),
        ("L", "grey.PNG"),
        ("RGBA", "alpha.png"),
        ("P", "palette.png"),
        ("RGB", "photo.webp"),
        ("RGB", "photo.avif"),
        ("RGB", "photo.jfif"),
        ("RGB", "photo.jp2"),
        ("P", "palette.gif"),
        ("L", "grey.pgm"),
        ("RGB", "n02105855_2933.JPEG"),
    ],
)
@pytest.mark.parametrize("decoder", DECODERS)
def test_every_mode_reads_as_pillow_converts_it(tmp_path: Path, mode: str, name: str, decoder: str) -> None:
    """Also by way of the fast decoder, which takes only JPEG; a PNG may be named JPEG, as one of ImageNet is."""
    photo_like(33, 20).convert(mode).save(tmp_path / name, "PNG" if "_" in name else None)
    expected = planes(Image.open(tmp_path / name))
    np.testing.assert_array_equal(ImageFile(tmp_path / name, decoder).resized_crop(WHOLE_IMAGE, 20, 33), expected)


def test_a_palette_with_transparency_keeps_its_colours_without_a_warning(tmp_path: Path) -> None:
    """Indices 0 1 2; the first two half transparent."""
    image = Image.fromarray(np.array([[0, 1, 2], [2, 1, 0]], dtype=np.uint8)).convert("P")
    image.putpalette([250, 0, 0, 0, 250, 0, 0, 0, 250])
    image.save(tmp_path / "palette.png", transparency=bytes([128, 128, 255]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        crop = ImageFile(tmp_path / "palette.png").resized_crop(WHOLE_IMAGE, 2, 3)
    assert crop[0].tolist() == [[250, 0, 0], [0, 0, 250]]
    assert crop[1].tolist() == [[0, 250, 0], [0, 250, 0]]


@pytest.mark.parametrize("name", ["deep.png", "deep.tif"])
def test_sixteen_bits_keep_their_range(tmp_path: Path, name: str) -> None:
    """0, 1/4, 1/2 and full: cut off at 255 instead, the last three would all be white."""
    Image.fromarray(np.array([[0, 16384, 32768, 65535]], dtype=np.uint16)).save(tmp_path / name)
    assert ImageFile(tmp_path / name).resized_crop(WHOLE_IMAGE, 1, 4)[1].tolist() == [[0, 64, 128, 255]]


@pytest.mark.parametrize("decoder", DECODERS)
def test_exif_rotation_is_ignored(tmp_path: Path, decoder: str) -> None:
    """Orientation 6 asks viewers to turn the image; sizes, boxes and pixels stay those of the file."""
    image = photo_like(40, 22)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    image.save(tmp_path / "plain.jpg", quality=95)
    turned, plain = (ImageFile(tmp_path / name, decoder) for name in ("turned.jpg", "plain.jpg"))
    assert (turned.width, turned.height) == (40, 22)
    np.testing.assert_array_equal(turned.centre_crop(16, 0.9), plain.centre_crop(16, 0.9))
    box = CropBox(0.1, 0.2, 0.6, 0.9)
    np.testing.assert_array_equal(turned.resized_crop(box, 9, 11), plain.resized_crop(box, 9, 11))


def test_a_tiff_is_turned_with_its_width_and_height(tmp_path: Path) -> None:
    """The one format where Pillow turns; what counts is that size and pixels agree."""
    image = photo_like(40, 22)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.tif", exif=exif)
    file = ImageFile(tmp_path / "turned.tif")
    assert (file.width, file.height) == (22, 40)
    crop = file.resized_crop(WHOLE_IMAGE, 40, 22)
    np.testing.assert_array_equal(crop, planes(image.transpose(Image.Transpose.ROTATE_270)))


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 9), (500, 1), (2, 3)])
def test_the_smallest_images_are_read(tmp_path: Path, width: int, height: int, decoder: str) -> None:
    Image.new("RGB", (width, height), (10, 200, 30)).save(tmp_path / "tiny.jpg", quality=100)
    file = ImageFile(tmp_path / "tiny.jpg", decoder)
    for crop in (file.resized_crop(WHOLE_IMAGE, 7, 5), file.centre_crop(8, 0.875), file.centre_crop(8, None)):
        assert abs(crop - np.array([10, 200, 30])[:, None, None]).max() <= 2
        assert crop.flags.writeable
