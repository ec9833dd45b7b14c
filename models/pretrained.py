"""Networks with the weights that their library publishes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
import torchvision
from torch import nn

from models.build import FORCE_TIMM, OURS, library_of
from models.packaged import PACKAGES
from utils.errors import UserError

HUB_TIMEOUT = 10  # seconds


def create_pretrained_model(arch: str) -> tuple[nn.Module, str]:
    """Build a classifier with the weights that its library publishes, from the library's cache or the network.

    Args:
        arch: as for library_of; a timm name may select weights ("NAME.TAG"); torchvision's DEFAULT weights are used.

    Returns:
        the network, for the classes of those weights, and the name of the weights.

    Raises:
        UserError: no library has the name or weights for it, or they cannot be downloaded now.
    """
    import timm

    library, name = library_of(arch), arch.removeprefix(FORCE_TIMM)
    if library == OURS or (library == "timm" and not timm.is_model_pretrained(name)):
        raise UserError(f"{arch} has no published weights; expected the path of a checkpoint of {arch}")
    model: Any
    try:
        if library == "torchvision":
            weights = torchvision.models.get_model_weights(arch).DEFAULT
            model = torchvision.models.get_model(arch, weights=weights)
            if arch == "inception_v3":
                model.AuxLogits = None  # create_model builds it without this second output of training, too
            return model, str(weights)
        with _no_retries_offline():
            model = timm.create_model(name, pretrained=True)
    except Exception as error:  # downloading involves four libraries, each with its own errors
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise UserError(
            f"the published weights of {arch} are not in {library}'s cache and cannot be downloaded, or cannot be read "
            f"({reason}).\n  Without a network connection, {_offline_ways(library, name)}."
        ) from error
    published = ".".join(filter(None, (model.pretrained_cfg["architecture"], model.pretrained_cfg.get("tag"))))
    if model.num_classes == 0:
        raise UserError(
            f"the published weights {published} give features, not classes; expected those of a classifier. "
            "Choose a tag such as in1k: timm.list_pretrained() lists them"
        )
    return model, published


@contextmanager
def _no_retries_offline() -> Iterator[None]:
    """Use the Hugging Face Hub's cache only if the Hub cannot be reached: its library would retry for a minute."""
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError
    from huggingface_hub.utils import get_session

    was_offline, unreachable = constants.HF_HUB_OFFLINE, None
    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT)
    except Exception as error:  # of the HTTP library, which depends on the Hub's version
        constants.HF_HUB_OFFLINE, unreachable = True, error
    try:
        yield
    except LocalEntryNotFoundError as error:
        raise (unreachable or error) from error
    finally:
        constants.HF_HUB_OFFLINE = was_offline


def _offline_ways(library: str, name: str) -> str:
    """Describe how to get the published weights of a network onto a machine without a network connection."""
    import timm
    from huggingface_hub import constants

    published: Any = timm.get_pretrained_cfg(name) if library == "timm" else None
    if published and published.hf_hub_id:
        folder = f"models--{published.hf_hub_id.replace('/', '--')}"
        copy = f"copy the folder {folder} from the cache of a machine that has one to {constants.HF_HUB_CACHE}"
    else:
        url = published.url if published else torchvision.models.get_model_weights(name).DEFAULT.url
        copy = f"copy the file {Path(urlparse(url).path).name} to {Path(torch.hub.get_dir(), 'checkpoints')}"
    ways = [copy, "give the path of a checkpoint instead of `pretrained`"]
    if name in PACKAGES:
        ways.append(f"give `packaged`, the weights in the Python package {PACKAGES[name].name}")
    return ", or ".join(ways)
