"""The one module that nnU-Net's search for trainers sees of this package.

nnU-Net imports every module of a search folder as a top-level module, asks it for the trainer's name, and then forgets
the module. So this file has a name that is unique on any Python path, holds no class itself, and hands the question on
to the installed package.
"""


def __getattr__(name: str) -> type:
    # Python's own machinery asks for dunder names. Where the package is not importable (the search path was inherited
    # by another environment), nnU-Net's search must go on as if this folder were empty.
    if not name.startswith("__"):
        try:
            from nnunetv2_ext.trainers import find_trainer
        except ImportError:
            pass
        else:
            trainer = find_trainer(name)
            if trainer is not None:
                return trainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
