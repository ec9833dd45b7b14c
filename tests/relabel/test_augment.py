"""The batched augmentation against torchvision's transforms on Pillow images."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import functional

from models.data_config import IMAGENET_MEAN, IMAGENET_STD
from relabel.augment import (
    BRIGHTNESS,
    COMPONENTS,
    CONTRAST,
    JITTER_ORDERS,
    SATURATION,
    Augmentation,
    draw_augmentation,
)
from relabel.augment import augment as augment_as
from relabel.augment import normalise as normalise_as
from relabel.augment_kernel import augment_fused
from tests.conftest import ROOT

SAMPLES = ROOT.parent / "shared" / "data" / "imagenet_sample"

ADJUST: dict[int, Callable[[Image.Image, float], Image.Image]] = {
    BRIGHTNESS: functional.adjust_brightness,
    CONTRAST: functional.adjust_contrast,
    SATURATION: functional.adjust_saturation,
}
MEAN, STD = IMAGENET_MEAN, IMAGENET_STD
TO_TENSOR = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
TWO_LEVELS = 2 / 255 / min(STD)
augment = partial(augment_as, mean=MEAN, std=STD)
normalise = partial(normalise_as, mean=MEAN, std=STD)


def made_image() -> Image.Image:
    """83 x 57: smooth colours, hard edges, grain, pure black and white."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 6, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((83, 57), Image.Resampling.BICUBIC)).astype(int)
    pixels = (pixels + rng.integers(-20, 21, pixels.shape)).clip(0, 255)
    pixels[:5], pixels[-5:] = 0, 255
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.fixture(params=["made", "photo"])
def image(request: pytest.FixtureRequest) -> Image.Image:
    """An image, never square: made here, or a photo where the ImageNet sample is at hand."""
    if request.param == "made":
        return made_image()
    paths = sorted(SAMPLES.glob("*/*.JPEG"))
    if not paths:
        pytest.skip("the ImageNet sample is not beside the repository")
    return Image.open(paths[7]).convert("RGB").resize((224, 180))


def as_batch(image: Image.Image) -> Tensor:
    """uint8 [1, 3, H, W]."""
    return torch.from_numpy(np.array(image).transpose(2, 0, 1))[None]


def share_within_two_levels(found: Tensor, image: Image.Image, shift: Tensor | None = None) -> float:
    """Share of pixels whose three channels are within 2/255 of the Pillow image (plus a shift of [0, 1] values)."""
    expected = TO_TENSOR(image)
    if shift is not None:
        expected = expected + (shift / torch.tensor(STD))[:, None, None]
    levels = (found[0] - expected).abs() * torch.tensor(STD)[:, None, None] * 255
    return float((levels.amax(0) <= 2 + 1e-3).float().mean())


@pytest.mark.parametrize(
    "factors", [(0.6, 1.4, 0.6), (1.4, 0.6, 1.4), (1.4, 1.4, 1.4), (0.6, 1, 1), (1, 0.6, 1), (1, 1, 1)]
)
@pytest.mark.parametrize("order", range(6))
def test_all_six_orders_are_pillows(image: Image.Image, order: int, factors: tuple[float, float, float]) -> None:
    assert sorted(JITTER_ORDERS[order]) == [BRIGHTNESS, CONTRAST, SATURATION] and len(set(JITTER_ORDERS)) == 6
    expected = image
    for operation in JITTER_ORDERS[order]:
        expected = ADJUST[operation](expected, factors[operation])
    found = augment(as_batch(image), None, torch.tensor([order]), torch.tensor([factors]))
    assert share_within_two_levels(found, expected) >= 0.999


def test_lighting_shifts_colours_along_the_principal_components(image: Image.Image) -> None:
    """Slow reference: weight times eigenvalue times eigenvector, one component after the other."""
    components = [
        (0.2175, (-0.5675, -0.5808, -0.5836)),
        (0.0188, (0.7192, -0.0045, -0.6948)),
        (0.0045, (0.4009, -0.8140, 0.4203)),
    ]
    weights = (0.13, -0.21, 0.08)
    shift = torch.zeros(3)
    for weight, (eigenvalue, eigenvector) in zip(weights, components, strict=True):
        shift += weight * eigenvalue * torch.tensor(eigenvector)
    found = augment(as_batch(image), lighting=torch.tensor([weights]))
    assert share_within_two_levels(found, image, shift) >= 0.999
    torch.testing.assert_close(normalise(as_batch(image))[0], TO_TENSOR(image), atol=2e-6, rtol=0)
    moved = (found - normalise(as_batch(image)))[0]
    expected = (shift / torch.tensor(STD))[:, None, None].expand_as(moved)
    torch.testing.assert_close(moved, expected, atol=1e-5, rtol=0)


def test_a_mixed_batch_equals_its_images_one_by_one() -> None:
    """Each is flipped, or not, before its jitter; the batch handed in is not modified."""
    rng = np.random.default_rng(5)
    draws = [draw_augmentation(rng, 0.5, 0.4, 0.1) for _ in range(12)]
    images = torch.from_numpy(rng.integers(0, 256, (12, 3, 9, 14), dtype=np.uint8))
    before = images.clone()
    flips = torch.tensor([d.flip for d in draws])
    orders = torch.tensor([d.jitter_order for d in draws])
    factors = torch.tensor([d.jitter_factors for d in draws])
    lighting = torch.tensor([d.lighting for d in draws])
    assert len(set(orders.tolist())) > 3 and flips.any() and not flips.all()
    whole = augment(images, flips, orders, factors, lighting)
    for i in range(12):
        one = slice(i, i + 1)
        turned = images[one].flip(-1) if flips[i] else images[one]
        assert torch.equal(whole[one], augment(turned, None, orders[one], factors[one], lighting[one]))
    assert torch.equal(images, before)


def test_the_flip_comes_first_and_the_rest_commutes_with_it(image: Image.Image) -> None:
    batch, order, factors = as_batch(image), torch.tensor([3]), torch.tensor([[1.3, 0.7, 1.2]])
    flipped = augment(batch, torch.tensor([True]), order, factors)
    torch.testing.assert_close(flipped.flip(-1), augment(batch, None, order, factors), atol=TWO_LEVELS, rtol=0)


def test_what_changes_nothing_may_as_well_be_none() -> None:
    images = torch.randint(0, 256, (3, 3, 7, 10), dtype=torch.uint8)
    neutral = torch.zeros(3, dtype=torch.bool), torch.tensor([0, 3, 5]), torch.ones(3, 3), torch.zeros(3, 3)
    assert torch.equal(augment(images, *neutral), normalise(images))


@pytest.mark.parametrize(
    ("off", "size", "channels_last"),
    [
        ((), (33, 40), True),
        ((), (1, 3), False),
        ((0,), (23, 17), True),
        ((1, 2), (23, 17), False),
        ((3,), (23, 17), True),
        ((0, 1, 2, 3), (33, 40), False),
    ],
)
def test_a_gpus_kernel_computes_the_same(off: tuple[int, ...], size: tuple[int, int], channels_last: bool) -> None:
    """Sizes below, at no multiple of, and above a block; all six orders; without a GPU the kernel is interpreted."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rng = np.random.default_rng(6)
    draws = [draw_augmentation(rng, 0.5, 0.4, 0.1) for _ in range(6)]
    images = torch.from_numpy(rng.integers(0, 256, (6, *size, 3), dtype=np.uint8)).permute(0, 3, 1, 2)
    images = images if channels_last else images.contiguous()
    numbers = (
        torch.tensor([True, False, False, True, True, False]),
        torch.arange(6),
        torch.tensor([d.jitter_factors for d in draws]),
        torch.tensor([d.lighting for d in draws]),
    )
    given = [None if number in off else values for number, values in enumerate(numbers)]
    tables = [torch.tensor(values, device=device) for values in (JITTER_ORDERS, COMPONENTS, (MEAN, STD))]
    on_device = [None if values is None else values.to(device) for values in given]
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float16, 2e-3)):
        found = augment_fused(images.to(device), on_device, tables, dtype)
        assert found.dtype == dtype and found.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(found.cpu().float(), augment(images, *given), atol=tolerance, rtol=1e-3)


def test_it_serves_inference_and_training_in_turn() -> None:
    """Constants kept from inference mode must not refuse a gradient later."""
    images = torch.randint(0, 256, (1, 3, 4, 5), dtype=torch.uint8)
    with torch.inference_mode():
        normalise(images)
    weight = torch.ones(3, requires_grad=True)
    (normalise(images) * weight.view(1, 3, 1, 1)).sum().backward()
    assert weight.grad is not None


def test_draws_have_their_distribution() -> None:
    rng = np.random.default_rng(2)
    draws = [draw_augmentation(rng, 0.3, 0.4, 0.1) for _ in range(4000)]
    factors = np.array([d.jitter_factors for d in draws])
    lighting = np.array([d.lighting for d in draws])
    assert abs(np.mean([d.flip for d in draws]) - 0.3) < 0.03
    assert np.bincount([d.jitter_order for d in draws], minlength=6).min() > 550
    assert factors.min() >= 0.6 and factors.max() <= 1.4
    np.testing.assert_allclose(factors.mean(0), 1.0, atol=0.015)
    np.testing.assert_allclose(factors.std(0), 0.8 / 12**0.5, atol=0.01)
    np.testing.assert_allclose(lighting.mean(0), 0.0, atol=0.01)
    np.testing.assert_allclose(lighting.std(0), 0.1, atol=0.006)


def test_numbers_are_drawn_in_the_documented_order_whatever_is_switched_off() -> None:
    full = draw_augmentation(np.random.default_rng(9), 0.5, 0.4, 0.1)
    rng = np.random.default_rng(9)
    flip, order = rng.random() < 0.5, int(rng.integers(6))
    factors, lighting = tuple(rng.uniform(0.6, 1.4, 3)), tuple(rng.normal(0, 0.1, 3))
    assert full == Augmentation(bool(flip), order, factors, lighting)
    plain = draw_augmentation(np.random.default_rng(9), 0.0, 0.0, 0.1)
    assert plain == Augmentation(False, order, (1.0, 1.0, 1.0), lighting)
    assert draw_augmentation(np.random.default_rng(9), 0.5, 0.4, 0.0) == Augmentation(flip, order, factors, (0, 0, 0))
    strong = [draw_augmentation(rng, 0.5, 1.5, 0.0).jitter_factors for _ in range(300)]
    assert 0 <= np.min(strong) < 0.1 and 2.4 < np.max(strong) <= 2.5  # a negative factor would invert colours
