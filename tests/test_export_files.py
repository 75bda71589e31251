import errno
import os
import stat

import pytest
from _export import contents, mlp, rows

from fused_loss.export import OnnxDualHead, export_onnx, inspect_onnx, verify_onnx
from fused_loss.export.errors import UsageError
from fused_loss.export.files import as_path, needed, replacing


def test_the_file_appears_when_the_block_ends_and_is_hidden_before(tmp_path):
    path = tmp_path / "m.onnx"
    with replacing(path) as temporary:
        temporary.write_bytes(b"new")
        assert not path.exists()
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".onnx"
        assert temporary.name.startswith(".")
    assert contents(tmp_path) == {"m.onnx": b"new"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("old", [{}, {"m.onnx": b"old"}])
def test_after_an_error_the_folder_is_as_it_was(tmp_path, old, error):
    for name, content in old.items():
        (tmp_path / name).write_bytes(content)

    def half() -> None:
        with replacing(tmp_path / "m.onnx") as temporary:
            temporary.write_bytes(b"half of the n")
            raise error

    with pytest.raises(error):
        half()
    assert contents(tmp_path) == old


def test_a_rename_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"old")

    def full(*names):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    said = r"No space left on device: what was there is kept: '.*m\.onnx'"
    with pytest.raises(OSError, match=said), replacing(path) as temporary:
        temporary.write_bytes(b"new")
    assert contents(tmp_path) == {"m.onnx": b"old"}


def test_the_bytes_are_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    order = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append("fsync"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("replace"), replace(a, b)))
    with replacing(tmp_path / "m.onnx") as temporary:
        temporary.write_bytes(b"new")
    assert order == ["fsync", "replace", "fsync"]


def test_a_link_is_followed(tmp_path):
    (tmp_path / "models").mkdir()
    target, link = tmp_path / "models" / "v1.onnx", tmp_path / "latest.onnx"
    target.write_bytes(b"old")
    link.symlink_to(target)
    with replacing(link) as temporary:
        temporary.write_bytes(b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"


def test_permissions_are_those_of_any_other_new_file(tmp_path):
    (tmp_path / "other").write_bytes(b"")
    with replacing(tmp_path / "m.onnx"):
        pass
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("m.onnx", "other")]
    assert modes[0] == modes[1]


def test_a_very_long_name_leaves_room_for_the_temporary_one(tmp_path):
    name = "m" * 250 + ".onnx"
    with replacing(tmp_path / name) as temporary:
        temporary.write_bytes(b"new")
    assert contents(tmp_path) == {name: b"new"}


def test_a_path_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    cases = [
        (tmp_path / "no" / "m.onnx", FileNotFoundError, f"there is no folder {tmp_path / 'no'}"),
        (tmp_path / "folder", IsADirectoryError, "is a folder: give the name of a file in it"),
        (os.devnull, ValueError, f"{os.devnull} is not a regular file"),
    ]
    for path, error, message in cases:
        with pytest.raises(error, match=message), replacing(path):
            pytest.fail("the block must not run")

    def refuse(*args):
        raise PermissionError(errno.EACCES, "Permission denied", args[0])

    monkeypatch.setattr(os, "open", refuse)  # a read-only folder is no obstacle to root
    with pytest.raises(PermissionError) as caught, replacing(tmp_path / "m.onnx"):
        pytest.fail("the block must not run")
    assert str(caught.value) == (
        "[Errno 13] Permission denied: choose a folder that can be written to, or change its "
        f"permissions: '{tmp_path / 'm.onnx'}'"
    )
    assert contents(tmp_path) == {}


def test_what_is_read_is_a_file(tmp_path):
    (tmp_path / "x.csv").touch()
    needed(tmp_path / "x.csv")
    with pytest.raises(UsageError, match=r"there is no file .*no\.csv"):
        needed(tmp_path / "no.csv")
    with pytest.raises(FileNotFoundError, match="is a folder, a file is needed"):
        needed(tmp_path, FileNotFoundError)


@pytest.mark.parametrize(
    "call",
    [
        as_path,
        inspect_onnx,
        OnnxDualHead,
        lambda path: verify_onnx(path, mlp()),
        lambda path: export_onnx(mlp(), rows(), path),
    ],
)
def test_a_path_that_is_none_is_named(call):
    with pytest.raises(TypeError, match=r"^path must be a path such as 'model.onnx', got None$"):
        call(None)
