"""Read tensors of a safetensors file as numpy arrays, one at a time, and round arrays to a file's dtype."""

from __future__ import annotations

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
# Of float32 -> fp16, as bits of float32: from 65520 on a half is infinite, so that 65536 will do for all.
_TOO_LARGE, _TO_HALF_BIAS = 65536.0, 2.0**-112
_EXPONENT, _LEAST_NORMAL, _TIMES_2_13 = 0x7F800000, (127 - 14) << 23, 13 << 23
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

    if info.dtype not in FLOATS:
        raise JobError(f"{path}: {name}: has dtype {info.dtype}; one of {', '.join(FLOATS)} was expected")
    stored = np.dtype(_NUMPY[info.dtype])
    count = (info.stop - info.start) // stored.itemsize
    array = np.empty(count, stored)
    with open(path, "rb", buffering=0) as file:  # a fraction of what fromfile takes for a small tensor
        file.seek(info.start)
        if not _fill(file, memoryview(array).cast("B") if count else memoryview(b"")):
            raise FormatError(f"{path}: truncated while {name} was being read")
    if not trusted and not _finite(array, info.dtype):
        raise JobError(f"{path}: {name}: holds NaN or infinity; the weights are broken")
    with np.errstate(over="ignore"):
        wide = _WIDENED.get(info.dtype, lambda array: array)(array).astype(precision, copy=False)
    if info.dtype == "F64" and not np.isfinite(wide).all():
        raise JobError(f"{path}: {name}: does not fit {precision}")
    return wide.reshape(info.shape)


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

    halves = {"F16": _half, "BF16": _bfloat16}
    with np.errstate(over="ignore"):
        result = halves.get(dtype, lambda array: np.ascontiguousarray(array, _NUMPY[dtype]))(array)
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
        return not ((array.view("<u2") & exponent) == exponent).any()
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
    """float -> fp16. From float32 three times as fast as astype, in parts that stay in the cache.

    Adding 2^13 times the power of two of a number (of the least normal half's, if that is more) and taking it away again
    rounds it to the 11 bits of a half, ties to even, as the processor does; the rest is moving bits.
    """
    import numpy as np

    if array.dtype != np.float32:
        return np.ascontiguousarray(array, "<f2")
    source, target = np.ascontiguousarray(array).reshape(-1), np.empty(array.size, "<u2")
    scratch = np.empty((2, min(_PART, source.size)), "<f4")
    for start in range(0, source.size, _PART):
        part = source[start : start + _PART]
        size, power = scratch[:, : len(part)]
        bits, power_bits = size.view("<u4"), power.view("<u4")
        np.minimum(np.abs(part, out=size), _TOO_LARGE, out=size)
        np.maximum(np.bitwise_and(bits, _EXPONENT, out=power_bits), _LEAST_NORMAL, out=power_bits)
        power_bits += _TIMES_2_13
        size += power
        size -= power
        size *= _TO_HALF_BIAS
        bits >>= 13
        np.right_shift(part.view("<u4"), 16, out=power_bits)
        power_bits &= 0x8000  # the sign
        bits |= power_bits
        target[start : start + _PART] = bits
    return target.view("<f2")


def _bfloat16(array: np.ndarray) -> np.ndarray:
    """The upper halves of float32, rounded: half of the last place is added, a little less where that makes a tie even."""
    import numpy as np

    bits = np.ascontiguousarray(array, "<f4").view("<u4")
    up = (((bits >> 16) & 1) + 0x7FFF) * np.isfinite(array)  # a NaN must not be carried into a zero
    return ((bits + up.astype("<u4")) >> 16).astype("<u2")


_WIDENED = {"F16": _from_half, "BF16": _from_bfloat16}


def nearest(value: float, dtype: str) -> float:
    """The number nearest to `value` that a dtype of FLOATS has, by way of float32; infinity beyond its largest."""
    import numpy as np

    single = np.array([value], "<f4")
    if dtype == "BF16":
        return _from_bfloat16(_bfloat16(single)).item()
    with np.errstate(over="ignore"):
        return single.astype(_NUMPY[dtype]).item()
