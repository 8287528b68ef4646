"""npz files: pictures, tables, own splits, the poisoned export, and everything malformed."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile

import numpy as np
import pytest
import torch

from poisonaudit.data import load_data, npz_bytes
from poisonaudit.errors import InputRefused, PoisonAuditError, UsageError

RNG = np.random.default_rng(0)
LABELS = np.arange(40) % 4


def write(tmp_path, name="a.npz", *, compressed=False, **arrays):
    path = tmp_path / name
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


def refused(path, code, options="", kind=InputRefused):
    with pytest.raises(kind, match=code) as caught:
        load_data(f"npz:{path}{options}")
    text = str(caught.value)
    assert "\n" not in text and len(text) < 600
    return text


@pytest.mark.parametrize(("shape", "picture"), [((6, 5), (1, 6, 5)), ((1, 6, 5), (1, 6, 5)), ((3, 6, 5), (3, 6, 5))])
@pytest.mark.parametrize("compressed", [False, True])
def test_uint8_pictures(tmp_path, shape, picture, compressed):
    x = RNG.integers(0, 256, (40, *shape), dtype=np.uint8)
    path = write(tmp_path, x=x, y=LABELS, compressed=compressed)
    data = load_data(f"npz:{path}", images=True)
    assert data.image_shape == data.input_shape == picture and data.x_train.dtype == torch.float32
    expected = x.reshape(40, *picture)[data.train_ids.numpy()].astype(np.float32) / np.float32(255)
    assert np.array_equal(data.x_train.numpy(), expected)
    assert data.box[0].shape == picture and data.box[0].max() == 0 and data.box[1].min() == 1
    assert data.preprocessing == {"divide_by": 255} and data.classes == tuple("0123")
    assert data.sources == {"a.npz": hashlib.sha256(path.read_bytes()).hexdigest()}
    flat = load_data(f"npz:{path}")
    assert torch.equal(flat.x_train, data.x_train.flatten(1)) and len(flat.feature_names) == flat.x_train.shape[1]


def test_float_tables_are_taken_as_they_are(tmp_path):
    x = RNG.normal(size=(40, 3))
    path = write(tmp_path, x=x, y=LABELS)
    data = load_data(f"npz:{path}")
    assert np.array_equal(data.x_train.numpy(), x[data.train_ids.numpy()].astype(np.float32))
    assert torch.equal(data.box[0], data.x_train.min(0).values) and data.preprocessing == {}
    scaled = load_data(f"npz:{path}?standardise=true")
    assert torch.allclose(scaled.x_train.mean(0), torch.zeros(3), atol=1e-6)


def test_float_pictures(tmp_path):
    data = load_data(f"npz:{write(tmp_path, x=RNG.random((40, 4, 4)), y=LABELS)}")
    assert data.box[1].min() == 1 and data.image_shape == (1, 4, 4)
    data = load_data(f"npz:{write(tmp_path, x=RNG.normal(size=(40, 4, 4)), y=LABELS)}")
    assert torch.equal(data.box[1], data.x_train.max(0).values) and any("outside [0, 1]" in n for n in data.notes)


def test_uint8_table(tmp_path):
    data = load_data(f"npz:{write(tmp_path, x=np.arange(160, dtype=np.uint8).reshape(40, 4), y=LABELS)}")
    assert data.image_shape is None and data.box[1].min() == 1 and data.x_train.max() <= 1


def test_own_split_is_kept(tmp_path):
    x, z = RNG.random((10, 3)), RNG.random((4, 3))
    arrays = {"x_train": x, "y_train": LABELS[:10], "x_test": z, "y_test": LABELS[:4]}
    path = write(tmp_path, **arrays)
    data = load_data(f"npz:{path}")
    assert np.array_equal(data.x_train.numpy(), x.astype(np.float32))
    assert np.array_equal(data.x_test.numpy(), z.astype(np.float32))
    assert data.train_ids.tolist() == list(range(10)) and data.test_ids.tolist() == [10, 11, 12, 13]
    refused(path, "PA332", "?split=1", UsageError)
    path = write(tmp_path, **arrays, train_ids=np.arange(50, 60), test_ids=np.arange(4))
    assert load_data(f"npz:{path}", limit=6).train_ids.tolist() == list(range(50, 56))


@pytest.mark.parametrize(
    ("labels", "classes", "numbers", "note"),
    [
        (np.array([3, 7] * 20, dtype=np.uint8), ("3", "7"), [0, 1], True),
        (np.array([-1, 1] * 20), ("-1", "1"), [0, 1], True),
        (np.array([True, False] * 20), ("0", "1"), [1, 0], False),
        (np.array(["cat", "ant"] * 20), ("ant", "cat"), [1, 0], False),
        (np.array([[0], [1]] * 20), ("0", "1"), [0, 1], False),
    ],
)
def test_labels(tmp_path, labels, classes, numbers, note):
    data = load_data(f"npz:{write(tmp_path, x=RNG.random((40, 2)), y=labels)}")
    assert data.classes == classes
    assert data.y_train.tolist() == [numbers[int(i) % 2] for i in data.train_ids]
    assert any("became classes" in text for text in data.notes) == note


def test_classes_option_keeps_labels(tmp_path):
    path = write(tmp_path, x=RNG.random((40, 2)), y=np.array([3, 7] * 20))
    data = load_data(f"npz:{path}?classes=10")
    assert data.outputs == 10 and set(data.y_train.tolist()) == {3, 7}
    assert any("8 of 10 classes have no training row" in note for note in data.notes)
    refused(path, "PA212", "?classes=5")
    refused(path, "PA331", "?classes=1", UsageError)
    refused(path, "PA303", "?classes=x", UsageError)


def test_regression(tmp_path):
    x, y = RNG.random((40, 2)), RNG.normal(size=40)
    data = load_data(f"npz:{write(tmp_path, x=x, y=y)}")
    assert data.classes is None and data.outputs == 1 and data.y_train.dtype == torch.float32
    assert np.array_equal(data.y_train[:, 0].numpy(), y[data.train_ids.numpy()].astype(np.float32))
    assert data.to(torch.float64).y_test.dtype == torch.float64
    two = load_data(f"npz:{write(tmp_path, x=x, y=RNG.normal(size=(40, 2)))}")
    assert two.outputs == 2 and two.y_train.shape == (30, 2)
    whole = write(tmp_path, x=x, y=np.float64([1.0, 2.0] * 20))
    assert load_data(f"npz:{whole}").classes is None
    assert load_data(f"npz:{whole}?task=classification").classes == ("1", "2")
    assert load_data(f"npz:{write(tmp_path, x=x, y=LABELS)}?task=regression").classes is None
    refused(whole, "PA301 .*regression", "?task=regresion", UsageError)
    refused(write(tmp_path, x=x, y=y), "PA212", "?task=classification")
    refused(write(tmp_path, x=x, y=np.array(["a", "b"] * 20)), "PA212", "?task=regression")


@pytest.mark.parametrize(
    ("spec", "images"), [("digits", False), ("digits", True), ("digits?size=12", True), ("wine", False)]
)
def test_export_reads_back_identically(tmp_path, spec, images):
    clean = load_data(spec, images=images, limit=60)
    poisoned = clean.x_train.clone()
    poisoned[7] = (poisoned[7] + 0.03).minimum(clean.box[1])
    path = tmp_path / "poisoned.npz"
    path.write_bytes(npz_bytes(clean, poisoned))
    back = load_data(f"npz:{path}", images=images)
    assert torch.equal(back.x_train, poisoned) and not torch.equal(back.x_train, clean.x_train)
    for name in ("y_train", "x_test", "y_test", "train_ids", "test_ids"):
        first, second = getattr(back, name), getattr(clean, name)
        assert first.dtype == second.dtype and torch.equal(first, second), name
    assert all(torch.equal(a, b) for a, b in zip(back.box, clean.box, strict=True))
    for name in ("name", "classes", "feature_names", "image_shape", "preprocessing"):
        assert getattr(back, name) == getattr(clean, name), name
    again = npz_bytes(back)
    path.write_bytes(again)
    assert torch.equal(load_data(f"npz:{path}", images=images).x_train, poisoned)


def test_export_of_regression_and_of_float64(tmp_path):
    source = write(tmp_path, x=RNG.random((40, 2)), y=np.float32([1, 2, 3, 4] * 10))
    clean = load_data(f"npz:{source}")
    path = tmp_path / "b.npz"
    path.write_bytes(npz_bytes(clean, clean.x_train.double() + 1e-3))
    back = load_data(f"npz:{path}")
    assert back.classes is None and torch.equal(back.y_train, clean.y_train)
    assert torch.equal(back.x_train, (clean.x_train.double() + 1e-3).float())
    with pytest.raises(InputRefused, match="PA211"):
        npz_bytes(clean, clean.x_train[:3])
    refused(path, "PA337", "?standardise=true", UsageError)


PREPARED = {
    "x_train": np.full((4, 2), 0.5),
    "y_train": np.array([0, 1, 0, 3]),
    "x_test": np.eye(2),
    "y_test": np.array([0, 1]),
}


def test_prepared_values_without_layout(tmp_path):
    data = load_data(f"npz:{write(tmp_path, **PREPARED, preprocessing=json.dumps({'divide_by': 255}))}")
    assert data.x_train.max() == 0.5 and data.box[1].min() == 1 and data.outputs == 4
    assert data.preprocessing == {"divide_by": 255} and data.y_train.tolist() == [0, 1, 0, 3]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"preprocessing": "{"}, "PA202"),
        ({"preprocessing": "[1]"}, "PA202"),
        ({"preprocessing": "[" * 50_000}, "PA202"),
        ({"preprocessing": np.arange(3)}, "PA202"),
        ({"preprocessing": '{"layout": {"classes": [1, 2]}}'}, "PA202"),
        ({"preprocessing": '{"layout": {"image_shape": [1, -2, -1]}}'}, "PA202"),
        ({"preprocessing": '{"layout": {"image_shape": [1, 3, 3]}}'}, "PA211"),
        ({"preprocessing": '{"layout": {"feature_names": ["a"]}}'}, "PA211"),
        ({"preprocessing": '{"layout": {"classes": ["a", "b"]}}'}, "PA212"),
        ({"lower": np.zeros(3), "upper": np.ones(3)}, "PA211"),
        ({"lower": np.ones(2), "upper": np.zeros(2)}, "PA210"),
        ({"lower": np.zeros(2), "upper": np.full(2, np.nan)}, "PA210"),
        ({"y_train": np.array(["a"] * 4), "y_test": np.array(["a"] * 2)}, "PA212"),
    ],
)
def test_malformed_exports(tmp_path, change, code):
    refused(write(tmp_path, **{**PREPARED, "preprocessing": "{}", **change}), code)


X, Y = np.arange(80.0).reshape(40, 2), LABELS


@pytest.mark.parametrize(
    ("arrays", "code"),
    [
        ({}, "PA205"),
        ({"x": X}, "PA205"),
        ({"X": X, "y": Y}, "PA205"),
        ({"x": X, "y": Y, "x_train": X}, "PA205"),
        ({"x_train": X, "y_train": Y, "x_test": X}, "PA205"),
        ({"x": X, "y": Y[:-1]}, "PA211"),
        ({"x": X[:, 0], "y": Y}, "PA211"),
        ({"x": np.float64(3), "y": Y}, "PA211"),
        ({"x": X[:, :0], "y": Y}, "PA211"),
        ({"x": X[:0], "y": Y[:0]}, "PA21[14]"),
        ({"x": X.reshape(40, 1, 1, 1, 2), "y": Y}, "PA211"),
        ({"x": X.astype(np.int64).reshape(40, 2, 1), "y": Y}, "PA211"),
        ({"x": np.zeros((40, 6, 6, 3), np.uint8), "y": Y}, "PA211 .*transpose"),
        ({"x": X.astype(str), "y": Y}, "PA211"),
        ({"x": X, "y": np.zeros((40, 2), int)}, "PA211"),
        ({"x": X, "y": np.zeros(40, int)}, "PA213"),
        ({"x": np.where(X == 5, np.nan, X), "y": Y}, "PA210 .*row 2"),
        ({"x": np.where(X == 5, -np.inf, X), "y": Y}, "PA210"),
        ({"x": X * 1e300, "y": Y}, "PA210"),
        ({"x": X, "y": np.where(Y == 2, np.nan, Y * 1.0)}, "PA210"),
        ({"x": X * 1j, "y": Y}, "PA203"),
        ({"x": X, "y": Y.astype("datetime64[s]")}, "PA203"),
        ({"x": X, "y": np.array([{}] * 40)}, "PA203"),
        ({"x_train": X, "y_train": Y, "x_test": X[:, :1], "y_test": Y}, "PA211"),
        ({"x_train": X, "y_train": Y, "x_test": X.astype(int), "y_test": Y}, "PA211"),
        ({"x_train": X, "y_train": Y, "x_test": X, "y_test": Y.astype(str)}, "PA211"),
        ({"x_train": X, "y_train": Y, "x_test": X[:0], "y_test": Y[:0]}, "PA211"),
        ({"x_train": X, "y_train": Y[:5], "x_test": X[:5], "y_test": Y}, "PA211"),
        ({"x_train": X, "y_train": Y, "x_test": X, "y_test": Y, "train_ids": Y}, "PA211"),
    ],
)
def test_malformed_contents(tmp_path, arrays, code):
    refused(write(tmp_path, **arrays), code)


def test_damaged_files(tmp_path):
    path = tmp_path / "a.npz"
    refused(path, "PA201")
    refused(tmp_path, "PA201")
    for content in (b"", b"PK\x03\x04", b"not a zip", b"\x93NUMPY"):
        path.write_bytes(content)
        refused(path, "PA202")
    content = write(tmp_path, x=X, y=Y).read_bytes()
    for keep in (10, len(content) // 2, len(content) - 10):
        path.write_bytes(content[:keep])
        refused(path, "PA202")
    path.write_bytes(content.replace(X[7].tobytes(), X[8].tobytes()))  # the checksum tells
    refused(path, "PA202")


class Malicious:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def test_pickles_do_not_run(tmp_path):
    marker = tmp_path / "ran"
    path = write(tmp_path, x=X, y=np.array([Malicious(marker)] * 40, dtype=object))
    assert "run code" in refused(path, "PA203")
    assert not marker.exists()


def rewrite(path, name, data, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for member, content in {**members, name: data}.items():
            archive.writestr(member, content)


def member(shape, values=b"", descr="<f8") -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": False, "shape": shape})
    return buffer.getvalue() + values


@pytest.mark.parametrize("shape", [(10**12, 8), (41, 2), (39, 2), (2**62, 2**62), ()])
def test_declared_sizes_must_be_there(tmp_path, shape):
    path = write(tmp_path, x=X, y=Y)
    rewrite(path, "x.npy", member(shape, X.tobytes()))
    refused(path, "PA202")


@pytest.mark.parametrize(
    "data",
    [b"", b"\x93NUMPY\x03\x00", b"\x93NUMPY\x09\x00" + b"\0" * 50, member((1,))[:30], b"\x93NUMPY\x01\x00\xff\xff"],
)
def test_malformed_members(tmp_path, data):
    path = write(tmp_path, x=X, y=Y)
    rewrite(path, "x.npy", data)
    refused(path, "PA202")


def test_compressed_bombs_are_refused_before_unpacking(tmp_path, monkeypatch):
    path = write(tmp_path, x=X, y=Y)
    bomb = member((80 * 2**17, 1), bytes(80 * 2**20))
    rewrite(path, "x.npy", bomb, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 200_000
    monkeypatch.setattr(np.lib.format, "read_array", pytest.fail)
    assert "-fold" in refused(path, "PA204")


def test_caps(tmp_path, monkeypatch):
    path = write(tmp_path, x=X, y=Y)
    monkeypatch.setattr("poisonaudit.data.archive.MAX_BYTES", 500)
    refused(path, "PA204")
    monkeypatch.undo()
    monkeypatch.setattr("poisonaudit.data.archive.MAX_MEMBERS", 1)
    refused(path, "PA204")


def test_members_of_one_name(tmp_path):
    path = write(tmp_path, x=X, y=Y)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("x", member((1,), bytes(8)))
    refused(path, "PA202")


def test_other_arrays_are_noted(tmp_path):
    data = load_data(f"npz:{write(tmp_path, x=X, y=Y, extra=np.array([{}], dtype=object))}")
    assert any("extra" in note for note in data.notes)


def test_values_that_float32_makes_zero(tmp_path):
    x = RNG.standard_normal((40, 3))
    text = refused(write(tmp_path, x=1e-200 * x, y=LABELS), "PA210")
    assert "90 of 90 training inputs" in text and "float32" in text
    # Zeros are no loss, a few that vanish none that matters, and what stays above the least number is kept.
    few = np.where(np.arange(3) == 1, 1e-200, 1.0) * np.where(x > 0, x, 0.0)
    for values in (few, 1e-30 * x):
        load_data(f"npz:{write(tmp_path, x=values, y=LABELS)}")


def test_options(tmp_path):
    refused(write(tmp_path, x=X, y=Y), "PA301 .*standardise", "?standardize=true", UsageError)
    path = write(tmp_path, x=np.zeros((40, 2, 2), np.uint8), y=Y)
    refused(path, "PA337", "?standardise=true", UsageError)
    with pytest.raises(PoisonAuditError, match="PA215"):
        load_data(f"npz:{write(tmp_path, x=X, y=Y)}", images=True)


def test_names_of_strangers_are_made_printable(tmp_path):
    path = write(tmp_path, **{"\x1b[31m<b>": X, "y": Y})
    assert "\\x1b" in refused(path, "PA205") and "\x1b" not in refused(path, "PA205")
    rewrite(path, "x.npy", member(X.shape, X.tobytes()))
    assert all(note.isprintable() for note in load_data(f"npz:{path}").notes)


def test_empty_float_labels(tmp_path):
    refused(write(tmp_path, x=X[:0], y=Y[:0] * 1.0), "PA214", "?task=classification")
