"""Read the pickle in a PyTorch file by a small machine of our own.

A pickle is a program for a machine with a stack. Python's own machine can be told to call anything,
to make a table of any size, or to hash what is nested without end; the last ends the process. This
one knows the instructions that a dictionary of tensors needs, and no others. Nothing on its stack
can be called or changed but by the few functions that stand here.
"""

import math
import pickletools
import reprlib
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO

import numpy as np

from minires.errors import WeightsError
from minires.layers import Array

STORAGES = {
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "DoubleStorage": "<f8",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "|i1",
    "ByteStorage": "|u1",
    "BoolStorage": "|b1",
}
BFLOAT16 = "bfloat16"  # which NumPy lacks: it is widened to float32 where it is read
STORAGES["BFloat16Storage"] = BFLOAT16
MOST_BYTES = 2**24  # of a pickle: a ResNet-50's has 50 KB, with its optimizer's state 200 KB
MOST_STEPS = 500_000  # of which a ResNet-50's takes 12,000
MOST_DIMENSIONS = 32  # as in NumPy before 2.0

MakeStorage = Callable[[str, str, int], Array]  # type, key and number of values, to (values,)

# Classes and functions that checkpoints name beside tensors: the parts of a ResNet that was saved
# whole, and what training scripts keep. None of them is called. `Fields` stand for what they make.
INERT = {
    "torchvision.models.resnet": {"ResNet", "Bottleneck", "BasicBlock"},
    "torch.nn.modules.conv": {"Conv2d"},
    "torch.nn.modules.batchnorm": {"BatchNorm2d"},
    "torch.nn.modules.activation": {"ReLU"},
    "torch.nn.modules.pooling": {"MaxPool2d", "AdaptiveAvgPool2d"},
    "torch.nn.modules.linear": {"Linear", "Identity"},
    "torch.nn.modules.dropout": {"Dropout"},
    "torch.nn.modules.flatten": {"Flatten"},
    "torch.nn.modules.container": {"Sequential"},
    "torch.nn.parallel.data_parallel": {"DataParallel"},
    "torch": {"device", "Size", "float32", "float16", "bfloat16"},
    "argparse": {"Namespace"},
    "collections": {"Counter", "defaultdict"},
    "numpy": {"dtype"},
    "numpy.core.multiarray": {"scalar"},
    "numpy._core.multiarray": {"scalar"},
    "_codecs": {"encode"},
    "pathlib": {"PosixPath", "WindowsPath"},
    "__builtin__": {"set"},
    "builtins": {"set"},
    "torch.jit._pickle": {
        "build_intlist",
        "build_doublelist",
        "build_boollist",
        "build_tensorlist",
    },
}
TORCHSCRIPT = "__torch__."  # begins the names of a TorchScript program's own classes

# Instructions that put on the stack what stands in the pickle, and those that put a constant there.
ARGUMENTS = {
    "BININT",
    "BININT1",
    "BININT2",
    "LONG1",
    "BINFLOAT",
    "BINUNICODE",
    "SHORT_BINUNICODE",
    "BINSTRING",  # text as Python 2 wrote it
    "SHORT_BINSTRING",
}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def in_memory(dtype: str) -> "np.dtype[Any]":
    """Tell the type that a storage of this type is read to."""
    return np.dtype("<f4" if dtype == BFLOAT16 else dtype)


def widen(bfloat16: bytes) -> Array:
    """Make float32 of bfloat16, which is its upper half."""
    return (np.frombuffer(bfloat16, "<u2").astype("<u4") << 16).view("<f4")


class Fields(dict[Any, Any]):
    """What stands for an object: its fields, and nothing that it could do."""


def unpickle(file: BinaryIO, make_storage: MakeStorage) -> Any:
    """Run the pickle at the file's position, and leave the file behind its end.

    `make_storage` returns the storage that a tensor lies in. You get dictionaries, lists, tuples,
    text, numbers, None, and arrays in place of tensors. `WeightsError` tells of a pickle that wants
    anything else. If it is merely broken, you get other errors.
    """
    machine = _Machine(make_storage)
    instructions = pickletools.genops(_Clipped(file))  # type: ignore[arg-type]  # all it needs
    for count, (opcode, argument, _) in enumerate(instructions):
        if count == MOST_STEPS:
            raise WeightsError(f"refused: its pickle has more than {MOST_STEPS} instructions")
        if opcode.name == "STOP":
            break
        machine.step(opcode.name, argument)
    return machine.stack.pop()


class _Clipped:
    """A file in which no length that a pickle names gets room beyond a limit."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file

    def read(self, size: int) -> bytes:
        """Read what is asked for, or less."""
        return self.file.read(min(size, MOST_BYTES))

    def readline(self) -> bytes:
        """Read a line, or the start of one."""
        return self.file.readline(MOST_BYTES)


class _Machine:
    """The stack, the positions that MARK remembers, and what the pickle keeps for later."""

    def __init__(self, make_storage: MakeStorage) -> None:
        self.make_storage = make_storage
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.copied = 0  # values
        self.memo: dict[int, Any] = {}  # no list, which a pickle could make as long as it likes

    def step(self, name: str, argument: Any) -> None:
        """Carry out one instruction."""
        stack = self.stack
        if name in ARGUMENTS:
            stack.append(argument)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in TUPLES:
            stack.append(tuple(self.pop(TUPLES[name])))
        else:
            match name:
                case "BINPUT" | "LONG_BINPUT":
                    self.memo[argument] = stack[-1]
                case "MEMOIZE":
                    self.memo[len(self.memo)] = stack[-1]
                case "BINGET" | "LONG_BINGET":
                    stack.append(self.memo[argument])
                case "MARK":
                    self.marks.append(len(stack))
                case "TUPLE":
                    stack.append(tuple(self.pop_marked()))
                case "EMPTY_LIST":
                    stack.append([])
                case "EMPTY_DICT":
                    stack.append({})
                case "APPEND":
                    self.extend(self.pop(1))
                case "APPENDS":
                    self.extend(self.pop_marked())
                case "SETITEM":
                    self.update(self.pop(2))
                case "SETITEMS":
                    self.update(self.pop_marked())
                case "GLOBAL":
                    stack.append(_known(*argument.split(" ", 1)))
                case "STACK_GLOBAL":
                    stack.append(_known(*self.pop(2)))
                case "BINPERSID":
                    stack.append(self.storage(stack.pop()))
                case "REDUCE":
                    self.call(*self.pop(2))
                case "NEWOBJ" if stack[-2:-1] == [_make_fields]:
                    self.call(*self.pop(2))
                case "BUILD":
                    self.set_state()
                case "PROTO" | "FRAME":
                    pass  # the version, and the length of what follows
                case _:
                    raise WeightsError(f"refused: no weights need the pickle instruction {name}")

    def pop(self, count: int) -> list[Any]:
        """Take the last few things from the stack."""
        taken = self.stack[-count:]
        if len(taken) < count:
            raise WeightsError("damaged: its pickle takes from an empty stack")
        del self.stack[-count:]
        return taken

    def pop_marked(self) -> list[Any]:
        """Take all that came since the last MARK."""
        mark = self.marks.pop()
        taken = self.stack[mark:]
        del self.stack[mark:]
        return taken

    def extend(self, items: list[Any]) -> None:
        """Append to the list on top of the stack."""
        if not isinstance(self.stack[-1], list):
            raise WeightsError("damaged: its pickle appends to what is no list")
        self.stack[-1].extend(items)

    def update(self, items: list[Any]) -> None:
        """Set what are keys and values in turns, in the dictionary on top of the stack."""
        if not isinstance(self.stack[-1], dict):
            raise WeightsError("damaged: its pickle sets items of what is no dictionary")
        _update(self.stack[-1], zip(items[::2], items[1::2], strict=True))

    def call(self, function: Any, arguments: Any) -> None:
        """Call one of the functions below: nothing else on the stack can be called."""
        if not (callable(function) and isinstance(arguments, tuple)):
            raise WeightsError("damaged: its pickle calls what is no function")
        for argument in arguments:
            self.count(argument)
        self.stack.append(function(*arguments))

    def count(self, copied: Any) -> None:
        """Bound what is copied: one instruction may copy what thousands have made."""
        self.copied += len(copied) if isinstance(copied, list | tuple | dict) else 0
        if self.copied > MOST_STEPS:
            raise WeightsError(f"refused: its pickle copies more than {MOST_STEPS} values")

    def set_state(self) -> None:
        """Keep an object's fields; pass over an OrderedDict's further state, torch's ``_metadata``.

        State of anything else would be written into it: into a function for as long as we run.
        """
        state = self.stack.pop()
        if not isinstance(self.stack[-1], dict):
            raise WeightsError("refused, because loading it would change what is no dictionary")
        if isinstance(self.stack[-1], Fields) and isinstance(state, dict):
            self.count(state)
            _update(self.stack[-1], state.items())

    def storage(self, pid: Any) -> Array:
        """Return the storage that the pickle refers to; a view is None, in the older format."""
        match pid:
            case "storage", str(dtype), str(key), str(), int(count), *view:
                if dtype in STORAGES.values() and count >= 0 and view in ([], [None]):
                    return self.make_storage(dtype, key, count)
        raise WeightsError(f"damaged: no storage is described by {_describe(pid)}")


def _known(module: Any, name: Any) -> Any:
    """Return what stands for one of the few names that are known."""
    match module, name:
        case "collections", "OrderedDict":
            return _make_dictionary
        case "torch._utils", "_rebuild_tensor_v2":
            return _rebuild_tensor
        case "torch._utils", "_rebuild_parameter":
            return _rebuild_parameter
        case "torch", str() if name in STORAGES:
            return STORAGES[name]
        case str(), str() if name in INERT.get(module, ()) or module.startswith(TORCHSCRIPT):
            return _make_fields
    asked = f"{module}.{name}" if isinstance(module, str) and isinstance(name, str) else "a value"
    raise WeightsError(
        f"refused, because loading it would call {asked!r:.80}; save its tensors alone, "
        'where its code is: torch.save(model.state_dict(), "weights.pth")'
    )


def _update(dictionary: dict[Any, Any], items: Iterable[Any]) -> None:
    for key, value in items:
        # Only these: hashing what is nested ends the process, and large numbers can be chosen so
        # that all fall into one place of the table. Small ones count an optimizer's parameters.
        if not isinstance(key, str) and not (isinstance(key, int) and abs(key) < 2**31):
            raise WeightsError(f"refused: {_describe(key)} is a key; wanted text")
        dictionary[key] = value


def _make_dictionary(items: Iterable[Any] = ()) -> dict[Any, Any]:
    """Make what stands for an OrderedDict; Python 2 wrote its items as a list of pairs."""
    made: dict[Any, Any] = {}
    _update(made, items)
    return made


def _make_fields(*_: object) -> Fields:
    """Make what stands for an object, whatever it is made of."""
    return Fields()


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: object) -> Array:
    """Return a view of a storage, once it is certain that it lies within."""
    described = (
        f"offset {_describe(offset)}, shape {_describe(size)} and strides {_describe(stride)}"
    )
    if not (
        isinstance(storage, np.ndarray)
        and isinstance(size, tuple)
        and isinstance(stride, tuple)
        and len(size) == len(stride) <= MOST_DIMENSIONS
        and all(isinstance(n, int) and 0 <= n < 2**63 for n in (offset, *size, *stride))
    ):
        raise WeightsError(f"damaged: no tensor has {described}")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    # A stride of 0 makes much of little, hence the second condition.
    if (0 not in size and last >= storage.size) or math.prod(size) > storage.size:
        raise WeightsError(f"damaged: its storage of {storage.size} values has no {described}")
    item = storage.itemsize
    strides = [step * item for step in stride]
    return np.ndarray(size, storage.dtype, storage.data, offset * item, strides)


def _rebuild_parameter(tensor: Any, *_: object) -> Any:
    """Return a parameter's values."""
    return tensor


def _describe(value: Any) -> str:
    """Write a value in short: all of a nested one might never come to an end."""
    short = reprlib.Repr()
    short.maxlevel = 2
    return f"{short.repr(value):.80}"
