"""Read tensors of a safetensors file as numpy arrays, one at a time, and round arrays to a file's dtype."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from lorabuild.errors import JobError
from lorabuild.header import FormatError, TensorInfo

if TYPE_CHECKING:
    import numpy as np

# recipe.save_precision -> dtype in safetensors' words
SAVE_DTYPES = {"fp16": "F16", "bf16": "BF16", "fp32": "F32"}
FLOATS = ("F16", "BF16", "F32", "F64")  # what can be read as numbers here

_PART = 1 << 15  # numbers that are rounded at a time
# Of float32 -> fp16, as bits of float32.
_TO_HALF_BIAS, _EXPONENT, _LEAST_NORMAL, _TIMES_1_5_2_13 = 2.0**-112, 0x7F800000, (127 - 14) << 23, 13 << 23 | 1 << 22
_NUMPY = {"F16": "<f2", "BF16": "<u2", "F32": "<f4", "F64": "<f8"}  # bf16 is none of numpy's: half of a float32
_HALF_EXPONENT = {"F16": 0x7C00, "BF16": 0x7F80}
_LIMIT = {"F16": 65520, "BF16": 3.396e38, "F32": 3.4028236e38, "F64": float("inf")}  # does not fit, from here on
_LARGEST = {"F16": "65504", "BF16": "3.39e38", "F32": "3.40e38", "F64": "1.80e308"}


def read_tensor(
    path: Path, name: str, info: TensorInfo, precision: str = "float32", trusted: bool = False
) -> np.ndarray:
    """Tensor `name` of the file at `path` as an array of its shape, in "float32" or "float64". Exact where it fits.

    Only its own bytes are read. Raises JobError, which names file and tensor, for a dtype that is none of FLOATS and for a
    value that is not finite (but not of a file that is `trusted` to hold none); FormatError if the file ends early.
    """
    import numpy as np

    array = _stored(path, name, info)
    if not trusted and not _finite(array, info.dtype):
        raise JobError(f"{path}: {name}: holds NaN or infinity; the weights are broken")
    with np.errstate(over="ignore"):
        wide = _WIDENED.get(info.dtype, lambda array: array)(array).astype(precision, copy=False)
    if info.dtype == "F64" and not np.isfinite(wide).all():
        raise JobError(f"{path}: {name}: does not fit {precision}")
    return wide.reshape(info.shape)


def scaled_tensor(path: Path, name: str, info: TensorInfo, weight: float) -> np.ndarray:
    """Tensor `name` times `weight`, rounded to its own dtype. Raises as `read_tensor` and `rounded` do.

    Of the 65,536 numbers that have 16 bits each product is made once, and looked up: a third of the time.
    """
    import numpy as np

    if info.dtype not in _HALF_EXPONENT:
        return _multiplied(path, name, info, weight)
    bits = _stored(path, name, info).view("<u2")
    products, places = _products(weight, info.dtype), np.empty(_PART, np.intp)
    for start in range(0, len(bits), _PART):
        part = bits[start : start + _PART]
        np.copyto(places[: len(part)], part)
        products.take(places[: len(part)], mode="clip", out=part)
    if not _finite(bits, info.dtype):  # say which number
        return _multiplied(path, name, info, weight)
    return bits.reshape(info.shape)


def _multiplied(path: Path, name: str, info: TensorInfo, weight: float) -> np.ndarray:
    import numpy as np

    numbers = read_tensor(path, name, info, "float64" if info.dtype == "F64" else "float32")
    with np.errstate(over="ignore", invalid="ignore"):  # `rounded` says so
        return rounded(numbers * weight, info.dtype, name)


@lru_cache(maxsize=32)
def _products(weight: float, dtype: str) -> np.ndarray:
    """The bits of x · weight by the bits of x [65536]; what is not finite has no finite product."""
    import numpy as np

    numbers = _WIDENED[dtype](np.arange(1 << 16, dtype="<u2"))
    with np.errstate(over="ignore", invalid="ignore"):
        products = _ROUNDED[dtype](numbers * np.float32(weight)).view("<u2")
    return np.where(np.isfinite(numbers), products, _HALF_EXPONENT[dtype])


def _stored(path: Path, name: str, info: TensorInfo) -> np.ndarray:
    """The tensor's numbers as they are stored, without its shape."""
    import numpy as np

    if info.dtype not in FLOATS:
        raise JobError(f"{path}: {name}: has dtype {info.dtype}; one of {', '.join(FLOATS)} was expected")
    array = np.empty((info.stop - info.start) // np.dtype(_NUMPY[info.dtype]).itemsize, _NUMPY[info.dtype])
    with open(path, "rb", buffering=0) as file:  # a fraction of what fromfile takes for a small tensor
        file.seek(info.start)
        if not _fill(file, memoryview(array).cast("B") if len(array) else memoryview(b"")):
            raise FormatError(f"{path}: truncated while {name} was being read")
    return array


def _fill(file: BinaryIO, buffer: memoryview) -> bool:
    """Read as much as `buffer` takes; False if the file ends before. At most 2 GiB come at a time on Linux."""
    while buffer.nbytes:
        count = file.readinto(buffer)
        if not count:
            return False
        buffer = buffer[count:]
    return True


def rounded(array: np.ndarray, dtype: str, name: str) -> np.ndarray:
    """`array` (float32 or float64) in one of FLOATS, to nearest, ties to even; bf16 as its bits in uint16.

    Little-endian and contiguous: its bytes are the tensor's. Raises JobError, which names the tensor, where a value is
    not finite or becomes infinite: never silently.
    """
    import numpy as np

    with np.errstate(over="ignore"):
        result = _ROUNDED.get(dtype, lambda array: np.ascontiguousarray(array, _NUMPY[dtype]))(array)
    if not _finite(result, dtype):
        worst = array.flat[int(np.argmax(~(np.abs(array.astype("<f8")) < _LIMIT[dtype])))]
        raise JobError(
            f"{name}: {worst:.6g} does not fit {dtype} (largest: {_LARGEST[dtype]}): save in another precision"
        )
    return result.reshape(array.shape)


def _finite(array: np.ndarray, dtype: str) -> bool:
    """Halves are judged by the bits of their exponent: numpy's isfinite takes fifteen times as long for them."""
    import numpy as np

    if exponent := _HALF_EXPONENT.get(dtype):
        return not array.size or bool((array.view("<u2") & 0x7FFF).max() < exponent)
    return bool(np.isfinite(array).all())


def _from_half(array: np.ndarray) -> np.ndarray:
    """fp16 -> float32, exact, by moving the bits and correcting the exponent's bias: seven times as fast as astype."""
    import numpy as np

    wide = array.view("<i2").astype("<i4")  # brings the sign to the top
    wide <<= 13
    wide &= np.int32(-0x70000001)  # sign, and the 15 bits of exponent and fraction in float32's places
    result = wide.view("<f4")
    result *= np.float32(2.0**112)
    return result


def _from_bfloat16(array: np.ndarray) -> np.ndarray:
    return (array.astype("<u4") << 16).view("<f4")


def _half(array: np.ndarray) -> np.ndarray:
    """float -> fp16, in parts that stay in the cache: from float32 it takes two thirds of astype's time.

    A number is rounded to the 11 bits of a half, ties to even, when 1.5 · 2^13 times its own power of two (that of the
    least normal half, if that is more) is added to it and taken away again: the processor does it. The rest is moving
    bits. What a half cannot hold becomes infinite.
    """
    import numpy as np

    if array.dtype != np.float32:
        return np.ascontiguousarray(array, "<f2")
    source, target = np.ascontiguousarray(array).reshape(-1), np.empty(array.size, "<u2")
    scratch = np.empty((2, min(_PART, source.size)), "<f4")
    for start in range(0, source.size, _PART):
        part, bits = source[start : start + _PART], target[start : start + _PART]
        number, magic = scratch[:, : len(part)]
        number_bits, magic_bits = number.view("<u4"), magic.view("<u4")
        np.maximum(np.bitwise_and(part.view("<u4"), _EXPONENT, out=magic_bits), _LEAST_NORMAL, out=magic_bits)
        magic_bits += _TIMES_1_5_2_13
        np.subtract(np.add(part, magic, out=number), magic, out=number)
        number *= _TO_HALF_BIAS
        np.copyto(bits, np.right_shift(number_bits, 13, out=number_bits), casting="unsafe")
        bits &= 0x7FFF
        bits |= part.view("<u2")[1::2] & 0x8000  # the sign
        if not max(part.max(), -part.min()) < _LIMIT["F16"]:  # not a number is not less, either
            np.copyto(bits, part.astype("<f2").view("<u2"))
    return target.view("<f2")


def _bfloat16(array: np.ndarray) -> np.ndarray:
    """The upper halves of float32, rounded: half of the last place is added, a little less where that makes a tie even."""
    import numpy as np

    bits = np.ascontiguousarray(array, "<f4").view("<u4")
    up = (((bits >> 16) & 1) + 0x7FFF) * np.isfinite(array)  # a NaN must not be carried into a zero
    return ((bits + up.astype("<u4")) >> 16).astype("<u2")


_WIDENED = {"F16": _from_half, "BF16": _from_bfloat16}
_ROUNDED = {"F16": _half, "BF16": _bfloat16}


def nearest(value: float, dtype: str) -> float:
    """The number nearest to `value` that a dtype of FLOATS has, by way of float32; infinity beyond its largest."""
    import numpy as np

    single = np.array([value], "<f4")
    if dtype == "BF16":
        return _from_bfloat16(_bfloat16(single)).item()
    with np.errstate(over="ignore"):
        return single.astype(_NUMPY[dtype]).item()
