"""Bundled data: scaling, split, limit, box and provenance, against scikit-learn's own functions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn import datasets
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from poisonaudit.data import DATA, Source, load_data
from poisonaudit.errors import InputRefused, UsageError

TABLES = {"wine": datasets.load_wine, "breast_cancer": datasets.load_breast_cancer}


@pytest.mark.parametrize("split", [0, 3])
def test_digits(split):
    bunch = datasets.load_digits()
    data = load_data(f"digits?split={split}")
    x_train, x_test, y_train, y_test, ids, test_ids = train_test_split(
        bunch.data / 16, bunch.target, np.arange(1797), test_size=0.25, random_state=split, stratify=bunch.target
    )
    assert np.array_equal(data.x_train.numpy(), x_train.astype(np.float32))
    assert np.array_equal(data.x_test.numpy(), x_test.astype(np.float32))
    assert np.array_equal(data.y_train.numpy(), y_train) and np.array_equal(data.y_test.numpy(), y_test)
    assert np.array_equal(data.train_ids.numpy(), ids) and np.array_equal(data.test_ids.numpy(), test_ids)
    assert data.x_train.dtype == torch.float32 and data.y_train.dtype == data.train_ids.dtype == torch.int64
    assert (data.outputs, data.input_shape, data.image_shape) == (10, (64,), (1, 8, 8))
    assert data.preprocessing == {"divide_by": 16} and data.classes == tuple("0123456789")
    assert torch.equal(data.box[0], torch.zeros(64)) and torch.equal(data.box[1], torch.ones(64))
    assert len(data.feature_names) == 64 and len(data.sources["digits"]) == 64


def test_digits_as_pictures():
    flat, pictures = load_data("digits", limit=20), load_data("digits", limit=20, images=True)
    assert pictures.x_train.shape == (20, 1, 8, 8) and pictures.box[1].shape == (1, 8, 8)
    assert torch.equal(pictures.x_train.flatten(1), flat.x_train)
    raw = datasets.load_digits().images[int(pictures.train_ids[3])]
    assert np.array_equal(pictures.x_train[3, 0].numpy() * 16, raw)


def test_digits_resized():
    data = load_data("digits?size=32", images=True, limit=5)
    assert data.x_train.shape == (5, 1, 32, 32) and data.image_shape == (1, 32, 32)
    assert 0 <= data.x_train.min() and data.x_train.max() <= 1
    small = load_data("digits", images=True, limit=5)
    # a fourfold bilinear enlargement keeps the mean of a picture whose border is black, up to clamping at the edge
    assert torch.allclose(data.x_train[:, :, 4:-4, 4:-4].mean(), small.x_train[:, :, 1:-1, 1:-1].mean(), atol=0.03)
    assert load_data("digits?size=32", limit=5).feature_names[-1] == "pixel_31_31"
    assert data.preprocessing["resize"]["to"] == 32


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_standardised_by_their_training_rows(name):
    bunch = TABLES[name]()
    data = load_data(name)
    x_train, x_test = train_test_split(bunch.data, test_size=0.25, random_state=0, stratify=bunch.target)
    scaler = StandardScaler().fit(x_train)
    assert np.allclose(data.x_train.numpy(), scaler.transform(x_train), atol=1e-5)
    assert np.allclose(data.x_test.numpy(), scaler.transform(x_test), atol=1e-5)
    assert np.allclose(data.preprocessing["mean"], scaler.mean_)
    assert np.allclose(data.preprocessing["deviation"], scaler.scale_)
    assert torch.equal(data.box[0], data.x_train.min(0).values)
    assert torch.equal(data.box[1], data.x_train.max(0).values)
    assert data.image_shape is None and data.outputs == len(bunch.target_names)
    assert data.feature_names == tuple(bunch.feature_names)
    raw = load_data(f"{name}?standardise=false")
    assert np.array_equal(raw.x_train.numpy(), x_train.astype(np.float32)) and raw.preprocessing == {}


def test_split_is_stratified():
    data = load_data("breast_cancer?split=9")
    assert data.y_train.double().mean().item() == pytest.approx(data.y_test.double().mean().item(), abs=0.01)
    assert set(data.train_ids.tolist()).isdisjoint(data.test_ids.tolist())
    assert len(data.train_ids) + len(data.test_ids) == 569


def test_limit_keeps_the_first_rows_and_the_units():
    whole, part = load_data("wine"), load_data("wine", limit=40)
    assert torch.equal(part.x_train, whole.x_train[:40]) and torch.equal(part.train_ids, whole.train_ids[:40])
    assert torch.equal(part.x_test, whole.x_test) and part.preprocessing == whole.preprocessing
    assert torch.equal(part.box[1], whole.x_train[:40].max(0).values)
    assert len(load_data("wine", limit=133).x_train) == 133


@pytest.mark.parametrize("limit", [-1, 0, 1, 134, 10**9])
def test_limit_out_of_range(limit):
    with pytest.raises(UsageError, match="PA333 .*133"):
        load_data("wine", limit=limit)


def test_limit_to_one_class(monkeypatch):
    x = np.arange(40.0)[:, None]
    parts = (np.arange(30), np.arange(30, 40))
    labels = np.array([0] * 20 + [1] * 20)
    monkeypatch.setitem(DATA, "mine", lambda spec: Source("mine", x, labels, ("a", "b"), parts=parts))
    assert load_data("mine").y_train.sum() == 10
    with pytest.raises(InputRefused, match="PA213 .*'a'"):
        load_data("mine", limit=20)


def test_dtype_conversion():
    data = load_data("digits", limit=5)
    wide = data.to(torch.float64)
    assert {wide.x_train.dtype, wide.x_test.dtype, wide.box[0].dtype, wide.box[1].dtype} == {torch.float64}
    assert wide.y_train.dtype == torch.int64 and torch.equal(wide.x_train.float(), data.x_train)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("digit", "PA301 .*'digits'"),
        ("breast-cancer", "PA301 .*'breast_cancer'"),
        ("digits?siez=3", "PA301 .*'size'"),
        ("wine?standardize=false", "PA301 .*'standardise'"),
        ("wine?standardise=no", "PA301"),
        ("digits?size=2", "PA335"),
        ("digits?size=99999", "PA335"),
        ("digits?size=big", "PA303"),
        ("digits?split=-1", "PA332"),
        ("digits?split=9999999999", "PA332"),
        ("digits:file", "PA334"),
        ("wine:file", "PA334"),
        ("digits?size", "PA302"),
        ("", "PA302"),
    ],
)
def test_bad_names_and_options(spec, words):
    with pytest.raises(UsageError, match=words) as caught:
        load_data(spec)
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)


def test_tables_are_no_pictures():
    with pytest.raises(InputRefused, match="PA215"):
        load_data("wine", images=True)


def test_notes(monkeypatch):
    x = np.array([[0.0, 1.0], [2.0, 3.0], [-0.0, 1.0], [2.0, 3.0], [5.0, 5.0], [0.0, 1.0], [7.0, 7.0]])
    y = np.array([0, 1, 0, 0, 1, 0, 2])
    parts = (np.arange(5), np.arange(5, 7))
    source = Source("mine", x, y, ("a", "b", "c"), parts=parts, ids=np.arange(10, 17))
    monkeypatch.setitem(DATA, "mine", lambda spec: source)
    notes = " | ".join(load_data("mine").notes)
    assert "2 training rows repeat another (ids 10 and 12 the first)" in notes
    assert "1 repeated training row has another label than the copy (ids 11 and 13" in notes
    assert "1 of 2 test rows are also training rows" in notes
    assert "1 of 3 classes have no training row: c" in notes


def test_constant_columns_are_only_centred(monkeypatch):
    x = np.array([[0.1, 1.0], [0.1, 2.0], [0.1, 3.0], [0.1, 5.0]] * 5)
    source = Source("mine", x, np.array([0, 1] * 10), ("a", "b"), standardise=True)
    monkeypatch.setitem(DATA, "mine", lambda spec: source)
    data = load_data("mine")
    assert torch.equal(data.x_train[:, 0], torch.zeros(15)) and data.preprocessing["deviation"][0] == 1.0
    assert any("1 column is constant" in note for note in data.notes)


@pytest.mark.parametrize(
    ("x", "y", "classes", "code"),
    [
        (np.zeros((4, 0)), [0, 1, 0, 1], 2, "PA211"),
        (np.zeros(4), [0, 1, 0, 1], 2, "PA211"),
        (np.eye(4), [0, 1, 0], 2, "PA211"),
        (np.zeros((0, 3)), [], 2, "PA214"),
        (np.zeros((1, 3)), [0], 2, "PA214"),
        (np.eye(4), [0, 1, 0, 2], 2, "PA212"),
        (np.eye(4), [0, 1, 0, -1], 2, "PA212"),
        (np.eye(4), [0, 0, 0, 0], 2, "PA213"),
        (np.eye(4), [0, 1, 1, 1], 2, "PA214"),
        (np.eye(4) * np.nan, [0, 1, 0, 1], 2, "PA210"),
        (np.eye(8) * 1e300, [0, 1] * 4, 2, "PA210"),
        (np.eye(4), [[0.0], [1.0], [np.inf], [2.0]], None, "PA210"),
    ],
)
def test_what_third_party_loaders_may_not_return(monkeypatch, x, y, classes, code):
    names = None if classes is None else tuple("abcdef"[:classes])
    monkeypatch.setitem(DATA, "mine", lambda spec: Source("mine", x, np.array(y), names))
    with pytest.raises(InputRefused, match=code) as caught:
        load_data("mine")
    assert caught.value.exit_code == 3
