"""Images in the forms that strangers have, made byte by byte: what no writing library of the tests would write.

The tests of the readers, of `convert`, `evaluate` and `submit` all take them from here.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

__all__ = [
    "HEADERS",
    "NO_LABEL_PICTURES",
    "OTHER_HEADERS",
    "REFUSED_BY_ITK",
    "SPACING",
    "clinicdb_mask",
    "clinicdb_picture",
    "damaged",
    "mha_bytes",
    "nifti",
    "nifti_bytes",
    "nrrd_bytes",
    "stored_labels",
]

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


def damaged(content: bytes) -> dict[str, bytes]:
    """Return what downloads and full disks make of a NIfTI file, by file names."""
    return {
        # The gzip is whole, the voxels end half way: SimpleITK gives zeros.
        "half.nii.gz": gzip.compress(content[: len(content) // 2]),
        "cut.nii.gz": gzip.compress(content)[:-30],
        "turned.nii.gz": gzip.compress(content)[:-20] + bytes(20),
        "half.nii": content[: len(content) // 2],
        "page.nii.gz": b"<html>Not found</html>",
        "nothing.nii.gz": b"",
    }


# MetaImage and NRRD: the header is text


def _words(numbers: Sequence[float]) -> str:
    return " ".join(f"{number:.9g}" for number in numbers)


def mha_bytes(
    array: np.ndarray, *, axes: Matrix, offset: Sequence[float] = _AT, endian: str = "<", packed: bool = False
) -> bytes:
    """Make a MetaImage file in one part, of 8 or 16 bits.

    Args:
        array: voxels (x, y, z).
        axes: per axis, its step in mm.
        offset: of the first voxel.
        endian: `<` or `>`.
        packed: whether the voxels are compressed.
    """
    lengths = [float(np.linalg.norm(step)) for step in axes]
    directions = [part / length for step, length in zip(axes, lengths, strict=True) for part in step]
    voxels = array.astype(array.dtype.newbyteorder(endian)).tobytes(order="F")
    data = zlib.compress(voxels) if packed else voxels
    lines = [
        *("ObjectType = Image", f"NDims = {array.ndim}", "BinaryData = True"),
        f"BinaryDataByteOrderMSB = {endian == '>'}",
        f"CompressedData = {packed}",
        *([f"CompressedDataSize = {len(data)}"] if packed else []),
        *(f"TransformMatrix = {_words(directions)}", f"Offset = {_words(offset)}"),
        *(f"ElementSpacing = {_words(lengths)}", f"DimSize = {_words(array.shape)}"),
        f"ElementType = {'MET_UCHAR' if array.dtype.itemsize == 1 else 'MET_SHORT'}",
        "ElementDataFile = LOCAL",
    ]
    return "\n".join([*lines, ""]).encode() + data


def nrrd_bytes(
    array: np.ndarray, *, axes: Matrix, offset: Sequence[float] = _AT, endian: str = "<", packed: bool = False
) -> bytes:
    """Make an NRRD file in one part, of 8 or 16 bits; see `mha_bytes`."""
    voxels = array.astype(array.dtype.newbyteorder(endian)).tobytes(order="F")
    lines = [
        *("NRRD0004", f"type: {'uchar' if array.dtype.itemsize == 1 else 'short'}", f"dimension: {array.ndim}"),
        *("space: left-posterior-superior", f"sizes: {_words(array.shape)}"),
        "space directions: " + " ".join(f"({','.join(f'{part:.9g}' for part in step)})" for step in axes),
        *(f"space origin: ({','.join(f'{part:.9g}' for part in offset)})", "kinds: domain domain domain"),
        *(f"endian: {'big' if endian == '>' else 'little'}", f"encoding: {'gzip' if packed else 'raw'}"),
    ]
    return "\n".join([*lines, "", ""]).encode() + (gzip.compress(voxels) if packed else voxels)


# What headers of these two formats state, by name: arguments of `mha_bytes` and `nrrd_bytes`.
OTHER_HEADERS: dict[str, dict] = {
    "straight": {"axes": ((1.25, 0, 0), (0, 1.5, 0), (0, 0, 8))},
    "packed": {"axes": ((1.25, 0, 0), (0, 1.5, 0), (0, 0, 8)), "packed": True},
    "oblique": {"axes": ((1.0, 0.75, 0), (-0.9, 1.2, 0), (0, 0, 8))},
    "axes backwards": {"axes": ((-1.25, 0, 0), (0, -1.5, 0), (0, 0, -8))},
    "axes exchanged": {"axes": ((0, 1.25, 0), (0, 0, 1.5), (8, 0, 0))},
    "sheared": {"axes": ((1.25, 0, 0), (0.3, 1.5, 0), (0, 0, 8))},
    "big-endian": {"axes": ((1.25, 0, 0), (0, 1.5, 0), (0, 0, 8)), "endian": ">"},
}


# Pictures

_SHORT, _LONG = 3, 4


def _tiff(samples: np.ndarray, photometric: int) -> bytes:
    """Write (Y, X, S) of 8 bits as an uncompressed TIFF of one strip, its directory behind the voxels."""
    height, width, count = samples.shape
    data = samples.tobytes()
    bits = struct.pack(f"<{count}H", *[8] * count)
    directory = 8 + len(data) + len(bits)
    entries = [
        (256, _SHORT, 1, width),
        (257, _SHORT, 1, height),
        (258, _SHORT, count, 8 + len(data) if count > 2 else 8),  # bits per sample: more than four bytes lie elsewhere
        (259, _SHORT, 1, 1),  # no compression
        (262, _SHORT, 1, photometric),
        (273, _LONG, 1, 8),  # where the strip begins
        (277, _SHORT, 1, count),
        (278, _SHORT, 1, height),
        (279, _LONG, 1, len(data)),
        (284, _SHORT, 1, 1),  # samples of a pixel lie together
    ]
    table = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return struct.pack("<2sHI", b"II", 42, directory) + data + bits + struct.pack("<H", len(entries)) + table + bytes(4)


def clinicdb_picture(path: Path, rgb: np.ndarray) -> Path:
    """Write (Y, X, 3) as CVC-ClinicDB's `Original/*.tif`: three samples, PhotometricInterpretation BlackIsZero."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_tiff(rgb, photometric=1))
    return path


def clinicdb_mask(path: Path, mask: np.ndarray, *, noise: bool = True) -> Path:
    """Write (Y, X) as CVC-ClinicDB's `Ground Truth/*.tif`, with a rectangle of 11 where something was wiped out."""
    noisy = np.where(mask, 255, 0).astype(np.uint8)
    corner = noisy[: len(noisy) // 4, : noisy.shape[1] // 4]
    corner[corner == 0] = 11 if noise else 0
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_tiff(noisy[..., None], photometric=1))
    return path


def _palette(labels: np.ndarray) -> Image.Image:
    picture = Image.fromarray(labels).convert("P")
    picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    return picture


# Forms in which nnU-Net reads something else than the labels that were meant, by the words of the refusal.
NO_LABEL_PICTURES: dict[str, Callable[[np.ndarray], Image.Image]] = {
    "has a palette": _palette,
    "has an alpha channel": lambda labels: Image.fromarray(labels).convert("LA"),
    "is a colour image": lambda labels: Image.fromarray(labels).convert("RGB"),
}
