"""The reader of pickles: real files give their values, hostile ones a named error, and nothing in any of them runs."""

import argparse
import builtins
import collections
import enum
import functools
import gzip
import importlib
import io
import os
import pickle
import pickletools
import random
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from unitkit.pickled import PickledError, Record, read_pickled

torch.set_num_threads(1)
joblib = pytest.importorskip("joblib")
cluster = pytest.importorskip("sklearn.cluster")

FRAMES = np.random.default_rng(0).standard_normal((80, 5)).astype(np.float32)
WRITERS: dict[str, Callable[[Any, Path], None]] = {
    **{f"pickle {n}": functools.partial(lambda n, value, path: path.write_bytes(pickle.dumps(value, n)), n)
       for n in range(6)},
    **{f"joblib {c}": functools.partial(lambda c, value, path: joblib.dump(value, path, compress=c), c)
       for c in (0, 3, ("gzip", 3), ("bz2", 3), ("xz", 3), ("lzma", 3))},
    "joblib protocol 2": lambda value, path: joblib.dump(value, path, protocol=2),
    "torch": lambda value, path: torch.save(value, path),
    "torch before 1.6": lambda value, path: torch.save(value, path, _use_new_zipfile_serialization=False),
}  # fmt: skip


class Colour(enum.Enum):
    RED = 1


def same(ours: Any, theirs: Any) -> bool:
    """Equal in value and type, arrays and nesting included; tensors count as arrays."""
    if isinstance(theirs, torch.Tensor):
        theirs = (theirs.float() if theirs.dtype == torch.bfloat16 else theirs).detach().numpy()
    if isinstance(theirs, np.ndarray):
        if theirs.dtype == object:
            return ours.dtype == object and ours.shape == theirs.shape and ours.tolist() == theirs.tolist()
        kinds = [one.dtype.newbyteorder("=") for one in (ours, theirs)]  # NumPy's own pickles lose the byte order
        return ours.shape == theirs.shape and kinds[0] == kinds[1] and np.array_equal(ours, theirs)
    if isinstance(theirs, dict):
        return list(ours) == list(theirs) and all(same(ours[key], theirs[key]) for key in theirs)
    if isinstance(theirs, list | tuple):
        return type(ours) is type(theirs) and len(ours) == len(theirs) and all(map(same, ours, theirs))
    return type(ours) is type(theirs) and bool(ours == theirs)


PLAIN = {
    "array": FRAMES,
    "transposed": FRAMES.T,
    "strided": FRAMES[::3, ::2],
    "big-endian": FRAMES.astype(">f8"),
    "whole": np.arange(6).reshape(1, 2, 3),
    "text": np.array(["a", "bcd"]),
    "bytes": np.array([b"a", b"bcd"]),
    "flags": np.array([True, False]),
    "objects": np.array([["a", None], [1.5, (2,)]], dtype=object),
    "none": np.zeros((0, 3), np.float32),
    "scalar array": np.array(3.5),
    "numbers": [np.float32(2.5), np.int64(-3), np.bool_(True), 1, -(2**80), 2.5, 1e300, True, None, 3 + 2j],
    "strings": ("", "ü\n☃", b"", b"\x00\xff", bytearray(b"x\x80")),
    "sets": [{1, "a"}, frozenset({2}), set()],
    "nested": {"a": [{"b": ({},)}], 3: [], ("k", 1): 1},
}


@pytest.mark.parametrize("writer", WRITERS)
def test_data_comes_back_as_it_was(writer: str, tmp_path: Path) -> None:
    path = tmp_path / "data"
    WRITERS[writer](PLAIN, path)
    found = read_pickled(path)
    for key, value in PLAIN.items():
        assert same(found[key], value), key
    assert list(found) == list(PLAIN)


def test_shared_and_circular_values_stay_so(tmp_path: Path) -> None:
    inner: list[Any] = [1]
    value = {"a": inner, "b": inner, "arrays": [FRAMES, FRAMES]}
    inner.append(inner)
    for protocol in range(6):
        (tmp_path / "p").write_bytes(pickle.dumps(value, protocol))
        found = read_pickled(tmp_path / "p")
        assert found["a"] is found["b"] and found["a"][1] is found["a"]
        assert found["arrays"][0] is found["arrays"][1]


@pytest.mark.parametrize("new", [True, False])
def test_tensors_of_every_layout(new: bool, tmp_path: Path) -> None:
    base = torch.randn(4, 6)
    value = {
        "plain": base,
        "view": base[1:3, ::2],
        "transposed": base.T,
        "expanded": torch.randn(1, 3).expand(5, 3),
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "bfloat16": torch.randn(7).bfloat16(),
        "half": torch.randn(7).half(),
        "kinds": [torch.tensor([1, 0]).to(kind) for kind in (torch.bool, torch.uint8, torch.int64, torch.float64)],
        "newer kind": torch.ones(3, dtype=torch.uint16),
        "number": torch.tensor(2.5),
        "none": torch.zeros(0, 3),
        "module": torch.nn.Conv1d(2, 3, 2).state_dict(),
        "counts": collections.Counter("aab"),
        "size": torch.Size([2, 3]),
    }
    torch.save(value, tmp_path / "t.pt", _use_new_zipfile_serialization=new)
    found = read_pickled(tmp_path / "t.pt")
    for key, tensor in value.items():
        expected = dict(tensor) if isinstance(tensor, dict) else tuple(tensor) if key == "size" else tensor
        assert same(found[key], expected), key


def test_scikit_learns_models_are_records(tmp_path: Path) -> None:
    for kind in (cluster.KMeans, cluster.MiniBatchKMeans):
        model = kind(4, n_init=1, random_state=np.random.RandomState(3)).fit(FRAMES)
        for name, write in WRITERS.items():
            if name.startswith("torch"):
                continue
            write(model, tmp_path / "m")
            found = read_pickled(tmp_path / "m")
            assert isinstance(found, Record) and found.name == f"sklearn.cluster._kmeans.{kind.__name__}"
            assert same(found.fields["cluster_centers_"], model.cluster_centers_), name
            assert same(found.fields["labels_"], model.labels_) and found.fields["n_clusters"] == 4


def test_settings_of_checkpoints_are_records(tmp_path: Path) -> None:
    config = OmegaConf.create({"a": {"b": [1, "x"]}, "c": None})
    for protocol in range(6):
        (tmp_path / "p").write_bytes(pickle.dumps([argparse.Namespace(x=1), Path("a/b"), config], protocol))
        namespace, path, found = read_pickled(tmp_path / "p")
        assert namespace.name == "argparse.Namespace" and namespace.fields == {"x": 1}
        assert path.name.startswith("pathlib.") and path.args[-1] == "b"
        assert found.name == "omegaconf.dictconfig.DictConfig"
        assert found.fields["_content"]["a"].fields["_content"]["b"].fields["_content"][1].fields["_val"] == "x"


def test_repr_of_a_record_is_short(tmp_path: Path) -> None:
    loop = argparse.Namespace()
    loop.self = loop
    (tmp_path / "p").write_bytes(pickle.dumps(loop))
    assert repr(read_pickled(tmp_path / "p")) == "<Record argparse.Namespace>"


# ------------------------------------------------------------------------------------------------------ hostile


class Reduced:
    """An object that makes a pickle call what it is told."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call


def traps(touch: str) -> dict[str, tuple[Any, str]]:
    """Calls that would leave the file `touch` behind, and the name the error must hold."""
    command, code = f"touch {touch}", f"open({touch!r}, 'w').close()"
    return {
        "system": (Reduced(os.system, (command,)), "posix.system"),
        "eval": (Reduced(eval, (code,)), "builtins.eval"),
        "exec": (Reduced(exec, (code,)), "builtins.exec"),
        "open": (Reduced(open, (touch, "w")), "io.open"),
        "popen": (Reduced(subprocess.Popen, (["touch", touch],)), "subprocess.Popen"),
        "getattr": (Reduced(getattr, (1, "real")), "builtins.getattr"),
        "import": (Reduced(importlib.import_module, ("os",)), "importlib.import_module"),
        "__import__": (Reduced(builtins.__import__, ("os",)), "builtins.__import__"),
        "partial": (functools.partial(os.system, command), "functools.partial"),
        "map": (Reduced(map, (os.system, [command])), "builtins.map"),
        "torch": (Reduced(torch.load, (touch,)), "torch.serialization.load"),
        "numpy": (Reduced(np.load, (touch,)), "numpy.load"),
        "enum": (Colour.RED, "test_pickled.Colour"),
        "state": (Reduced(os.system, (command,), {"a": 1}), "posix.system"),
        "items": (
            Reduced(collections.OrderedDict, (), None, None, iter([(1, Reduced(os.system, (command,)))])),
            "system",
        ),
    }


@pytest.mark.parametrize("trap", sorted(traps("x")))
@pytest.mark.parametrize(
    "writer", ["pickle 0", "pickle 2", "pickle 5", "joblib 0", "joblib 3", "torch", "torch before 1.6"]
)
def test_nothing_is_called(trap: str, writer: str, tmp_path: Path) -> None:
    touched, path = tmp_path / "touched", tmp_path / "model.bin"
    planted, name = traps(str(touched))[trap]
    WRITERS[writer]({"weights": FRAMES, "extra": [planted]}, path)
    with pytest.raises(PickledError) as caught:
        read_pickled(path)
    assert name.split(".")[-1] in str(caught.value) and str(path) in str(caught.value)
    assert "refused" in str(caught.value) and "save its arrays" in str(caught.value)
    assert not touched.exists()


def test_the_trap_does_spring_elsewhere(tmp_path: Path) -> None:
    """What is planted is real: `pickle` itself, in a process of its own, runs it."""
    touched = tmp_path / "touched"
    (tmp_path / "p").write_bytes(pickle.dumps(Reduced(os.system, (f"touch {touched}",))))
    with pytest.raises(PickledError, match="posix.system"):
        read_pickled(tmp_path / "p")
    assert not touched.exists()
    code = "import sys, pickle; pickle.load(open(sys.argv[1], 'rb'))"
    subprocess.run(["python3", "-c", code, str(tmp_path / "p")], check=True)
    assert touched.exists()


def test_a_trap_inside_an_array_of_objects(tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    array = np.empty(2, dtype=object)
    array[1] = Reduced(os.system, (f"touch {touched}",))
    for name in ("joblib 0", "joblib 3", "pickle 2", "pickle 5"):
        WRITERS[name]({"cluster_centers_": FRAMES, "names": array}, tmp_path / "m")
        with pytest.raises(PickledError, match="posix.system"):
            read_pickled(tmp_path / "m")
    assert not touched.exists()


def assembled(*parts: str | bytes) -> bytes:
    """Pickle bytes from operations; text stands for a short string pushed to the stack."""
    return b"".join(b"\x8c" + bytes([len(p)]) + p.encode() if isinstance(p, str) else p for p in parts) + b"."


@pytest.mark.parametrize(
    ("data", "message"),
    [
        # the parts of the name come from the memo and pass through containers
        (assembled("system", b"\x940", "posix", b"h\x00\x93", "true", b"\x85R"), "posix.system"),
        (assembled("builtins", "eval", b"\x93", "1", b"\x85R"), "builtins.eval"),
        (assembled(b"(iposix\nsystem\n"), "posix.system"),
        (assembled(b"(cposix\nsystem\n", "true", b"o"), "posix.system"),
        (assembled("numpy", "dtype", b"\x93", "os", "system", b"\x93\x85R"), "os.system"),
        # a class that may be named is no key to others: getattr, nested names, calls of mentioned types
        (
            assembled("builtins", "getattr", b"\x93", "builtins", "list", b"\x93", "append", b"\x86R"),
            "builtins.getattr",
        ),
        (assembled("builtins", "dict", b"\x93)R"), "a call of builtins.dict"),
        (assembled("torch", "float32", b"\x93)R"), "a call of torch.float32"),
        (assembled("fairseq", "a.B", b"\x93)R)R"), "a call of a Record"),
        (assembled("a", b")R"), "a call of a str"),
        (assembled("torch", "hub.load", b"\x93)R"), "torch.hub.load"),
        (assembled("sklearn_evil", "x", b"\x93"), "sklearn_evil.x"),
        (assembled("joblib.numpy_pickle", "load", b"\x93"), "joblib.numpy_pickle.load"),
        (
            assembled("copyreg", "_reconstructor", b"\x93", "builtins", "list", b"\x93NN\x87R"),
            "an object of builtins.list",
        ),
        (assembled("os\x1b[2J", "system", b"\x93"), r"os\\x1b\[2J.system"),
        (b"\x82\x01.", "EXT1"),
        (b"\x97.", "NEXT_BUFFER"),
        (b"U\x01aQ.", "outside of the pickle"),
        (b"\x80\x06N.", "protocol 6"),
        (b"", "empty"),
        (b"N", "ends in the middle"),
        (b"\xff.", "no pickle operation"),
        (b"hello, I am a text", "no pickle|damaged|more from the stack"),
        (b"ZF0x10", "before 2014"),
        (b"\x04\x22M\x18aaaa", "LZ4"),
        (b"\x93NUMPY\x01\x00", "numpy.load"),
    ],
)
def test_made_by_hand(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "p").write_bytes(data)
    with pytest.raises(PickledError, match=message) as caught:
        read_pickled(tmp_path / "p")
    assert str(tmp_path / "p") in str(caught.value)


def test_members_of_enumerations_as_python_3_11_0_wrote_them(tmp_path: Path) -> None:
    data = assembled("builtins", "getattr", b"\x93", "fairseq.dataclass", "Choices", b"\x93", "STATIC", b"\x86R")
    (tmp_path / "p").write_bytes(data)
    assert read_pickled(tmp_path / "p").name == "fairseq.dataclass.Choices.STATIC"


# ------------------------------------------------------------------------------------------------- exhaustion


def laughs(kind: bytes) -> bytes:
    """Ten to the forty by references: a tuple (or list) of ten of the last, forty times."""
    start = {b"t": b")", b"l": b"]"}[kind]
    body = start + b"q\x00"
    for level in range(40):
        body += b"(" + b"h" + bytes([level]) + (b"h" + bytes([level])) * 9 + kind + b"q" + bytes([level + 1])
    return body


def header(shape: str, *, kind: bytes = b"f8") -> bytes:
    """An array's pickle up to its data."""
    return (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n" + shape.encode()
        + b"cnumpy\ndtype\n(S'" + kind + b"'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\n"
    )  # fmt: skip


LONG_TEXT = b"X" + struct.pack("<I", 2_000_000) + b"a" * 2_000_000
HUNGRY = {
    "a key of nested tuples": b"}" + laughs(b"t") + b"Ns.",
    "a set of nested tuples": b"\x8f(" + laughs(b"t") + b"\x90.",
    "a shape with nothing behind it": header("(I1000000000\nI1000000000\nt") + b"S'abc'\ntb.",
    "a negative shape": header("(I-1\nt") + b"S'abc'\ntb.",
    "long elements": header("(I4\nt", kind=b"U999999999") + b"S''\ntb.",
    "a structured type": header("(I1\nt", kind=b"i4,i4") + b"S'abc'\ntb.",
    "copies of one long string": LONG_TEXT + b"q\x00c_codecs\nencode\nq\x01"
                                 + b"h\x01h\x00X\x06\0\0\0latin1\x86R" * 2000 + b".",
    "sets of one long list": b"](" + b"K\x01" * 100_000 + b"eq\x00" + b"c__builtin__\nset\nh\x00\x85R" * 3000 + b".",
    "long keys": LONG_TEXT + b"q\x000}" + b"h\x00Ns." ,
    "a wide integer as key": b"}\x8b" + struct.pack("<i", 100_000) + b"\x7f" * 100_000 + b"Ns.",
    "many operations": b"N0" * 3_000_000 + b".",
    "a length beyond the end": b"\x8e" + struct.pack("<Q", 1 << 60) + b"abc.",
    "nested lists for a type": b"cnumpy\ndtype\n" + laughs(b"l") + b"\x85R.",
    "nested lists for an encoding": b"c_codecs\nencode\nX\x01\0\0\0a" + laughs(b"l") + b"\x86R.",
    "nested lists for a shape": b"ctorch\nSize\n" + laughs(b"l") + b"\x85R.",
    "nested lists for a name": laughs(b"l") + b"h\x28\x93.",
    "a long frame": b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b".",
}  # fmt: skip


READ = """
import re, sys, time
from unitkit.pickled import PickledError, read_pickled

def peak():  # not getrusage, which starts a child at the peak of its parent
    return int(re.findall(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[0])

before, started = peak(), time.process_time()
try:
    read_pickled(sys.argv[1])
except PickledError:
    print(time.process_time() - started, peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the kernel's count of memory")
@pytest.mark.parametrize("name", HUNGRY)
def test_hostile_sizes_end_soon_and_small(name: str, tmp_path: Path) -> None:
    """In a process of its own, whose memory nothing else has used."""
    (tmp_path / "p").write_bytes(HUNGRY[name])
    done = subprocess.run([sys.executable, "-c", READ, str(tmp_path / "p")], capture_output=True, text=True, check=True)
    seconds, kilobytes = map(float, done.stdout.split())
    assert seconds < 20 and kilobytes < 500_000


def test_references_alone_cost_nothing(tmp_path: Path) -> None:
    (tmp_path / "p").write_bytes(laughs(b"l") + b".")
    assert len(read_pickled(tmp_path / "p")) == 10


def test_compressed_bombs_are_not_unpacked(tmp_path: Path) -> None:
    inside = b"N0" * 50_000_000 + b"."
    for pack in (gzip.compress, zlib.compress):
        (tmp_path / "p").write_bytes(pack(inside))
        with pytest.raises(PickledError, match="unpacks to over"):
            read_pickled(tmp_path / "p")


@pytest.mark.parametrize(
    ("size", "stride", "offset", "message"),
    [((5,), (1,), 0, "beyond"), ((2,), (1,), 3, "beyond"), ((1 << 40, 2), (0, 1), 0, "repeats"),
     ((2,), (-1,), 3, "negative"), ((2, 2), (1,), 0, "damaged")],
)  # fmt: skip
def test_tensors_stay_in_their_storage(
    size: tuple[int, ...], stride: tuple[int, ...], offset: int, message: str, tmp_path: Path
) -> None:
    class Forged:
        def __init__(self, storage: Any) -> None:
            self.storage = storage

        def __reduce__(self) -> Any:
            args = (self.storage, offset, size, stride, False, collections.OrderedDict())
            return torch._utils._rebuild_tensor_v2, args

    torch.save({"a": Forged(torch.arange(4.0).storage())}, tmp_path / "t.pt")
    with pytest.raises(PickledError, match=message):
        read_pickled(tmp_path / "t.pt")


def test_zips_that_are_not_what_torch_writes(tmp_path: Path) -> None:
    torch.save({"a": torch.arange(4.0)}, tmp_path / "good.pt")
    with zipfile.ZipFile(tmp_path / "good.pt") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}

    def written(change: dict[str, bytes | None], method: int = zipfile.ZIP_STORED) -> Path:
        with zipfile.ZipFile(tmp_path / "bad.pt", "w", method) as archive:
            for name, content in {**members, **change}.items():
                if content is not None:
                    archive.writestr(name, content)
        return tmp_path / "bad.pt"

    root = next(iter(members)).split("/")[0]
    assert np.array_equal(read_pickled(written({}))["a"], np.arange(4.0))
    for change, method, message in (
        ({}, zipfile.ZIP_DEFLATED, "compressed"),
        ({f"{root}/data/0": None}, zipfile.ZIP_STORED, "storage '0' is missing"),
        ({f"{root}/data/0": b"abc"}, zipfile.ZIP_STORED, "too few"),
        ({f"{root}/data.pkl": None}, zipfile.ZIP_STORED, "no torch file"),
        ({f"{root}/constants.pkl": b"N."}, zipfile.ZIP_STORED, "TorchScript"),
    ):
        with pytest.raises(PickledError, match=message):
            read_pickled(written(change, method))
    swapped = {f"{root}/byteorder": b"big", f"{root}/data/0": np.arange(4, dtype=">f4").tobytes()}
    assert np.array_equal(read_pickled(written(swapped))["a"], np.arange(4.0))
    np.savez(tmp_path / "n.npz", FRAMES)
    with pytest.raises(PickledError, match=r"numpy.load reads .npz"):
        read_pickled(tmp_path / "n.npz")


# --------------------------------------------------------------------------------------------------------- fuzz


def seeds() -> list[bytes]:
    model = cluster.KMeans(2, n_init=1).fit(FRAMES[:10])
    files = []
    for value, names in ((PLAIN, WRITERS), (model, ["pickle 0", "pickle 2", "pickle 5", "joblib 0", "joblib 3"])):
        for name in names:
            path = Path(os.environ.get("TMPDIR", "/tmp")) / f"unitkit-seed-{os.getpid()}"
            WRITERS[name](value, path)
            files.append(path.read_bytes())
            path.unlink()
    return files


SEEDS = seeds()


def tried(data: bytes, path: Path) -> None:
    """Read it: any value will do, and any `PickledError`, but no other error and nothing executed."""
    path.write_bytes(data)
    try:
        read_pickled(path)
    except PickledError as error:
        assert str(path) in str(error) and len(str(error)) < 1000


FUZZ = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(data=st.binary(max_size=300))
def test_random_bytes(data: bytes, tmp_path: Path) -> None:
    tried(data, tmp_path / "p")
    tried(b"\x80\x04" + data + b".", tmp_path / "p")


@FUZZ
@given(ops=st.lists(st.sampled_from(sorted(pickletools.code2op)), max_size=40), seed=st.integers(0, 2**32))
def test_random_operations(ops: list[str], seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    names = [b"numpy\ndtype\n", b"posix\nsystem\n", b"numpy.core.multiarray\n_reconstruct\n", b"sklearn.a\nB\n"]
    body = b"}(NK\x01X\x01\0\0\0a])"
    for code in ops:
        argument = pickletools.code2op[code].arg
        if argument is None:
            filling = b""
        elif argument.n < 0 and "nl" in argument.name:
            filling = rng.choice([*names, b"1\n", b"'a'\n", b"1\n2\n"])
        else:
            filling = bytes(rng.choice([0, 0, 1, 2, 255]) for _ in range(max(argument.n, 8)))
        body += code.encode("latin-1") + filling
    tried(body + b".", tmp_path / "p")


@FUZZ
@given(which=st.integers(0, len(SEEDS) - 1), seed=st.integers(0, 2**32), cut=st.booleans())
def test_damaged_files(which: int, seed: int, cut: bool, tmp_path: Path) -> None:
    rng, data = random.Random(seed), bytearray(SEEDS[which])
    for _ in range(rng.randint(1, 8)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    tried(bytes(data[: rng.randrange(len(data))] if cut else data), tmp_path / "p")


def test_every_prefix_of_a_file_is_an_error(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    joblib.dump({"cluster_centers_": FRAMES[:2]}, buffer)
    whole = buffer.getvalue()
    for end in range(len(whole)):
        (tmp_path / "p").write_bytes(whole[:end])
        with pytest.raises(PickledError):
            read_pickled(tmp_path / "p")
