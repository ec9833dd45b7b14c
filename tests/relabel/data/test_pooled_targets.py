"""For other training loops: the crop and its box belong together, and so do a crop and its target."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import to_tensor

from relabel import CropBox, LabelMap, LabelMaps, PooledTargets, RandomResizedCropWithBox, relabel_target
from tests.conftest import CLASSES
from utils.errors import UserError

CROP = RandomResizedCropWithBox(16)


def gradient() -> Image.Image:
    """An image of 60 x 40 pixels: red is the column, green the row, as fractions of 250."""
    red, green = np.meshgrid((np.arange(60) + 0.5) / 60, (np.arange(40) + 0.5) / 40)
    return Image.fromarray((250 * np.stack([red, green, 0 * red], axis=2)).astype(np.uint8))


@pytest.mark.parametrize("as_tensor", [False, True])
def test_the_crop_shows_what_is_in_its_box(as_tensor: bool) -> None:
    torch.manual_seed(0)
    boxes = []
    for _ in range(20):
        crop, box = CROP(to_tensor(gradient()) if as_tensor else gradient())
        pixels = crop if as_tensor else to_tensor(crop)
        assert pixels.shape == (3, 16, 16)
        columns, rows = (pixels[:2].mean((1, 2)) * 255 / 250).tolist()
        assert columns == pytest.approx((box.left + box.right) / 2, abs=0.01)
        assert rows == pytest.approx((box.top + box.bottom) / 2, abs=0.01)
        boxes.append(box)
    assert len(set(boxes)) == 20
    torch.manual_seed(0)
    assert [CROP(gradient())[1] for _ in range(20)] == boxes


def test_targets_are_those_of_the_crops_in_workers_too(photos: Path) -> None:
    folder = ImageFolder(str(photos / "train"))
    found = PooledTargets(folder, photos / "labels", CROP, to_tensor, smoothing=0.1)
    found = pickle.loads(pickle.dumps(found))  # as workers get it where they are not forked
    maps = LabelMaps(photos / "labels")
    for index in (0, 17, 29):
        path = Path(folder.samples[index][0])
        torch.manual_seed(index)
        _, box = CROP(Image.open(path))
        torch.manual_seed(index)
        image, target = found[index]
        pooled = relabel_target(*LabelMap.stack([maps[f"{path.parent.name}/{path.stem}"]]), CropBox.stack([box]), 3)
        torch.testing.assert_close(target, pooled[0] * 0.9 + 0.1 / 3)
        assert image.shape == (3, 16, 16) and target.argmax() == folder.samples[index][1]
    torch.manual_seed(0)
    batches = list(DataLoader(found, batch_size=10, num_workers=1))
    assert [targets.shape for _, targets in batches] == [(10, 3)] * 3
    assert torch.cat([targets for _, targets in batches]).argmax(1).tolist() == folder.targets


def test_classes_are_matched_by_name(photos: Path, tmp_path: Path) -> None:
    from relabel.annotation.convert import pack

    pack(photos / "labels", tmp_path / "packed", None, None, skip_damaged=False)  # names ant, bee and cow
    for name in CLASSES[1:]:
        (tmp_path / "train" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "train" / name).symlink_to(photos / "train" / name)
    found = PooledTargets(ImageFolder(str(tmp_path / "train")), tmp_path / "packed", CROP)
    assert found.classes == ["bee", "cow"] and len(found) == 20
    assert [int(found[index][1].argmax()) for index in range(20)] == [0] * 10 + [1] * 10


def test_what_does_not_fit_is_reported_at_once(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"transform of its own(.|\n)*PooledTargets\(\.\.\., transform=\.\.\.\)"):
        PooledTargets(ImageFolder(str(photos / "train"), to_tensor), photos / "labels", CROP)
    (tmp_path / "train" / "ant").mkdir(parents=True)
    for name in ("ant.00.png", "new.png"):
        gradient().save(tmp_path / "train" / "ant" / name)
    with pytest.raises(UserError, match=r"without a label map: 1 of 2(.|\n)*new\.png"):
        PooledTargets(ImageFolder(str(tmp_path / "train")), photos / "labels", CROP)
    (tmp_path / "train" / "ant" / "new.png").rename(tmp_path / "train" / "ant" / "ant.00.jpg")
    with pytest.raises(UserError, match=r"several images have the key 'ant/ant\.00'"):
        PooledTargets(ImageFolder(str(tmp_path / "train")), photos / "labels", CROP)
    (tmp_path / "train" / "ant" / "ant.00.jpg").unlink()
    assert len(PooledTargets(ImageFolder(str(tmp_path / "train")), photos / "labels", CROP)) == 1
