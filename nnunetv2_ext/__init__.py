"""Published attention networks for medical image segmentation as trainers of nnU-Net v2.

This module runs while torch is still being imported (see `_register.py`), so it imports nothing heavy.
"""

__all__ = ["__version__"]


def __getattr__(name: str) -> str:
    """Read the version from the installed metadata, on demand: `setup.py` is the one place that states it."""
    if name == "__version__":
        from importlib.metadata import version

        return version("nnunetv2_ext")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
