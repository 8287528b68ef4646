"""Picture folders: lossless, inside the budget after rounding, read back as written, or refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from poisonaudit.attack import Budget
from poisonaudit.data import DataSet, eight_bits, load_data, refuse_folder_export, write_folder
from poisonaudit.data.export_folder import folder_names
from poisonaudit.errors import StorageError, UsageError
from poisonaudit.store import RunFolder
from poisonaudit.store.atomic import TEMPORARY_SUFFIX

TINY = 1e-7  # float32 in pixel units


def pictures(channels: int = 1, grid: bool = True, seed: int = 0) -> DataSet:
    """30 training and 9 test pictures of three classes, on the 8-bit grid or beside it."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(39, channels, 5, 4, generator=generator, dtype=torch.float64)
    x = ((255 * x).round() / 255 if grid else x).float()
    y = torch.arange(39) % 3
    box = (torch.zeros(channels, 5, 4), torch.ones(channels, 5, 4))
    return DataSet(
        name="made",
        spec="npz:made.npz",
        x_train=x[:30],
        y_train=y[:30],
        x_test=x[30:],
        y_test=y[30:],
        train_ids=torch.randperm(39, generator=generator)[:30],
        test_ids=torch.arange(100, 109),
        classes=("cat", "dog", "newt"),
        feature_names=(),
        box=box,
        image_shape=(channels, 5, 4),
    )


def by_id(data: DataSet) -> torch.Tensor:
    """Training rows in the order in which a folder is read: by class, then by id."""
    return torch.tensor(sorted(range(len(data.x_train)), key=lambda i: (int(data.y_train[i]), int(data.train_ids[i]))))


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_on_the_grid_come_back_bit_for_bit(tmp_path, channels):
    data = pictures(channels)
    written = write_folder(tmp_path / "out", data)
    again = load_data(f"folder:{tmp_path / 'out'}", images=True)
    assert torch.equal(again.x_train, data.x_train[by_id(data)]) and again.classes == data.classes
    assert again.y_train.tolist() == data.y_train[by_id(data)].tolist() and torch.equal(
        again.x_test, data.x_test[data.y_test.argsort(stable=True)]
    )
    assert written.clean_rounding < TINY and not written.perturbation.any()
    names = sorted(path.name for path in (tmp_path / "out" / "train" / "dog").iterdir())
    assert names == sorted(f"{row:02d}.png" for row in data.train_ids[data.y_train == 1].tolist())
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with Image.open(tmp_path / "out" / "test" / "newt" / "102.png") as picture:
        assert picture.mode == ("L" if channels == 1 else "RGB") and picture.size == (4, 5)


@pytest.mark.parametrize("grid", [True, False], ids=["grid", "beside"])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_rounded_poison_stays_inside_budget_and_box(tmp_path, norm, grid):
    data = pictures(grid=grid, seed=1)
    clean = data.x_train.double()
    given = {"linf": 7.3 / 255, "l2": 0.11, "l1": 0.3, "l0": 0.2}[norm]
    budget = Budget(radius=given, rows=30, norm=norm, box=(0.02, 0.97), entries=4 if norm == "l0" else None)
    allowed = budget.around(clean)
    wish = torch.randn(clean.shape, generator=torch.Generator().manual_seed(2)).double() * 0.05
    delta = allowed.project(wish)
    limits = allowed.limits() if norm in ("linf", "l0") else None
    written = write_folder(tmp_path / "out", data, clean + delta, limits)
    again = load_data(f"folder:{tmp_path / 'out'}", images=True).x_train.double()
    back = torch.empty_like(again)
    back[by_id(data)] = again
    base = (255 * clean).round() / 255
    assert torch.allclose(back, written.x_train, atol=TINY) and torch.allclose(
        back - base, written.perturbation, atol=TINY
    )
    # Against the clean picture of the same export, and against the unrounded one wherever the poison moved a value.
    assert float(budget.around(base).used(written.perturbation)) <= 1 + 1e-6
    moved = written.perturbation != 0
    assert allowed.violation(torch.where(moved, back - clean, 0.0)) <= 2 * TINY
    # Clean values outside the box may only come nearer, which is in `allowed`.
    inside = moved & (clean >= 0.02) & (clean <= 0.97)
    assert bool(((back >= 0.02 - TINY) & (back <= 0.97 + TINY))[inside].all())
    assert not bool(moved[delta == 0].any())
    assert bool(moved.any()) and float((written.perturbation - delta).abs().max()) <= 2.01 / 255
    # Nothing but rounding: where a move is worth a step and a half, one is left.
    assert bool(moved[delta.abs() > (2.01 if not grid else 1.01) / 255].all())


def test_whole_steps_of_a_whole_radius_survive_rounding():
    clean = ((255 * torch.rand(500, dtype=torch.float64)).round() / 255).float().double()
    signs = torch.randn(500).sign().double()
    wanted = (clean + signs * 24 / 255).clamp(0, 1)
    assert torch.equal(eight_bits(clean, wanted).double(), (255 * wanted).round())
    # In float32 too, where 24/255 is no longer exact.
    assert torch.equal(eight_bits(clean.float(), wanted.float()), eight_bits(clean, wanted))


def test_values_are_rounded_towards_the_clean_one_only_where_the_budget_asks_for_it():
    clean, poisoned = torch.tensor([100.0, 100, 100, 100]) / 255, torch.tensor([103.6, 96.4, 100.4, 103.4]) / 255
    assert eight_bits(clean, poisoned).tolist() == [103, 97, 100, 103]
    reach = torch.full((4,), 4 / 255)
    assert eight_bits(clean, poisoned, (-reach, reach)).tolist() == [104, 96, 100, 103]


def test_digits_come_back_to_half_a_step(tmp_path):
    data = load_data("digits", limit=60)
    written = write_folder(tmp_path / "out", data)
    again = load_data(f"folder:{tmp_path / 'out'}")
    assert again.input_shape == (64,) and again.classes == data.classes
    assert float((again.x_train - data.x_train[by_id(data)]).abs().max()) <= 0.5 / 255 + TINY
    assert 0 < written.clean_rounding <= 0.5 / 255 + TINY


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (("cat", "dog"), ("cat", "dog")),
        (("dog", "cat"), ("0-dog", "1-cat")),
        (("../up", "a/b"), ("0-___up", "1-a_b")),
        (("A", "a"), ("0-A", "1-a")),
        (("", "x"), ("0-", "1-x")),
        (tuple(map(str, range(11))), tuple(f"{n:02d}-{n}" for n in range(11))),
    ],
)
def test_class_folders_keep_the_order_of_the_classes(tmp_path, classes, expected):
    assert folder_names(classes) == expected == tuple(sorted(expected))
    data = pictures()
    data = replace(data, classes=classes, y_train=data.y_train % len(classes), y_test=data.y_test % len(classes))
    write_folder(tmp_path / "in" / "out", data)
    again = load_data(f"folder:{tmp_path / 'in' / 'out'}", images=True)
    assert again.y_train.tolist() == data.y_train[by_id(data)].tolist()
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["out"]


def test_a_class_without_rows_keeps_its_number(tmp_path):
    data = pictures()
    label = torch.where(data.y_train == 0, 1, data.y_train)
    data = replace(data, y_train=label, y_test=torch.where(data.y_test == 0, 1, data.y_test))
    write_folder(tmp_path / "out", data)
    assert sorted(set(load_data(f"folder:{tmp_path / 'out'}", images=True).y_train.tolist())) == [1, 2]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (load_data("wine"), "is a table"),
        (replace(pictures(), classes=None), "has no classes"),
        (replace(pictures(), image_shape=(4, 5, 1)), "4 channels"),
        (replace(pictures(), x_test=pictures().x_test - 0.1), "outside [0, 1]"),
    ],
    ids=["table", "regression", "channels", "range"],
)
def test_what_is_no_picture_in_a_class_is_refused_in_one_line(tmp_path, data, reason):
    for attempt in (lambda: refuse_folder_export(data), lambda: write_folder(tmp_path / "out", data)):
        with pytest.raises(UsageError, match="PA348") as refused:
            attempt()
        assert reason in str(refused.value) and len(str(refused.value).splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_nothing_is_left_of_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match="PA310"):
        write_folder(tmp_path / "out", pictures())

    def full(*args: object, **given: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(StorageError, match="PA503.*No space left"):
        write_folder(tmp_path / "other", pictures())
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_rounding_of_random_values_holds_its_promise():
    generator = np.random.default_rng(0)
    clean = torch.tensor(generator.random(20_000))
    poisoned = (clean + torch.tensor(generator.normal(0, 0.01, 20_000))).clamp(0, 1)
    written = eight_bits(clean, poisoned).double() / 255
    base = (255 * clean).round() / 255
    moved = written != base
    move = (poisoned - clean).abs()
    for reference in (clean, base):
        assert bool(((written - reference).abs() <= move + TINY)[moved].all())
        assert bool((((written - reference) * (poisoned - clean)) >= 0)[moved].all())


def test_what_a_killed_export_left_behind_goes_when_the_run_is_resumed(tmp_path):
    left = tmp_path / "run" / f".poisoned.0123{TEMPORARY_SUFFIX}"
    (left / "train" / "cat").mkdir(parents=True)
    (left / "train" / "cat" / "1.png").write_bytes(b"half")
    RunFolder.create("attack", tmp_path / "run", resume=True)
    assert not left.exists()
