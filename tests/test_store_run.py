"""Run folders: names, refusal, manifest, reading back."""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import re
import socket
import struct
import subprocess
import sys

import pytest
import torch

from poisonaudit.errors import InputRefused, StorageError, UsageError
from poisonaudit.store import RunFolder, environment, read_tensors, tensors_to_bytes
from poisonaudit.store.atomic import TEMPORARY_SUFFIX
from poisonaudit.store.tensors import read_metadata


def test_default_folder_is_named_after_command_and_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, second = RunFolder.create("audit"), RunFolder.create("audit")
    assert first.path != second.path
    assert re.fullmatch(r"poisonaudit-runs/audit-\d{8}T\d{6}Z-[0-9a-f]{6}", first.path.as_posix())
    assert first.path.is_dir()


def test_out_is_refused_unless_empty_or_resumed(tmp_path):
    out = tmp_path / "deep" / "run"
    RunFolder.create("train", out).write_text("notes.txt", "x")
    with pytest.raises(UsageError, match="PA310 .*notes.txt.*--resume") as caught:
        RunFolder.create("train", out)
    assert caught.value.exit_code == 2
    assert RunFolder.create("train", out, resume=True).exists("notes.txt")
    with pytest.raises(UsageError, match="PA312"):
        RunFolder.create("train", resume=True)


def test_out_in_place_of_a_file_is_a_storage_error(tmp_path):
    (tmp_path / "f").write_text("")
    with pytest.raises(StorageError, match="PA502") as caught:
        RunFolder.create("audit", tmp_path / "f")
    assert caught.value.exit_code == 5


def test_resume_keeps_the_start_clears_leftovers_and_checks_the_command(tmp_path):
    run = RunFolder.create("attack", tmp_path)
    run.write_manifest("attack", {}, {}, 0)
    (tmp_path / f".a.123{TEMPORARY_SUFFIX}").write_text("half")
    again = RunFolder.create("attack", tmp_path, resume=True)
    assert again.created == run.created
    assert os.listdir(tmp_path) == ["manifest.json"]
    with pytest.raises(UsageError, match="PA311"):
        RunFolder.create("audit", tmp_path, resume=True)


def test_manifest_lists_inputs_environment_and_digests(tmp_path):
    run = RunFolder.create("audit", tmp_path)
    run.write_json("audit.json", {"value": float("inf")})
    run.write_bytes("pictures/one.bin", b"abc")
    (tmp_path / f".x{TEMPORARY_SUFFIX}").write_text("")
    (tmp_path / "link").symlink_to("audit.json")
    run.write_manifest("audit", {"model": "linear"}, {"digits": "00"}, 7, {"note": "n", "seed": "ignored"})
    body = json.loads((tmp_path / "manifest.json").read_text())
    assert body["schema"] == "poisonaudit/run/1"
    assert (body["command"], body["seed"], body["note"]) == ("audit", 7, "n")
    assert body["arguments"] == {"model": "linear"} and body["inputs"] == {"digits": "00"}
    assert body["created"] <= body["finished"] and body["created"].endswith("Z")
    assert set(body["files"]) == {"audit.json", "pictures/one.bin"}
    assert body["files"]["pictures/one.bin"] == hashlib.sha256(b"abc").hexdigest()
    assert RunFolder.open(tmp_path).manifest() == body
    assert RunFolder.open(tmp_path).created == body["created"]


def test_read_back(tmp_path):
    run = RunFolder.create("audit", tmp_path)
    run.write_json("a.json", {"x": [1, float("nan")]})
    assert run.read_json("a.json") == {"x": [1, None]}
    values = {"rows": torch.tensor([3, 1]), "delta": torch.rand(2, 3, dtype=torch.float64).T, "none": torch.empty(0, 2)}
    run.write_tensors("p.safetensors", values, {"norm": "linf", "radius": 0.1})
    back = run.read_tensors("p.safetensors")
    assert back.keys() == values.keys()
    for name, value in values.items():
        assert back[name].dtype == value.dtype and torch.equal(back[name], value)
    assert run.read_metadata("p.safetensors") == {"norm": "linf", "radius": 0.1}


@pytest.mark.parametrize("content", [b"", b"{", b"[NaN]", b"\xff\xfe", b"[" * 100_000])
def test_damaged_json(tmp_path, content):
    run = RunFolder.create("audit", tmp_path)
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(StorageError, match="PA505"):
        run.read_json("a.json")


@pytest.mark.parametrize("content", [b"[]", b'{"schema": "other/1"}', b"5"])
def test_foreign_manifest(tmp_path, content):
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(StorageError, match="PA505"):
        RunFolder.open(tmp_path)
    with pytest.raises(StorageError, match="PA505"):
        RunFolder.create("audit", tmp_path, resume=True)


def test_missing_files(tmp_path):
    run = RunFolder.create("audit", tmp_path)
    for read in (run.read_json, run.read_tensors):
        with pytest.raises(StorageError, match="PA504"):
            read("none")
    with pytest.raises(StorageError, match="PA504"):
        RunFolder.open(tmp_path)


@pytest.mark.parametrize("name", ["", "../a", "/etc/x", "a/../../b", "a\\b", "a\0b"])
def test_names_stay_inside_the_run(tmp_path, name):
    run = RunFolder.create("audit", tmp_path)
    with pytest.raises(UsageError, match="PA313"):
        run.write_text(name, "x")
    assert os.listdir(tmp_path) == []


def test_equal_tensors_have_equal_bytes():
    values = {"b": torch.zeros(2), "a": torch.ones(3)}
    metadata = {f"k{i}": i for i in range(8)}
    backwards = dict(reversed(metadata.items()))
    assert tensors_to_bytes(values, metadata) == tensors_to_bytes(values, backwards)


def test_shared_memory_and_foreign_damage(tmp_path):
    base = torch.arange(6.0)
    (tmp_path / "a.safetensors").write_bytes(tensors_to_bytes({"a": base, "b": base[2:]}))
    assert torch.equal(read_tensors(tmp_path / "a.safetensors")["b"], base[2:])
    (tmp_path / "a.safetensors").write_bytes(b"\x00" * 4)
    with pytest.raises(InputRefused, match="PA103"):
        read_tensors(tmp_path / "a.safetensors")


def test_values_changed_after_they_were_written_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    content = tensors_to_bytes({"a": torch.ones(3), "b": torch.zeros(0, 2), "c": torch.tensor(2)}, {"kept": 1})
    path.write_bytes(content)
    assert torch.equal(read_tensors(path)["a"], torch.ones(3)) and read_metadata(path) == {"kept": 1}
    path.write_bytes(content.replace(struct.pack("<f", 1.0), struct.pack("<f", 2.0), 1))
    with pytest.raises(InputRefused, match="PA103 .*changed after it was written"):
        read_tensors(path)


def test_environment_names_versions_and_threads_but_no_person_or_machine():
    found = environment()
    assert found["torch"] == torch.__version__ and found["threads"] == torch.get_num_threads()
    assert {"poisonaudit", "python", "packages", "device", "platform"} <= found.keys()
    text = json.dumps(found, allow_nan=False)
    for private in (socket.gethostname(), getpass.getuser(), os.path.expanduser("~"), os.getcwd()):
        assert not re.search(rf"(?<!\w){re.escape(private)}(?!\w)", text)


def test_importing_the_store_does_not_import_torch():
    code = "import sys, poisonaudit.store; raise SystemExit('torch' in sys.modules or 'pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
