"""What names in a pickle stand for: a table of constructors of plain data, classes kept as records, and no others."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from unitkit.pickled.machine import (
    POINTER,
    Machine,
    Name,
    PickledError,
    Record,
    RefusedError,
    add_pairs,
    checked_key,
)

INERT = ("sklearn.", "fairseq.", "omegaconf.", "examples.", "pathlib.", "numpy.random.", "argparse.Namespace",
         "torch.device")  # fmt: skip
MENTIONED = re.compile(
    r"builtins\.(list|dict|tuple|int|long|float|str|bool|object)|typing\.\w+|numpy\.(ndarray|matrix|memmap|generic)"
    r"|numpy\.(bool_?|u?int(8|16|32|64)|float(16|32|64))|torch\.(u?int(8|16|32|64)|b?float(16|32|64)?|half|bfloat16"
    r"|double|long|int|short|bool|complex(64|128)|strided|Tensor)"
)
RENAMED = (
    ("__builtin__.", "builtins."),
    ("copy_reg.", "copyreg."),
    ("numpy.core.", "numpy._core."),
    ("sklearn.externals.joblib.", "joblib."),
    ("torch.cuda.", "torch."),
)
WRAPPER = "joblib.numpy_pickle.NumpyArrayWrapper"
DTYPE = re.compile(r"[<>|=]?(b1|i[1248]|u[1248]|f[248]|c8|c16|S\d{1,6}|U\d{1,6}|O8?)")
STORAGES = {
    "torch.FloatStorage": "<f4",
    "torch.DoubleStorage": "<f8",
    "torch.HalfStorage": "<f2",
    "torch.BFloat16Storage": "<u2",  # widened to float32 when a tensor is made of it
    "torch.LongStorage": "<i8",
    "torch.IntStorage": "<i4",
    "torch.ShortStorage": "<i2",
    "torch.CharStorage": "<i1",
    "torch.ByteStorage": "<u1",
    "torch.BoolStorage": "|b1",
    "torch.ComplexFloatStorage": "<c8",
    "torch.ComplexDoubleStorage": "<c16",
    "torch.storage.UntypedStorage": "<u1",
}
TORCH_TYPES = {"torch.float32": "<f4", "torch.float64": "<f8", "torch.float16": "<f2", "torch.int64": "<i8",
               "torch.int32": "<i4", "torch.int16": "<i2", "torch.uint16": "<u2", "torch.uint32": "<u4",
               "torch.uint64": "<u8", "torch.uint8": "<u1", "torch.int8": "<i1", "torch.bool": "|b1"}  # fmt: skip
SPARE = 1 << 16  # elements that an expanded tensor may have beyond its storage


@dataclass(eq=False)
class DType:
    """A NumPy type while its byte order may still be set."""

    value: np.dtype[Any]


@dataclass(frozen=True, eq=False)
class Storage:
    """The numbers behind tensors, and the name of their type."""

    values: np.ndarray
    name: str


def find(module: str, name: str) -> Name:
    """The inert name of a global; raises `RefusedError` where it is none of data."""
    text = f"{module}.{name}"
    if len(text) > 512:
        raise PickledError("a global's name is over 512 characters")
    full = text
    for old, new in RENAMED:
        full = new + full.removeprefix(old) if full.startswith(old) else full
    if full in CALLS or full in STORAGES or full == WRAPPER or full.startswith(INERT) or MENTIONED.fullmatch(full):
        return Name(full)
    raise RefusedError(text if text.isprintable() else ascii(text))


def call(machine: Machine, target: Any, args: tuple[Any, ...]) -> Any:
    """What calling `target` with `args` stands for."""
    if not isinstance(target, Name):
        raise RefusedError(f"a call of a {type(target).__name__}")
    if target.text in CALLS:
        return CALLS[target.text](machine, *args)
    if target.text == WRAPPER or target.text.startswith(INERT):
        return Record(target.text, args)
    raise RefusedError(f"a call of {target.text}")


def build(machine: Machine, target: Any, state: Any) -> Any:
    """The object `target` with its state."""
    if isinstance(target, Record):
        target.state = state
        return _joblib_array(machine, target.fields) if target.name == WRAPPER else target
    if isinstance(target, DType):
        _, order, *parts = state
        if any(part is not None for part in parts[:3]) or order not in "<>|=":
            raise PickledError("it has an array of a structured type, which is not read")
        target.value = target.value.newbyteorder(order)
    elif isinstance(target, np.ndarray) and machine.fresh.pop(id(target), None) is not None:
        _fill(machine, target, state)
    elif not isinstance(target, dict):  # a dictionary's state are attributes beside its items: a module's versions
        raise PickledError(f"it gives a state to a {type(target).__name__}")
    return target


def no_persistent(pid: Any) -> Any:
    """For pickles outside of torch files."""
    raise PickledError("it refers to data outside of the pickle, as only torch files may")


def checked_shape(shape: Any) -> tuple[int, ...]:
    """A shape of at most 32 sizes that are not negative."""
    if not isinstance(shape, tuple | list) or len(shape) > 32:
        raise PickledError("an array's shape is no tuple of at most 32 sizes")
    if any(not isinstance(size, int | np.integer) or size < 0 or size > 1 << 62 for size in shape):
        raise PickledError("an array's shape has sizes that are negative or no integers")
    return tuple(int(size) for size in shape)


def _joblib_array(machine: Machine, fields: dict[str, Any]) -> np.ndarray:
    """The array whose bytes follow its description in a joblib file."""
    dtype, shape = _type_of(fields["dtype"]), checked_shape(fields["shape"])
    if dtype.hasobject:
        inner = machine.nested()
        if not isinstance(inner, np.ndarray):
            raise PickledError("an array of objects is none")
        return inner
    if fields.get("numpy_array_alignment_bytes") is not None:
        machine.source.read(machine.source.read(1)[0])
    flat = machine.source.array(dtype, math.prod(shape))
    return flat.reshape(shape[::-1]).T if fields["order"] == "F" else flat.reshape(shape)


def _type_of(found: Any) -> np.dtype[Any]:
    if not isinstance(found, DType):
        raise PickledError("an array's type is missing")
    return found.value


def _fill(machine: Machine, array: np.ndarray, state: Any) -> None:
    """Give a fresh array the state that NumPy pickled, once its sizes agree."""
    _, shape, kind, fortran, data = state
    dtype, shape = _type_of(kind), checked_shape(shape)
    if dtype.hasobject:
        fits = isinstance(data, list) and len(data) == math.prod(shape)
        machine.budget.copy(len(data) * POINTER if fits else 0)
    else:
        data = data.encode("latin-1") if isinstance(data, str) else data  # Python 2
        fits = isinstance(data, bytes | bytearray) and len(data) == math.prod(shape) * dtype.itemsize
        machine.budget.copy(len(data) if fits else 0)
    if not fits:
        raise PickledError(f"an array of shape {shape} has other data than that")
    checked: Any = (1, shape, dtype, bool(fortran), data if dtype.hasobject else bytes(data))
    array.__setstate__(checked)


# ------------------------------------------------------------------------------------------------- constructors


def _shown(value: Any) -> str:
    """A value for an error: nested lists are named, for their repr may never end."""
    return repr(value[:40]) if isinstance(value, str) else f"a {type(value).__name__}"


def _dtype(machine: Machine, code: Any, *_: Any) -> DType:
    if not isinstance(code, str) or not DTYPE.fullmatch(code):
        raise PickledError(f"array type {_shown(code)} is not read")
    return DType(np.dtype(code))


def _fresh_array(machine: Machine, kind: Any, *_: Any) -> np.ndarray:
    array = np.zeros(0, np.int8)
    machine.budget.copy(128)
    machine.fresh[id(array)] = array
    return array


def _scalar(machine: Machine, kind: Any, data: Any) -> Any:
    data = data.encode("latin-1") if isinstance(data, str) else data
    dtype = _type_of(kind)
    if dtype.hasobject or len(data) != dtype.itemsize:
        raise PickledError("a number's bytes do not fit its type")
    machine.budget.copy(len(data))
    return np.frombuffer(data, dtype)[0]


def _from_buffer(machine: Machine, data: Any, kind: Any, shape: Any, order: Any) -> np.ndarray:
    dtype, sizes = _type_of(kind), checked_shape(shape)
    if dtype.hasobject or not isinstance(data, bytes | bytearray) or len(data) != math.prod(sizes) * dtype.itemsize:
        raise PickledError(f"an array of shape {sizes} has other data than that")
    flat = np.frombuffer(data, dtype) if data else np.zeros(0, dtype)
    return flat.reshape(sizes[::-1]).T if order == "F" else flat.reshape(sizes)


def _encoded(machine: Machine, text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise PickledError(f"text encoded as {_shown(encoding)}; known: latin1")
    machine.budget.copy(len(text))
    return text.encode("latin-1")


def _bytes(machine: Machine, *args: Any) -> bytes:
    return bytes(_bytearray(machine, *args))


def _bytearray(machine: Machine, data: Any = b"", encoding: str = "latin-1") -> bytearray:
    data = _encoded(machine, data, encoding) if isinstance(data, str) else data
    if not isinstance(data, bytes | bytearray):
        raise PickledError("bytes of something else")
    machine.budget.copy(2 * len(data))
    return bytearray(data)


def _members(machine: Machine, items: Any) -> list[Any]:
    if not isinstance(items, list | tuple | set | frozenset):
        raise PickledError("a set of something else than a list")
    machine.budget.copy(64 * len(items))
    return [checked_key(item) for item in items]


def _set(machine: Machine, items: Any = ()) -> set[Any]:
    return set(_members(machine, items))


def _frozenset(machine: Machine, items: Any = ()) -> frozenset[Any]:
    return frozenset(_members(machine, items))


def _complex(machine: Machine, real: float, imaginary: float) -> complex:
    return complex(float(real), float(imaginary))


def _dictionary(machine: Machine, pairs: Any = ()) -> dict[Any, Any]:
    pairs = list(pairs.items()) if isinstance(pairs, dict) else pairs
    if not isinstance(pairs, list | tuple) or any(not isinstance(p, list | tuple) or len(p) != 2 for p in pairs):
        raise PickledError("a dictionary of something else than pairs")
    machine.budget.copy(64 * len(pairs))
    made: dict[Any, Any] = {}
    add_pairs(made, [value for pair in pairs for value in pair])
    return made


def _default_dictionary(machine: Machine, *_: Any) -> dict[Any, Any]:
    return {}


def _old_object(machine: Machine, kind: Any, *rest: Any) -> Any:
    """What protocols 0 and 1 make objects by: class, base, and the base's own value."""
    if not isinstance(kind, Name) or not (kind.text.startswith(INERT) or kind.text == WRAPPER):
        raise RefusedError(f"an object of {kind.text if isinstance(kind, Name) else type(kind).__name__}")
    return Record(kind.text, rest[1:] if rest[1:] != (None,) else ())


def _member(machine: Machine, owner: Any, name: Any) -> Record:
    """How Python 3.11 pickled a member of an enumeration: getattr(class, name), of which only this form is known."""
    if not isinstance(owner, Name) or not owner.text.startswith(INERT) or not isinstance(name, str):
        raise RefusedError("builtins.getattr")
    return Record(f"{owner.text}.{name[:200]}")


def _tensor(machine: Machine, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> np.ndarray:
    if not isinstance(storage, Storage):
        raise PickledError("a tensor without a storage")
    values, shape, steps = storage.values, checked_shape(size), checked_shape(stride)
    (start,) = checked_shape((offset,))
    count = math.prod(shape)
    last = start + sum((size - 1) * step for size, step in zip(shape, steps, strict=True))
    if count and last >= len(values):
        raise PickledError(f"a tensor of shape {shape} reaches beyond its {len(values)} numbers")
    if count > len(values) + SPARE:
        raise PickledError(f"a tensor of shape {shape} repeats the {len(values)} numbers it has")
    strides = [step * values.itemsize for step in steps]
    array = np.lib.stride_tricks.as_strided(values[start:], shape, strides, writeable=False) if count else None
    array = np.zeros(shape, values.dtype) if array is None else array
    if storage.name != "torch.BFloat16Storage":
        return array
    machine.budget.copy(8 * count)
    return (array.astype(np.uint32) << 16).view(np.float32)


def _tensor_3(machine: Machine, storage: Any, *args: Any) -> np.ndarray:
    """A tensor over bytes, its type given apart: the first argument after the five of `_tensor`."""
    kind = args[5]
    if not isinstance(storage, Storage) or not isinstance(kind, Name) or kind.text not in TORCH_TYPES:
        raise PickledError("a tensor of a type that is not read")
    typed = storage.values.view(TORCH_TYPES[kind.text])
    return _tensor(machine, Storage(typed, kind.text), *args)


def _parameter(machine: Machine, data: Any, *_: Any) -> Any:
    return data


def _size(machine: Machine, sizes: Any = ()) -> tuple[int, ...]:
    return checked_shape(sizes)


CALLS: dict[str, Callable[..., Any]] = {
    "numpy.dtype": _dtype,
    "numpy._core.multiarray._reconstruct": _fresh_array,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy._core.numeric._frombuffer": _from_buffer,
    "_codecs.encode": _encoded,
    "builtins.bytes": _bytes,
    "builtins.bytearray": _bytearray,
    "builtins.set": _set,
    "builtins.frozenset": _frozenset,
    "builtins.complex": _complex,
    "builtins.getattr": _member,
    "collections.OrderedDict": _dictionary,
    "collections.Counter": _dictionary,
    "collections.defaultdict": _default_dictionary,
    "copyreg._reconstructor": _old_object,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.Size": _size,
}
