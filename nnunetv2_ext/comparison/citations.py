"""What a comparison rests on: publications and versions of programs."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from nnunetv2_ext.comparison.facts import Reference

__all__ = ["REFERENCES", "find_versions"]

REFERENCES = (
    Reference(
        "nnU-Net",
        "F. Isensee, P. F. Jaeger, S. A. A. Kohl, J. Petersen, K. H. Maier-Hein: nnU-Net: a self-configuring method "
        "for deep learning-based biomedical image segmentation. Nature Methods 18, 203-211, 2021.",
    ),
    Reference(
        "bootstrap intervals (BCa)",
        "B. Efron: Better bootstrap confidence intervals. Journal of the American Statistical Association 82, 171-185, "
        "1987.",
    ),
    Reference(
        "signed-rank test",
        "F. Wilcoxon: Individual comparisons by ranking methods. Biometrics Bulletin 1, 80-83, 1945.",
    ),
    Reference(
        "zeros in the signed-rank test",
        "J. W. Pratt: Remarks on zeros and ties in the Wilcoxon signed rank procedures. Journal of the American "
        "Statistical Association 54, 655-667, 1959.",
    ),
    Reference(
        "correction for several tests",
        "S. Holm: A simple sequentially rejective multiple test procedure. Scandinavian Journal of Statistics 6, "
        "65-70, 1979.",
    ),
    Reference(
        "rank-biserial correlation",
        "D. S. Kerby: The simple difference formula: an approach to teaching nonparametric correlation. Comprehensive "
        "Psychology 3, 11.IT.3.1, 2014.",
    ),
    Reference(
        "Friedman's test",
        "M. Friedman: The use of ranks to avoid the assumption of normality implicit in the analysis of variance. "
        "Journal of the American Statistical Association 32, 675-701, 1937.",
    ),
    Reference(
        "critical difference",
        "J. Demsar: Statistical comparisons of classifiers over multiple data sets. Journal of Machine Learning "
        "Research 7, 1-30, 2006.",
    ),
    Reference(
        "stability of rankings",
        "M. Wiesenfarth and others: Methods and open-source toolkit for analyzing and visualizing challenge results. "
        "Scientific Reports 11, 2369, 2021.",
    ),
    Reference(
        "SciPy",
        "P. Virtanen and others: SciPy 1.0: fundamental algorithms for scientific computing in Python. Nature Methods "
        "17, 261-272, 2020.",
    ),
)


def find_versions() -> dict[str, str]:
    """Return the versions of the programs that made the comparison; not those that trained."""
    found = {}
    for name in ("nnunetv2_ext", "nnunetv2", "scipy", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
