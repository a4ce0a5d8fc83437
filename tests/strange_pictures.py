"""Pictures in the forms that strangers have, written byte by byte like the genuine files."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

__all__ = ["clinicdb_mask", "clinicdb_picture"]

_BYTE, _SHORT, _LONG = 1, 3, 4


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
