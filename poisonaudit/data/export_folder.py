"""Picture data, clean or poisoned, as 8-bit PNG files in class folders that `folder:DIR` reads back."""

from __future__ import annotations

import re
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from poisonaudit.data.dataset import DataSet
from poisonaudit.errors import StorageError, UsageError
from poisonaudit.store.atomic import TEMPORARY_SUFFIX, make_folder, os_refusal, sync_folder

STEPS = 255
# Of one step: what float32 leaves between a value and its place on the grid.
_SLACK = 2e-5
# What every file system takes as the name of a folder.
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_. -]{0,80}")


@dataclass(frozen=True)
class FolderExport:
    """What was written, and what rounding to 8 bits did.

    Attributes:
        path: the folder.
        folders: name of each class's folder, in the order of the classes.
        x_train: training inputs as the files hold them, like the data's, float64.
        perturbation: those minus the clean training inputs in the same 8 bits.
        clean_rounding: largest change of a clean training value by rounding, at most half a step of 1/255.
    """

    path: Path
    folders: tuple[str, ...]
    x_train: Tensor
    perturbation: Tensor
    clean_rounding: float


def refuse_folder_export(data: DataSet) -> None:
    """Refuse data that cannot be written as pictures in class folders.

    Args:
        data: what is to be exported.

    Raises:
        UsageError: PA348, it is a table, has no classes, no 1 or 3 channels, or values outside [0, 1].
    """
    shape = data.image_shape
    if shape is None:
        reason = "is a table, so it has no pictures to write"
    elif data.classes is None:
        reason = "has no classes, so there are no class folders"
    elif shape[0] not in (1, 3):
        reason = f"has pictures of {shape[0]} channels; PNG class folders hold 1 or 3"
    elif min(float(part.min()) for part in (data.x_train, data.x_test) if len(part)) < 0 or any(
        float(part.max()) > 1 for part in (data.x_train, data.x_test) if len(part)
    ):
        reason = "has values outside [0, 1], which 8 bits cannot hold"
    else:
        return
    raise UsageError("PA348", f"{data.spec} {reason}. Export npz only.")


def eight_bits(clean: Tensor, poisoned: Tensor, limits: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Poisoned values in steps of 1/255, rounded towards the clean value where the budget asks for it.

    A value that moves by half a step or more goes to the nearest step inside its limits, counted both from the clean
    value and from the clean value's own nearest step: the perturbation is inside its budget whichever of the two one
    compares with. Other values go to the clean value's nearest step.

    Args:
        clean: values in [0, 1], any shape.
        poisoned: the same shape.
        limits: least and largest admissible perturbation of each value; None for those between 0 and the perturbation
            itself, which is inside every norm ball around the clean value that holds the perturbation.

    Returns:
        uint8, the same shape.
    """
    start, wanted = STEPS * clean.double(), STEPS * poisoned.double()
    base, move = start.round(), wanted - start
    if limits is None:
        low, high = move.clamp(max=0.0), move.clamp(min=0.0)
    else:
        low, high = (STEPS * limit.double() for limit in limits)
    least = (torch.maximum(base, start) + low - _SLACK).ceil()
    most = (torch.minimum(base, start) + high + _SLACK).floor()
    nearest = wanted.round()
    steps = torch.minimum(torch.maximum(nearest, least), most)
    resting = (move.abs() < 0.5 - _SLACK) | (least > most)
    return torch.where(resting, base, steps).clamp(0, STEPS).to(torch.uint8)


def write_folder(
    path: Path, data: DataSet, x_train: Tensor | None = None, limits: tuple[Tensor, Tensor] | None = None
) -> FolderExport:
    """Write `path/train/CLASS/ID.png` and `path/test/CLASS/ID.png`, lossless, in one step.

    `folder:path` keeps this split. IDs are the data's own row numbers. Folders bear the names of the classes where
    their alphabetical order, by which they are read back, is that of the classes; else the class number comes first.

    Args:
        path: the folder; nothing of that name may exist.
        data: the clean data.
        x_train: training inputs to write instead of the clean ones.
        limits: see `eight_bits`, like `x_train`.

    Returns:
        What was written, and the effect of rounding.

    Raises:
        UsageError: PA348, the data are no pictures in classes; PA310, the folder exists.
        StorageError: PA503, the disk or its permissions refuse.
    """
    refuse_folder_export(data)
    if path.exists():
        raise UsageError("PA310", f"{path} exists. Move it or choose another folder.")
    clean = data.x_train
    poisoned = clean if x_train is None else x_train.to(clean.device)
    train, test = eight_bits(clean, poisoned, limits), eight_bits(data.x_test, data.x_test)
    folders = folder_names(data.classes or ())
    make_folder(path.parent)
    unfinished = path.parent / f".{path.name[:80]}.{secrets.token_hex(6)}{TEMPORARY_SUFFIX}"
    try:
        _write_part(unfinished / "train", data, train, data.y_train, data.train_ids, folders)
        _write_part(unfinished / "test", data, test, data.y_test, data.test_ids, folders)
        unfinished.rename(path)
        sync_folder(path.parent)
    except OSError as error:
        raise StorageError("PA503", os_refusal("write", path, error)) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    stored, base = train.double() / STEPS, eight_bits(clean, clean).double() / STEPS
    return FolderExport(path, folders, stored, stored - base, float((base - clean.double()).abs().max()))


def folder_names(classes: Sequence[str]) -> tuple[str, ...]:
    """Names of the class folders, whose alphabetical order is the order of the classes.

    Args:
        classes: names of the classes.

    Returns:
        The names themselves, or with their number in front and odd characters replaced.
    """
    plain = all(_PLAIN.fullmatch(name) and not name.endswith((".", " ")) for name in classes)
    if plain and list(classes) == sorted(classes) and len({name.lower() for name in classes}) == len(classes):
        return tuple(classes)
    width = len(str(max(len(classes) - 1, 0)))
    tails = (re.sub(r"[^A-Za-z0-9_-]", "_", name)[:60] for name in classes)
    return tuple(f"{number:0{width}d}-{tail}" for number, tail in enumerate(tails))


def _write_part(top: Path, data: DataSet, pixels: Tensor, labels: Tensor, ids: Tensor, folders: Sequence[str]) -> None:
    from PIL import Image

    # A class without rows keeps its folder, by which classes are numbered on reading.
    for name in folders:
        (top / name).mkdir(parents=True)
    assert data.image_shape is not None
    channels, height, width = data.image_shape
    pictures = pixels.reshape(-1, channels, height, width).permute(0, 2, 3, 1).cpu().numpy()
    digits = len(str(int(ids.max()))) if len(ids) else 1
    for picture, label, row in zip(pictures, labels.tolist(), ids.tolist(), strict=True):
        image = Image.fromarray(picture[:, :, 0] if channels == 1 else picture)
        image.save(top / folders[label] / f"{row:0{digits}d}.png", optimize=False)
