"""Images in the forms that strangers have, made byte by byte: what no writing library of the tests would write."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

__all__ = ["HEADERS", "REFUSED_BY_ITK", "SPACING", "nifti", "nifti_bytes", "stored_labels"]

_CODES = {
    "u1": (2, 8), "i2": (4, 16), "i4": (8, 32), "f4": (16, 32), "f8": (64, 64), "i1": (256, 8), "u2": (512, 16),
    "u4": (768, 32), "i8": (1024, 64),
}  # fmt: skip
_UNITS = {"unknown": 0, "m": 1, "mm": 2, "micrometre": 3}

Matrix = Sequence[Sequence[float]]


def nifti_bytes(
    array: np.ndarray,
    *,
    zooms: Sequence[float] | None = None,
    sform: Matrix | None = None,
    qform: tuple[Sequence[float], Sequence[float], float] | None = None,
    codes: tuple[int, int] | None = None,
    units: str = "mm",
    slope: float = 0.0,
    intercept: float = 0.0,
    endian: str = "<",
) -> bytes:
    """Make a NIfTI-1 file in one part.

    Args:
        array: voxels (x, y, z, ...) as they are stored.
        zooms: voxel sizes as they stand in the header.
        sform: its three rows.
        qform: quaternion (b, c, d), offset, and the sign of the third axis.
        codes: of qform and sform; by default 1 for each that is given.
        units: of lengths.
        slope: scale factor; 0 says that there is none.
        intercept: that goes with it.
        endian: `<` or `>`.
    """
    code, bits = _CODES[array.dtype.str[1:]]
    zooms = [1.0] * array.ndim if zooms is None else list(zooms)
    quaternion, offset, sign = ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0), 1.0) if qform is None else qform
    codes = (int(qform is not None), int(sform is not None)) if codes is None else codes
    rows = np.zeros((3, 4)) if sform is None else np.asarray(sform, dtype=float)
    dims = [array.ndim, *array.shape, *[1] * (7 - array.ndim)]
    pixdim = [sign, *zooms, *[1.0] * (7 - len(zooms))]
    header = struct.pack(f"{endian}i10s18sihcB", 348, b"", b"", 0, 0, b"r", 0)
    header += struct.pack(f"{endian}8h3f4h8f", *dims, 0.0, 0.0, 0.0, 0, code, bits, 0, *pixdim)
    header += struct.pack(f"{endian}3fhBB4f2i", 352.0, slope, intercept, 0, 0, _UNITS[units], 0, 0, 0, 0, 0, 0)
    header += struct.pack(f"{endian}80s24s2h3f3f", b"", b"", *codes, *quaternion, *offset)
    header += struct.pack(f"{endian}12f16s4s", *rows.ravel(), b"", b"n+1\0")
    assert len(header) == 348
    return header + bytes(4) + array.astype(array.dtype.newbyteorder(endian)).tobytes(order="F")


def nifti(path: Path, array: np.ndarray, **form) -> Path:
    """Write a NIfTI file, compressed if it is named so; see `nifti_bytes`."""
    content = nifti_bytes(array, **form)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content, 1) if path.name.endswith(".gz") else content)
    return path


_ZOOMS = SPACING = (1.25, 1.5, 8.0)
_AT = (-30.0, 20.0, -100.0)
# A quaternion (0, 0, 1) turns half around z: the first two axes run backwards.
_TURNED = ((0.0, 0.0, 1.0), _AT, 1.0)
_TRUE = ((-1.25, 0, 0, -30), (0, -1.5, 0, 20), (0, 0, 8, -100))
_ONES = ((-1, 0, 0, 0), (0, -1, 0, 0), (0, 0, 1, 0))
_ELSEWHERE = ((1.25, 0, 0, 7), (0, 1.5, 0, 8), (0, 0, 8, 9))
_SHEARED = ((-1.25, 0.3, 0, -30), (0, -1.5, 0, 20), (0, 0, 8, -100))
_OBLIQUE = ((-1.25 * 0.8, 1.5 * 0.6, 0, -30), (-1.25 * 0.6, -1.5 * 0.8, 0, 20), (0, 0, 8, -100))

# What headers state, by name: arguments of `nifti`.
HEADERS: dict[str, dict] = {
    "sform = qform": {"zooms": _ZOOMS, "sform": _TRUE, "qform": _TURNED},
    "sform only": {"zooms": _ZOOMS, "sform": _TRUE},
    "qform only": {"zooms": _ZOOMS, "qform": _TURNED},
    # As ACDC is published: scales of 1 in the sform, the true ones in qform and zooms.
    "sform of ones": {"zooms": _ZOOMS, "sform": _ONES, "qform": ((0.0, 0.0, 1.0), (0.0, 0.0, 0.0), 1.0)},
    "sform elsewhere": {"zooms": _ZOOMS, "sform": _ELSEWHERE, "qform": _TURNED},
    "zooms of ones": {"zooms": (1.0, 1.0, 1.0), "sform": _TRUE},
    "oblique": {"zooms": _ZOOMS, "sform": _OBLIQUE},
    "codes 0": {"zooms": _ZOOMS, "sform": _TRUE, "qform": _TURNED, "codes": (0, 0)},
    "unit m": {
        "zooms": (0.00125, 0.0015, 0.008),
        "sform": ((-0.00125, 0, 0, -0.03), (0, -0.0015, 0, 0.02), (0, 0, 0.008, -0.1)),
        "units": "m",
    },
    "unit micrometre": {
        "zooms": (1250.0, 1500.0, 8000.0),
        "sform": ((-1250, 0, 0, -30000), (0, -1500, 0, 20000), (0, 0, 8000, -100000)),
        "units": "micrometre",
    },
    "unit unknown": {"zooms": _ZOOMS, "sform": _TRUE, "units": "unknown"},
    "sheared": {"zooms": _ZOOMS, "sform": _SHEARED},
    "sheared sform, straight qform": {"zooms": _ZOOMS, "sform": _SHEARED, "qform": _TURNED},
    "negative zooms": {"zooms": (-1.25, -1.5, 8.0), "sform": _TRUE, "qform": _TURNED},
    "third axis backwards": {"zooms": _ZOOMS, "qform": ((0.0, 0.0, 1.0), _AT, -1.0)},
    "scale factor": {"zooms": _ZOOMS, "sform": _TRUE, "qform": _TURNED, "slope": 1 / 255},
    "scale factor and intercept": {"zooms": _ZOOMS, "sform": _TRUE, "slope": 1.0, "intercept": -1.0},
    "big-endian": {"zooms": _ZOOMS, "sform": _TRUE, "qform": _TURNED, "endian": ">"},
}
REFUSED_BY_ITK = ("sheared",)


def stored_labels(labels: np.ndarray, name: str) -> np.ndarray:
    """Return what a file of the form `name` has to hold so that it means these labels."""
    form = HEADERS[name]
    stored = (labels - form.get("intercept", 0.0)) / (form.get("slope") or 1.0)
    return np.rint(stored).astype(np.uint8 if stored.max() < 256 else np.int16)
