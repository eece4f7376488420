"""Read tensors of a safetensors file as numpy arrays, one at a time, and round arrays to a file's dtype."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lorabuild.errors import JobError
from lorabuild.header import FormatError, TensorInfo

if TYPE_CHECKING:
    import numpy as np

# recipe.save_precision -> dtype in safetensors' words
SAVE_DTYPES = {"fp16": "F16", "bf16": "BF16", "fp32": "F32"}
FLOATS = ("F16", "BF16", "F32", "F64")  # what can be read as numbers here

_NUMPY = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}  # bf16 is none of numpy's: the upper half of a float32
_HALF_EXPONENT = {"F16": 0x7C00, "BF16": 0x7F80}
_LARGEST = {"F16": "65504", "BF16": "3.39e38", "F32": "3.40e38", "F64": "1.80e308"}


def read_tensor(path: Path, name: str, info: TensorInfo, precision: str = "float32") -> np.ndarray:
    """Tensor `name` of the file at `path` as an array of its shape, in "float32" or "float64". Exact where it fits.

    Only its own bytes are read. Raises JobError, which names the tensor, for a dtype that is none of FLOATS and for a
    value that is not finite; FormatError if the file ends early.
    """
    import numpy as np

    if info.dtype not in FLOATS:
        raise JobError(f"{name}: has dtype {info.dtype}; one of {', '.join(FLOATS)} was expected")
    stored = np.dtype(_NUMPY.get(info.dtype, "<u2"))
    count = (info.stop - info.start) // stored.itemsize
    array = np.fromfile(path, stored, count, offset=info.start)
    if array.size < count:
        raise FormatError(f"{path}: truncated while {name} was being read")
    if info.dtype == "BF16":
        array = (array.astype("<u4") << 16).view("<f4")
    with np.errstate(over="ignore"):
        array = array.astype(precision, copy=False)
    if not np.isfinite(array).all():
        raise JobError(f"{name}: holds NaN or infinity; the weights are broken")
    return array.reshape(info.shape)


def rounded(array: np.ndarray, dtype: str, name: str) -> np.ndarray:
    """`array` (float32 or float64) in one of FLOATS, to nearest, ties to even; bf16 as its bits in uint16.

    Little-endian and contiguous: its bytes are the tensor's. Raises JobError, which names the tensor, where a value is
    not finite or becomes infinite: never silently.
    """
    import numpy as np

    with np.errstate(over="ignore"):
        result = _bfloat16(array) if dtype == "BF16" else np.ascontiguousarray(array, _NUMPY[dtype])
    if exponent := _HALF_EXPONENT.get(dtype):  # by its bits: numpy's isfinite takes fifteen times as long for halves
        finite = (result.view("<u2") & exponent) != exponent
    else:
        finite = np.isfinite(result)
    if not finite.all():
        worst = array.flat[int(np.argmin(finite))]
        raise JobError(
            f"{name}: {worst:.6g} does not fit {dtype} (largest: {_LARGEST[dtype]}); see recipe.save_precision"
        )
    return result.reshape(array.shape)


def _bfloat16(array: np.ndarray) -> np.ndarray:
    """The upper halves of float32, rounded: half of the last place is added, a little less where that makes a tie even."""
    import numpy as np

    bits = np.ascontiguousarray(array, "<f4").view("<u4")
    up = (((bits >> 16) & 1) + 0x7FFF) * np.isfinite(array)  # a NaN must not be carried into a zero
    return ((bits + up.astype("<u4")) >> 16).astype("<u2")


def nearest(value: float, dtype: str) -> float:
    """The number nearest to `value` that a dtype of FLOATS has, by way of float32; infinity beyond its largest."""
    import numpy as np

    single = np.array([value], "<f4")
    if dtype == "BF16":
        return (_bfloat16(single).astype("<u4") << 16).view("<f4").item()
    with np.errstate(over="ignore"):
        return single.astype(_NUMPY[dtype]).item()
