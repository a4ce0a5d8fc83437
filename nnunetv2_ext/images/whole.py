"""Whether a file of MetaImage, GIPL or TIFF holds all the voxels that its header states.

SimpleITK does not look: it leaves what happened to be in memory in place of the voxels that are missing. tifffile gives
the planes that it finds. Of NRRD, PNG and BMP the readers do look, and NIfTI has its own module.
"""

from __future__ import annotations

import logging
import math
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from nnunetv2_ext.images.nifti import unreadable

__all__ = ["require_whole_gipl", "require_whole_metaimage", "require_whole_tiff"]

_CHUNK = 1 << 20
_METAIMAGE_BYTES = {
    **{"CHAR": 1, "UCHAR": 1, "SHORT": 2, "USHORT": 2, "INT": 4, "UINT": 4, "LONG": 4, "ULONG": 4},
    **{"LONG_LONG": 8, "ULONG_LONG": 8, "FLOAT": 4, "DOUBLE": 8},
}
# By the number that stands for the type; a voxel of type 1 is a bit that takes a byte.
_GIPL_BYTES = {1: 1, 7: 1, 8: 1, 15: 2, 16: 2, 31: 4, 32: 4, 64: 4, 65: 8}
_GIPL_HEADER = 256
# What tifffile says of planes that are missing; about tags of other programs it says more, which harms no voxel.
_MISSING_PLANES = re.compile(r"page offset|failed to reshape")


def require_whole_metaimage(path: Path) -> None:
    """Raise if a `.mha` file ends before its voxels do. One with a header that is not understood is left to SimpleITK.

    Raises:
        UserError: naming the file.
    """
    with path.open("rb") as file:
        stated = _read_text_header(file)
        kind = stated.get("ElementType", "").removeprefix("MET_").removesuffix("_ARRAY")
        if stated.get("ElementDataFile") != "LOCAL" or kind not in _METAIMAGE_BYTES:
            return
        try:
            sizes = [int(size) for size in stated["DimSize"].split()]
            channels = int(stated.get("ElementNumberOfChannels", "1"))
        except (KeyError, ValueError):
            return
        needed = math.prod(sizes) * channels * _METAIMAGE_BYTES[kind]
        packed = stated.get("CompressedData", "").lower() in ("true", "1")
        try:
            found = _unpacked_size(file) if packed else path.stat().st_size - file.tell()
        except zlib.error as error:
            raise unreadable(path, error) from error
    _require(path, found, needed)


def _read_text_header(file: IO[bytes]) -> dict[str, str]:
    """Read the lines `KEY = VALUE` up to the one behind which the voxels begin."""
    stated: dict[str, str] = {}
    while "ElementDataFile" not in stated:
        key, equals, value = file.readline(10_000).partition(b"=")
        if not equals:
            break
        stated[key.decode("latin-1").strip()] = value.decode("latin-1").strip()
    return stated


def _unpacked_size(file: IO[bytes]) -> int:
    """Count the bytes into which the rest of a file unpacks."""
    unpack, found = zlib.decompressobj(), 0
    while not unpack.eof and (part := file.read(_CHUNK)):
        found += len(unpack.decompress(part))
    return found + len(unpack.flush())


def require_whole_gipl(path: Path) -> None:
    """Raise if a `.gipl` file ends before its voxels do. One of an unknown type is left to SimpleITK.

    Raises:
        UserError: naming the file.
    """
    with path.open("rb") as file:
        start = file.read(10)
    if len(start) < 10:
        raise unreadable(path, "it has no header")
    *sizes, kind = struct.unpack(">5H", start)
    if kind in _GIPL_BYTES:
        needed = math.prod(size or 1 for size in sizes) * _GIPL_BYTES[kind]
        _require(path, path.stat().st_size - _GIPL_HEADER, needed)


def require_whole_tiff(path: Path) -> None:
    """Raise if a TIFF ends before its last plane; damage of other kinds is left to tifffile.

    Raises:
        UserError: naming the file.
    """
    import tifffile

    with _errors_in_log("tifffile") as said:
        try:
            with tifffile.TiffFile(path) as file:
                _ = file.series
        except Exception:
            # Of many types; the reader meets them again, and says what is wrong.
            return
    missing = [message for message in said if _MISSING_PLANES.search(message)]
    if missing:
        raise unreadable(path, missing[0])


@contextmanager
def _errors_in_log(name: str) -> Iterator[list[str]]:
    """Yield a list that gets the errors which a library logs, in place of the terminal."""
    messages: list[str] = []

    class Keeper(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    keeper, logger = Keeper(logging.ERROR), logging.getLogger(name)
    propagated = logger.propagate
    logger.addHandler(keeper)
    logger.propagate = False
    try:
        yield messages
    finally:
        logger.propagate = propagated
        logger.removeHandler(keeper)


def _require(path: Path, found: int, needed: int) -> None:
    if found < needed:
        raise unreadable(path, f"it ends after {max(found, 0)} of {needed} bytes of voxels")
