#!/bin/sh
# Every inputs/CASE_0000.nii.gz becomes outputs/CASE.nii.gz. Nothing is written into inputs.
set -eu
cd "$$(dirname "$$0")"

# Compiling the network takes longer than it saves on a few cases, and needs a C compiler.
export nnUNet_compile=f
# Memory that threads have given back is taken again by others, instead of by new arenas of their own.
export MALLOC_ARENA_MAX=2
# Nothing is asked of the network; the weights are in model.
export HF_HUB_OFFLINE=1

exec python -m nnunetv2_ext.submission.predict --model model --inputs inputs --outputs outputs$options
