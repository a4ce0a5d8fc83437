"""Public datasets as nnU-Net's raw format, with the papers' splits.

`registry.py` lists them; each has one file, whose function `collect` reads a download's file names and says what the
dataset is made of, without writing anything. `convert.py` writes what `collect` says: in parallel, complete or not at
all. What files hold is read in `volumes.py` (3D) and `pictures.py` (2D).
"""
