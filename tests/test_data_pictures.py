"""Picture data sets from small files in their true on-disk formats, written here, and what is refused."""

from __future__ import annotations

import gzip
import os
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from poisonaudit.data import load_data
from poisonaudit.errors import InputRefused, UsageError

Array = np.ndarray[Any, Any]


def bytes_of(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def idx(values: Array) -> bytes:
    """The idx format: two zero bytes, type 8 (unsigned byte), number of axes, axes, values."""
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()


def write_mnist(root: Path, folder: str = "MNIST", packed: bool = False) -> tuple[Array, Array]:
    raw = root / folder / "raw"
    raw.mkdir(parents=True)
    pictures, labels = bytes_of(12, 28, 28), (np.arange(12) % 10).astype(np.uint8)
    for part, count in (("train", 12), ("t10k", 5)):
        for name, values in (("images-idx3", pictures[:count]), ("labels-idx1", labels[:count])):
            content = idx(values)
            if packed:
                (raw / f"{part}-{name}-ubyte.gz").write_bytes(gzip.compress(content))
            else:
                (raw / f"{part}-{name}-ubyte").write_bytes(content)
    return pictures, labels


def write_cifar10(root: Path, protocol: int = 2) -> list[dict[bytes, Any]]:
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    batches = []
    for number, name in enumerate([*(f"data_batch_{index}" for index in range(1, 6)), "test_batch"]):
        batch = {
            b"batch_label": f"training batch {number} of 5".encode(),
            b"labels": [(number + index) % 10 for index in range(4)],
            b"data": bytes_of(4, 3072, seed=number),
            b"filenames": [b"some_picture_s_%06d.png" % index for index in range(4)],
        }
        (folder / name).write_bytes(pickle.dumps(batch, protocol=protocol))
        batches.append(batch)
    return batches


def write_cifar100(root: Path) -> None:
    folder = root / "cifar-100-python"
    folder.mkdir()
    for name, count in (("train", 8), ("test", 3)):
        labels = [index % 100 for index in range(count)]
        batch = {b"data": bytes_of(count, 3072), b"fine_labels": labels, b"coarse_labels": [0] * count}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    names = {b"fine_label_names": [b"class %d" % index for index in range(100)]}
    (folder / "meta").write_bytes(pickle.dumps(names, protocol=2))


def write_svhn(root: Path) -> Array:
    pictures = bytes_of(32, 32, 3, 6)
    labels = np.array([[10], [1], [2], [9], [10], [3]], dtype=np.uint8)
    for name in ("train_32x32.mat", "test_32x32.mat"):
        savemat(root / name, {"X": pictures, "y": labels}, do_compression=name.startswith("test"))
    return pictures


def write_folder(root: Path, mode: str = "RGB", side: int = 6) -> None:
    for label in ("cat", "dog"):
        (root / label).mkdir(parents=True)
        for index in range(8):
            shape = (side, side, 3) if mode == "RGB" else (side, side)
            Image.fromarray(bytes_of(*shape, seed=index), mode).save(root / label / f"{index}.png")


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_idx_files(tmp_path: Path, name: str, folder: str, packed: bool) -> None:
    pictures, labels = write_mnist(tmp_path, folder, packed)
    data = load_data(f"{name}:{tmp_path}", images=True)
    assert np.array_equal(data.x_train.numpy(), pictures[:, None].astype(np.float32) / np.float32(255))
    assert data.x_train.dtype == torch.float32 and data.y_train.tolist() == labels.tolist()
    assert data.x_test.shape == (5, 1, 28, 28) and data.test_ids.tolist() == list(range(12, 17))
    assert data.image_shape == (1, 28, 28) and data.outputs == 10 and len(data.sources) == 4
    assert (float(data.box[0].max()), float(data.box[1].min())) == (0.0, 1.0)
    assert data.preprocessing == {"divide_by": 255}
    # torchvision's own data set on the same files gives the same pictures.
    from torchvision import datasets

    if not packed:
        theirs = {"mnist": datasets.MNIST, "fashion_mnist": datasets.FashionMNIST}[name](str(tmp_path), train=True)
        assert np.array_equal(theirs.data.numpy(), pictures) and theirs.targets.tolist() == labels.tolist()


def test_limit_size_and_flat_rows(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    assert load_data(f"mnist:{tmp_path}", limit=3).x_train.shape == (3, 784)
    resized = load_data(f"mnist:{tmp_path}?size=32", images=True)
    assert resized.x_train.shape == (12, 1, 32, 32) and resized.preprocessing["resize"]["to"] == 32
    plain = load_data(f"mnist:{tmp_path}", images=True)
    exact = torch.nn.functional.interpolate(plain.x_train, size=(32, 32), mode="bilinear", align_corners=False)
    assert torch.allclose(resized.x_train, exact, atol=1e-6)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_cifar10(tmp_path: Path, protocol: int) -> None:
    batches = write_cifar10(tmp_path, protocol)
    data = load_data(f"cifar10:{tmp_path}", images=True)
    assert data.x_train.shape == (20, 3, 32, 32) and data.x_test.shape == (4, 3, 32, 32)
    raw = batches[2][b"data"][1].reshape(3, 32, 32)
    assert np.array_equal(np.rint(data.x_train[9].numpy() * 255).astype(np.uint8), raw)
    assert data.y_train[8:12].tolist() == batches[2][b"labels"] and data.classes is not None
    assert data.classes[3] == "cat" and len(data.sources) == 6


def test_cifar100_and_svhn(tmp_path: Path) -> None:
    write_cifar100(tmp_path)
    hundred = load_data(f"cifar100:{tmp_path}", images=True)
    assert hundred.outputs == 100 and hundred.classes is not None and hundred.classes[7] == "class 7"
    assert any("classes have no training row" in note for note in hundred.notes)
    pictures = write_svhn(tmp_path)
    numbers = load_data(f"svhn:{tmp_path}", images=True)
    assert numbers.y_train.tolist() == [0, 1, 2, 9, 0, 3]
    assert np.array_equal(np.rint(numbers.x_train[4].numpy() * 255), pictures[:, :, :, 4].transpose(2, 0, 1))


class Malicious:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (self.path,)


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    batch = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    batch.write_bytes(pickle.dumps({b"data": Malicious(str(tmp_path / "ran"))}, protocol=2))
    with pytest.raises(InputRefused, match=r"PA203 data_batch_3 asks for (posix|nt)\.mkdir"):
        load_data(f"cifar10:{tmp_path}")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar100", "svhn"])
def test_missing_files_are_named_and_nothing_is_downloaded(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputRefused, match="PA201 .*is missing"):
        load_data(f"{name}:{tmp_path}")
    with pytest.raises(InputRefused, match="PA201 .*is not a folder"):
        load_data(f"{name}:{tmp_path / 'nowhere'}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("cut", [0, 3, 20, -5])
def test_truncated_files_are_refused(tmp_path: Path, cut: int) -> None:
    write_mnist(tmp_path / "m")
    write_cifar10(tmp_path)
    write_svhn(tmp_path)
    for path, spec in (
        (tmp_path / "m/MNIST/raw/train-images-idx3-ubyte", f"mnist:{tmp_path / 'm'}"),
        (tmp_path / "cifar-10-batches-py/data_batch_1", f"cifar10:{tmp_path}"),
        (tmp_path / "train_32x32.mat", f"svhn:{tmp_path}"),
    ):
        path.write_bytes(path.read_bytes()[:cut])
        with pytest.raises(InputRefused, match="PA202"):
            load_data(spec)


def test_other_content_is_refused(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    batch = tmp_path / "cifar-10-batches-py" / "test_batch"
    for content in ([1, 2], {b"data": bytes_of(2, 10), b"labels": [0, 1]}, {b"data": bytes_of(2, 3072), b"labels": 7}):
        batch.write_bytes(pickle.dumps(content, protocol=2))
        with pytest.raises(InputRefused, match="PA202"):
            load_data(f"cifar10:{tmp_path}")
    batch.write_bytes(pickle.dumps({b"data": bytes_of(2, 3072), b"labels": [0, 77]}, protocol=2))
    with pytest.raises(InputRefused, match="PA212"):
        load_data(f"cifar10:{tmp_path}")


def test_folder_with_our_split(tmp_path: Path) -> None:
    write_folder(tmp_path)
    data = load_data(f"folder:{tmp_path}?split=3", images=True)
    assert data.classes == ("cat", "dog") and len(data.x_train) == 12 and len(data.x_test) == 4
    row = int(data.train_ids[0])
    raw = np.asarray(Image.open(tmp_path / ("cat" if row < 8 else "dog") / f"{row % 8}.png")).transpose(2, 0, 1)
    assert np.array_equal(np.rint(data.x_train[0].numpy() * 255).astype(np.uint8), raw)


def test_folder_with_its_own_split_and_grey_pictures(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", "L")
    write_folder(tmp_path / "val", "L")
    data = load_data(f"folder:{tmp_path}", images=True)
    assert data.image_shape == (1, 6, 6) and len(data.x_train) == len(data.x_test) == 16
    assert load_data(f"folder:{tmp_path}?channels=3&size=8", images=True).image_shape == (3, 8, 8)
    with pytest.raises(UsageError, match="PA301"):
        load_data(f"folder:{tmp_path}?split=1")


def test_folder_refusals(tmp_path: Path) -> None:
    write_folder(tmp_path / "a")
    Image.fromarray(bytes_of(5, 7, 3)).save(tmp_path / "a" / "cat" / "odd.png")
    with pytest.raises(InputRefused, match="PA211 .*mixes sizes"):
        load_data(f"folder:{tmp_path / 'a'}")
    assert load_data(f"folder:{tmp_path / 'a'}?size=6", images=True).image_shape == (3, 6, 6)
    (tmp_path / "a" / "dog" / "broken.jpg").write_bytes(b"not a picture")
    with pytest.raises(InputRefused, match="PA202 broken.jpg"):
        load_data(f"folder:{tmp_path / 'a'}?size=6")
    write_folder(tmp_path / "b")
    Image.fromarray(bytes_of(6, 6, 3)).save(tmp_path / "secret.png")
    (tmp_path / "b" / "dog" / "link.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(InputRefused, match="PA206"):
        load_data(f"folder:{tmp_path / 'b'}")
    (tmp_path / "empty" / "one").mkdir(parents=True)
    with pytest.raises(InputRefused, match="PA205"):
        load_data(f"folder:{tmp_path / 'empty'}")
    with pytest.raises(UsageError, match="PA335"):
        load_data(f"folder:{tmp_path / 'b'}?channels=2")


def test_a_picture_that_declares_too_many_pixels_is_refused_before_decoding(tmp_path: Path) -> None:
    write_folder(tmp_path)
    # A PNG of some 60 bytes that declares 60,000 x 60,000 pixels.
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b""))]
    packed = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    ]
    (tmp_path / "cat" / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))
    with pytest.raises(InputRefused, match="PA204 .*larger than"):
        load_data(f"folder:{tmp_path}?size=6")
