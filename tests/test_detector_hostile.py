"""Hostile and broken weight files: none of their code runs, and every fault is one clear sentence."""

import io
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from factory.detector.pickles import ForbiddenPickleError, read_arrays
from factory.detector.weights import read_state
from factory.errors import UserError
from tests.support.harmful_pickle import HarmfulPickle
from tests.support.messages import assert_one_sentence


def arrays() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "weight": random.normal(size=(3, 2)).astype("float32"),
        "fortran": np.asfortranarray(random.normal(size=(4, 3))),
        "big": np.arange(6, dtype=">i4").reshape(2, 3),
        "half": np.ones((2, 2), np.float16),
        "none": np.zeros((0, 4), np.float32),
        "flag": np.array([True, False]),
        "scalar": np.float32(7.5),
        "count": np.array(3, np.int64),
    }


# --- pickles


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_survive_pickling(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"model": OrderedDict(arrays()), "__author__": "x", "n": [1, (2, None)]}, protocol))
    found = read_arrays(path)
    assert found["__author__"] == "x"
    assert found["n"] == [1, (2, None)]
    for name, array in arrays().items():
        assert np.array_equal(found["model"][name], array)
        assert np.asarray(found["model"][name]).dtype == array.dtype


def test_a_pickle_of_python_2_is_read(tmp_path: Path) -> None:
    """The arrays' content is text, and the module names are those of old NumPy."""
    text = b"".join(
        [
            b"(dp0\nS'blobs'\np1\n(dp2\nS'conv_w'\np3\n",
            b"cnumpy.core.multiarray\n_reconstruct\np4\n(cnumpy\nndarray\np5\n(I0\ntp6\nS'b'\np7\ntp8\nRp9\n",
            b"(I1\n(I2\ntp10\ncnumpy\ndtype\np11\n(S'f4'\np12\nI0\nI1\ntp13\nRp14\n",
            b"(I3\nS'<'\np15\nNNNI-1\nI-1\nI0\ntp16\nbI00\nS'\\x00\\x00\\x80?\\x00\\x00\\x00@'\np17\ntp18\nbs",
            b"S'conv_w_momentum'\np19\ng9\nss.",
        ]
    )
    path = tmp_path / "old.pkl"
    path.write_bytes(text)
    assert read_arrays(path)["blobs"]["conv_w"].tolist() == [1.0, 2.0]
    state, writer = read_state(path, "it")
    assert (list(state), writer) == (["conv_w"], "caffe2")


def _pickles(mark: Path) -> dict[str, bytes]:
    """Hostile and broken pickles by kind."""
    whole = pickle.dumps(arrays())
    return {
        "code": pickle.dumps({"model": {"a": HarmfulPickle(mark)}, "__author__": "x"}),
        "code in protocol 0": b"cos\nsystem\n(S'touch " + str(mark).encode() + b"'\ntR.",
        "an instance": b"(S'touch " + str(mark).encode() + b"'\nios\nsystem\n.",
        "a name by the stack": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x05touch\x85R.",
        "numpy's own loader": b"cnumpy\nload\n(S'x.npy'\ntR.",
        "objects in an array": pickle.dumps({"a": np.array([HarmfulPickle(mark)], object)}),
        "a structured array": pickle.dumps({"a": np.zeros(2, [("x", "f4")])}),
        "a set of attributes": b"\x80\x02ccollections\nOrderedDict\n)R}(X\x01\x00\x00\x00ab\x85b.",
        "half of it": whole[: len(whole) // 2],
        "nothing": b"\x80\x04.",
        "a page": b"<html>404 not found</html>",
        "a memo of 2 GiB": b"\x80\x02}r\xff\xff\xff\x7f(X\x01\x00\x00\x00aNu" + b"h",
        "a length of 1 TiB": b"\x80\x05\x96" + (1 << 40).to_bytes(8, "little") + b"abc.",
        "no dictionary": pickle.dumps([1, 2]),
        "a persistent name": b"\x80\x02X\x01\x00\x00\x00aQ.",
    }


@pytest.mark.parametrize("which", _pickles(Path("mark")))
def test_a_hostile_or_broken_pickle_is_refused_without_running_code(tmp_path: Path, which: str) -> None:
    mark, path = tmp_path / "it-ran", tmp_path / "weights.pkl"
    path.write_bytes(_pickles(mark)[which])
    with pytest.raises(ForbiddenPickleError):
        read_arrays(path)
    with pytest.raises(UserError, match="the file cannot be used") as raised:
        read_state(path, "the file")
    assert_one_sentence(raised.value)
    assert not mark.exists()


def test_shared_content_cannot_fill_the_memory(tmp_path: Path) -> None:
    """100 arrays share their content, so they take 100 times the file's size."""
    stream = io.BytesIO()
    row = np.zeros(10_000, np.float32)
    reduced = row.__reduce__()

    class Shared:
        def __reduce__(self) -> tuple[Any, ...]:
            return reduced

    pickle.dump({f"a{k}": Shared() for k in range(100)}, stream)
    (tmp_path / "a.pkl").write_bytes(stream.getvalue())
    assert len(stream.getvalue()) < 60_000
    with pytest.raises(ForbiddenPickleError, match="larger than the file"):
        read_arrays(tmp_path / "a.pkl")


def test_an_array_of_another_size_than_its_content_is_refused(tmp_path: Path) -> None:
    content = bytearray(pickle.dumps({"a": np.zeros((3, 5), np.float32)}, 2))
    (position,) = [at for op, arg, at in pickletools.genops(bytes(content)) if op.name == "BININT1" and arg == 5]
    content[position + 1] = 200
    (tmp_path / "a.pkl").write_bytes(bytes(content))
    with pytest.raises(ForbiddenPickleError, match="size differs from that of its content"):
        read_arrays(tmp_path / "a.pkl")


# --- torch files


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


def _torch_files(mark: Path) -> dict[str, bytes]:
    def saved(content: Any) -> bytes:
        stream = io.BytesIO()
        torch.save(content, stream)
        return stream.getvalue()

    def zipped(content: bytes) -> bytes:
        stream = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as new:
            for member in old.infolist():
                new.writestr(member.filename, old.read(member))
        return stream.getvalue()

    whole = saved(network().state_dict())
    return {
        "code": saved({"model": HarmfulPickle(mark)}),
        "a whole network": saved(network()),
        "half of it": whole[: len(whole) // 2],
        "a page": b"<html>404 not found</html>",
        "compressed members": zipped(saved({"a": torch.zeros(1 << 20)})),
        "no tensors": saved({"model": {"epoch": 3}}),
        "no dictionary": saved([torch.zeros(2)]),
        "a sparse tensor": saved({"a": torch.zeros(3, 3).to_sparse()}),
    }


@pytest.mark.parametrize("which", _torch_files(Path("mark")))
def test_a_hostile_or_broken_torch_file_is_refused_without_running_code(tmp_path: Path, which: str) -> None:
    mark, path = tmp_path / "it-ran", tmp_path / "weights.pth"
    path.write_bytes(_torch_files(mark)[which])
    with pytest.raises(UserError, match="the file cannot be used") as raised:
        read_state(path, "the file")
    assert_one_sentence(raised.value)
    assert not mark.exists()
