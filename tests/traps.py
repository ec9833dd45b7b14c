"""Hostile files: each makes a folder when it is read carelessly."""

import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch


class Trap:
    """An object that makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def hostile_files(marker: Path) -> dict[str, bytes]:
    """Name -> content of a file that makes the folder `marker` when it is unpickled or built from YAML's tags."""
    trap, tensor = Trap(marker), torch.zeros(2, 2, 3, 4)
    as_zip, legacy, array = io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save({"state_dict": trap}, as_zip)
    torch.save({"map": tensor, "trap": trap}, legacy, _use_new_zipfile_serialization=False)
    np.save(array, np.array([trap] * 9, dtype=object), allow_pickle=True)
    return {
        "pickle of protocol 0": pickle.dumps(trap, protocol=0),
        "pickle of protocol 5": pickle.dumps(trap, protocol=5),
        "torch's zip format": as_zip.getvalue(),
        "torch's legacy format": legacy.getvalue(),
        "an array of objects": array.getvalue(),
        "YAML": f"data: !!python/object/apply:os.mkdir [{marker}]\n".encode(),
    }
