"""Where the time of a `.tflite` file goes, operator by operator, XNNPACK's included.

`Interpreter` has no way to read a profile, but the wheel's `libLiteRt.so` does: its C
interface is called through ctypes here. Struct layouts and signatures are those of
https://github.com/google-ai-edge/LiteRT/tree/main/litert/c, whose sizes LiteRT asserts
as its ABI; versions that were not tried are refused, since an argument too few would
be a crash. Run it in a process of its own all the same.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import importlib.metadata
import importlib.util
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tfopt.types import TfoptError

# `LiteRtCreateModelFromFile` takes the environment since 2.2.
_TRIED = ("2.3",)
_ALIGNMENT = 64
_MAX_RANK = 8
_CPU = 1
_OPERATOR, _DELEGATE_OPERATOR, _DELEGATE_PROFILED = 2, 4, 8
# Numbers of LiteRtElementType.
_ELEMENT_TYPES = {
    "float32": 1,
    "int32": 2,
    "uint8": 3,
    "int64": 4,
    "bool": 6,
    "int16": 7,
    "complex64": 8,
    "int8": 9,
    "float16": 10,
    "float64": 11,
    "uint64": 13,
    "uint32": 16,
    "uint16": 17,
}
_Handle = ctypes.c_void_p
_Destructor = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@dataclasses.dataclass(frozen=True)
class Event:
    """One operator of one run.

    Attributes:
        name: A TFLite operator (`"SOFTMAX"`), or a kernel of XNNPACK
            (`"Convolution (NHWC, F32) IGEMM"`).
        index: Its position in the file's subgraph, or within the part of the graph
            that a delegate runs.
        part: Number of that part in order of execution; None outside of delegates.
        time_us: Whole microseconds.
    """

    name: str
    index: int
    part: int | None
    time_us: int

    @property
    def place(self) -> str:
        """`"1.3"`: kernel 3 of the delegate's part 1; `"7"`: node 7 of the file."""
        return str(self.index) if self.part is None else f"{self.part}.{self.index}"


class _Layout(ctypes.Structure):
    _fields_ = [
        ("rank", ctypes.c_uint, 7),
        ("has_strides", ctypes.c_uint, 1),
        ("dimensions", ctypes.c_int32 * _MAX_RANK),
        ("strides", ctypes.c_uint32 * _MAX_RANK),
    ]


class _TensorType(ctypes.Structure):
    _fields_ = [("element_type", ctypes.c_int), ("layout", _Layout)]


class _Memory(ctypes.Structure):
    _fields_ = [
        ("total_allocated_bytes", ctypes.c_size_t),
        ("in_use_allocated_bytes", ctypes.c_size_t),
        ("private_footprint_bytes", ctypes.c_size_t),
    ]


class _Event(ctypes.Structure):
    _fields_ = [
        ("tag", ctypes.c_char_p),
        ("event_type", ctypes.c_int),
        ("start_timestamp_us", ctypes.c_uint64),
        ("elapsed_time_us", ctypes.c_uint64),
        ("begin_memory", _Memory),
        ("end_memory", _Memory),
        ("event_metadata1", ctypes.c_uint64),
        ("event_metadata2", ctypes.c_uint64),
        ("event_source", ctypes.c_int),
    ]


class ProfiledModel:
    """A `.tflite` file that tells what each operator takes.

    Args:
        path: The file.
        inputs: One array for each input of the signature, by name, of the file's own
            types; free axes get their sizes.
        outputs: Shape and type of each output for these inputs, by name.
        signature_index: Position of the signature in the file.
        num_threads: Threads of the kernels.

    Raises:
        TfoptError: Another version of LiteRT, a file that it can't run, or tensors of
            strings.
    """

    def __init__(
        self,
        path: str,
        inputs: Mapping[str, np.ndarray],
        outputs: Mapping[str, tuple[tuple[int, ...], np.dtype]],
        *,
        signature_index: int = 0,
        num_threads: int = 1,
    ) -> None:
        self._library = _Library()
        self._keep: list[Any] = []  # what C code points to
        self._signature = ctypes.c_size_t(signature_index)
        call = self._library.call
        environment = call("CreateEnvironment", 0, None, result=True)
        model = call("CreateModelFromFile", environment, path.encode(), result=True)
        signature = call("GetModelSignature", model, self._signature, result=True)
        arrays = [inputs[name] for name in self._names(signature, "Input", inputs)]
        kinds = [outputs[name] for name in self._names(signature, "Output", outputs)]
        self._compiled = call(
            "CreateCompiledModel",
            environment,
            model,
            self._options(num_threads),
            result=True,
        )
        for position, array in enumerate(arrays):
            if not array.ndim:  # nothing to resize, and refused
                continue
            sizes = (ctypes.c_int * array.ndim)(*array.shape)
            call(
                "CompiledModelResizeInputTensorNonStrict",
                self._compiled,
                self._signature,
                ctypes.c_size_t(position),
                sizes,
                ctypes.c_size_t(array.ndim),
            )
        self._inputs = self._buffers([(a.shape, a.dtype) for a in arrays], arrays)
        self._outputs = self._buffers(kinds, [None] * len(kinds))
        self._profiler = call("CompiledModelGetProfiler", self._compiled, result=True)

    def run(self) -> None:
        """Runs the model once, as it is without profiling."""
        self._library.call(
            "RunCompiledModel",
            self._compiled,
            self._signature,
            ctypes.c_size_t(len(self._inputs)),
            self._inputs,
            ctypes.c_size_t(len(self._outputs)),
            self._outputs,
        )

    def profile(self) -> list[Event]:
        """Runs the model once and returns what each operator took, in order."""
        with self._profiling():
            self.run()
        number = self._library.call(
            "GetNumProfilerEvents", self._profiler, result=ctypes.c_int
        )
        events = (_Event * number.value)()
        self._library.call(
            "GetProfilerEvents", self._profiler, number.value, ctypes.byref(events)
        )
        return list(_operators(events))

    @contextlib.contextmanager
    def _profiling(self) -> Iterator[None]:
        self._library.call("ResetProfiler", self._profiler)
        self._library.call("StartProfiler", self._profiler)
        try:
            yield
        finally:
            self._library.call("StopProfiler", self._profiler)

    def _names(
        self, signature: Any, side: str, given: Mapping[str, object]
    ) -> list[str]:
        """Returns the names of inputs or outputs in the order of the C interface."""
        call = self._library.call
        number = call(f"GetNumSignature{side}s", signature, result=ctypes.c_size_t)
        names = []
        for index in range(number.value):
            name = call(
                f"GetSignature{side}Name",
                signature,
                ctypes.c_size_t(index),
                result=ctypes.c_char_p,
            )
            names.append((name.value or b"").decode())
        if set(names) == set(given):
            return names
        # A file without signatures: the order is that of the subgraph.
        if len(names) == len(given):
            return list(given)
        raise TfoptError(
            f"Cannot profile this model. Expected the {side.lower()}s {list(given)}. "
            f"Received: {names}"
        )

    def _options(self, num_threads: int) -> Any:
        call = self._library.call
        options = call("CreateOptions", result=True)
        call("SetOptionsHardwareAccelerators", options, _CPU)
        # The identifiers and the text are what LiteRT's own option classes write.
        for identifier, text in (
            (b"runtime_options_string", b"enable_profiling = true\n"),
            (b"xnnpack", b"num_threads = %d\n" % num_threads),
        ):
            payload = ctypes.create_string_buffer(text)
            keep = _Destructor(lambda _: None)  # Python owns the text
            self._keep += [payload, keep]
            opaque = call("CreateOpaqueOptions", identifier, payload, keep, result=True)
            call("AddOpaqueOptions", options, opaque)
        return options

    def _buffers(
        self,
        kinds: Sequence[tuple[tuple[int, ...], np.dtype]],
        values: Sequence[np.ndarray | None],
    ) -> Any:
        handles = (_Handle * len(kinds))()
        for position, ((shape, dtype), value) in enumerate(
            zip(kinds, values, strict=True)
        ):
            kind = _tensor_type(shape, dtype)
            memory = _aligned(shape, dtype)
            if value is not None:
                memory[...] = value
            self._keep += [memory, kind]
            handle = self._library.call(
                "CreateTensorBufferFromHostMemory",
                ctypes.byref(kind),
                ctypes.c_void_p(memory.ctypes.data),
                ctypes.c_size_t(memory.nbytes),
                None,
                result=True,
            )
            handles[position] = handle
        return handles


class _Library:
    """The C functions; each returns a status, which becomes an error."""

    def __init__(self) -> None:
        version = importlib.metadata.version("ai-edge-litert")
        if not version.startswith(_TRIED):
            raise TfoptError(
                "Profiles of .tflite files need a version of LiteRT whose C interface "
                f"was tried. Expected ai-edge-litert {' or '.join(_TRIED)}. "
                f"Received: {version}"
            )
        spec = importlib.util.find_spec("ai_edge_litert")
        folders = (spec and spec.submodule_search_locations) or [""]
        path = pathlib.Path(folders[0]) / "libLiteRt.so"
        try:
            self._library = ctypes.CDLL(str(path))
        except OSError as error:
            raise TfoptError(
                "Cannot load LiteRT's C library. Expected libLiteRt.so in the package "
                f"ai-edge-litert. Received: {error}"
            ) from error

    def call(self, name: str, *arguments: Any, result: Any = None) -> Any:
        """Calls `LiteRt<name>`.

        Args:
            name: What follows `LiteRt`.
            *arguments: ctypes values.
            result: The type of the value that the function writes through its last
                argument; True: a handle; None: there is none.
        """
        value = None
        if result is not None:
            value = _Handle() if result is True else result()
            arguments = (*arguments, ctypes.byref(value))
        status = getattr(self._library, f"LiteRt{name}")(*arguments)
        if status != 0:
            raise TfoptError(
                "LiteRT's C interface refuses the model for profiling. Expected a file "
                "that runs there, with tensors of numbers and outputs of known size. "
                f"Received: status {status} of LiteRt{name}"
            )
        return value


def _operators(events: Sequence[_Event]) -> Iterator[Event]:
    """Yields the operators; a delegate's kernels instead of the delegate."""
    found = [(event, event.tag.decode(errors="replace")) for event in events]
    has_kernels = any(event.event_type & _DELEGATE_PROFILED for event, _ in found)
    part, last = -1, 0
    for event, tag in found:
        index = event.event_metadata1
        if event.event_type & (_DELEGATE_OPERATOR | _DELEGATE_PROFILED):
            # Each part counts its kernels from 0.
            part, last = part + (part < 0 or index <= last), index
            yield Event(tag, index, part, event.elapsed_time_us)
        elif event.event_type == _OPERATOR and not (
            has_kernels and re.search("delegate", tag, re.IGNORECASE)
        ):
            yield Event(tag, index, None, event.elapsed_time_us)


def _tensor_type(shape: tuple[int, ...], dtype: np.dtype) -> _TensorType:
    if dtype.name not in _ELEMENT_TYPES or len(shape) > _MAX_RANK:
        raise TfoptError(
            f"Cannot profile this model. Expected tensors of numbers, of at most "
            f"{_MAX_RANK} axes. Received: {dtype.name} {list(shape)}"
        )
    kind = _TensorType()
    kind.element_type = _ELEMENT_TYPES[dtype.name]
    kind.layout.rank = len(shape)
    for axis, size in enumerate(shape):
        kind.layout.dimensions[axis] = size
    return kind


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Returns zeros at an address that LiteRT takes as it is."""
    size = max(int(np.prod(shape)) * dtype.itemsize, 1)
    raw = np.zeros(size + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)
