"""Images and label maps as nnU-Net reads them, for every command of the package.

`grids` says where voxels lie, and when two images lie on the same voxels; `nifti` reads what a NIfTI header states and
checks that its file is whole; `volumes` reads 3D images through SimpleITK, as nnU-Net does; `pictures` reads 2D
pictures; `label_maps` reads labels in any of nnU-Net's formats; `labels` says what their values mean.
"""
