"""How nnU-Net's own search comes to look at this package, without any step by the user.

nnU-Net looks for trainers outside its own package in the folders of the environment variable `nnUNet_extTrainer`. torch
(2.5 and later) calls every entry point of the group `torch.backends` at the end of `import torch`, and every nnU-Net
command imports torch long before it looks for a trainer. The entry point of this package is `register` below.
"""

import os

DISCOVERY_FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "_discovery")
OPT_OUT_VARIABLE = "nnUNet_ext_NO_AUTOLOAD"
SEARCH_PATH_VARIABLE = "nnUNet_extTrainer"


def register() -> None:
    """Append this package's discovery folder to nnU-Net's search path, after what the user has set.

    Does nothing if `nnUNet_ext_NO_AUTOLOAD` is set. Never raises: an exception here would make every `import torch` of
    the environment fail.
    """
    try:
        if os.environ.get(OPT_OUT_VARIABLE):
            return
        folders = [folder for folder in os.environ.get(SEARCH_PATH_VARIABLE, "").split(os.pathsep) if folder]
        if DISCOVERY_FOLDER not in folders:
            os.environ[SEARCH_PATH_VARIABLE] = os.pathsep.join([*folders, DISCOVERY_FOLDER])
    except Exception:
        # Not being found is reported by `nnUNetv2_ext doctor`; a broken torch would not be.
        return
