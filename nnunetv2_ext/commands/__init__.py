"""The subcommands of `nnUNetv2_ext`, one module each.

A module is called like its command, with `_` for `-`, and has `HELP`, one sentence; `add_arguments(parser)`; and
`run(arguments)`. All are imported to build the command line, so that what is heavy (torch, nnU-Net, SimpleITK) is
imported inside functions.
"""

__all__ = ["COMMANDS"]

# In the order in which the help lists them.
COMMANDS = (
    "list",
    "info",
    "doctor",
    "path",
    "plan",
    "plans",
    "import-weights",
    "export",
    "predict",
    "evaluate",
    "compare",
    "convert",
    "run",
    "submit",
    "demo",
)
