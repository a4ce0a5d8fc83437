"""A comparison with made-up numbers, for tests of what is written about one."""

from __future__ import annotations

import numpy as np

from nnunetv2_ext.comparison.model import (
    Comparison,
    Costs,
    Dataset,
    Failures,
    Finding,
    Friedman,
    LabelSummary,
    Metric,
    Missing,
    Pair,
    Ranking,
    Reference,
    Result,
    Score,
    Setup,
    Summary,
)

METRICS = (
    Metric("Dice", "", True, "2 |A and B| / (|A| + |B|); not defined where both masks are empty"),
    Metric("HD95", "mm", False, "95th percentile of the distances between both surfaces"),
)
LABELS = {"1": "body", "2": "bone"}


def make_example(
    trainers: tuple[str, ...] = ("nnUNetTrainer", "nnUNetTrainerDCA", "nnUNetTrainerPECANet"),
    datasets: tuple[str, ...] = ("Dataset901_CTBody",),
    n_cases: int = 20,
    seed: int = 0,
) -> Comparison:
    """Make a comparison; the first trainer is the reference, and each further one is a little better."""
    rng = np.random.default_rng(seed)
    scores, results = [], []
    for dataset in datasets:
        cases = tuple(f"case_{index:03d}" for index in range(n_cases))
        base = rng.beta(8, 2, (n_cases, len(LABELS)))
        for number, trainer in enumerate(trainers):
            dice = np.clip(base + 0.01 * number + rng.normal(0, 0.02, base.shape), 0, 1)
            for row, case in enumerate(cases):
                for column, label in enumerate(LABELS):
                    value = float(dice[row, column])
                    values = {"Dice": value, "HD95": 20 * (1 - value)}
                    scores.append(Score(dataset, case, row % 5, trainer, label, values, 1000, 1000))
        for metric in METRICS:
            of_dataset = [score for score in scores if score.dataset == dataset]
            results.append(_result(of_dataset, metric, dataset, cases, trainers))
    if len(datasets) > 1:
        results += [_over_datasets(results, metric, datasets, trainers) for metric in METRICS]
    return Comparison(
        reference=trainers[0],
        trainers=trainers,
        metrics=METRICS,
        datasets=tuple(Dataset(name, LABELS, tuple(f"case_{i:03d}" for i in range(n_cases))) for name in datasets),
        scores=tuple(scores),
        files=(),
        results=tuple(results),
        setups=tuple(
            Setup(name, dataset, "nnUNetPlans", "3d_fullres", (0, 1, 2, 3, 4), 1000, 250, 2, (128, 128, 128), "0, 1, 2",
                  "none", "final", "2.7.0", "node1")
            for name in trainers for dataset in datasets
        ),
        costs=tuple(
            Costs(name, dataset, 30_000_000 * (number + 1), 500_000_000_000, 7000.0 + 1000 * number, 8000.0, None,
                  120.0 + 30 * number, 33.3, "NVIDIA A100", None)
            for number, name in enumerate(trainers) for dataset in datasets
        ),
        findings=(
            Finding("seed", "Each fold was trained once, so the spread between trainings is not in the intervals."),
            Finding("batch", "nnUNetTrainer was trained with 2 samples per step, <b>nnUNetTrainerDCA</b> with 4."),
        ),
        missing=(
            Missing(trainers[-1], datasets[0], 4, f"{trainers[-1]} has no fold 4 on {datasets[0]}.",
                    f"nnUNetv2_train {datasets[0]} 3d_fullres 4 -tr {trainers[-1]}"),
        ),
        versions={"nnunetv2_ext": "0.1.0", "nnunetv2": "2.8.1", "scipy": "1.17.0"},
        references=(Reference("Wilcoxon", "Wilcoxon: Individual comparisons by ranking methods. Biometrics, 1945."),),
        resamples=999,
        seed=0,
    )  # fmt: skip


def _summary(trainer: str, values: np.ndarray) -> Summary:
    mean, half = float(values.mean()), float(1.96 * values.std() / np.sqrt(values.size))
    return Summary(trainer, values.size, mean, float(np.median(values)), (mean - half, mean + half))


def _table(
    values: dict[str, np.ndarray], metric: Metric, trainers: tuple[str, ...]
) -> tuple[tuple[Pair, ...], Friedman | None, tuple[Ranking, ...]]:
    pairs = []
    for i, b in enumerate(trainers):
        for a in trainers[i + 1 :]:
            d = values[a] - values[b]
            summary = _summary(a, d)
            better, worse = int((d > 0).sum()), int((d < 0).sum())
            wins, losses = (better, worse) if metric.higher_is_better else (worse, better)
            pairs.append(
                Pair(
                    a,
                    b,
                    d.size,
                    summary.mean,
                    summary.ci95,
                    0.01,
                    0.03,
                    float(np.copysign(0.5, summary.mean)),
                    wins,
                    d.size - wins - losses,
                    losses,
                )
            )
    k = len(trainers)
    means = {name: float(np.mean(values[name])) for name in trainers}
    order = sorted(trainers, key=means.__getitem__, reverse=metric.higher_is_better)
    ranks = {name: float(order.index(name) + 1) for name in trainers}
    frequencies = {
        name: tuple(0.9 if place == ranks[name] else 0.1 / max(k - 1, 1) for place in range(1, k + 1))
        for name in trainers
    }
    rankings = tuple(
        Ranking(method, ranks, frequencies, 0.9, (0.33, 1.0))
        for method in ("aggregate then rank", "rank then aggregate")
    )
    n = len(values[trainers[0]])
    return tuple(pairs), Friedman(n, 12.5, 0.002, ranks, 0.74) if k > 2 else None, rankings


def _result(
    scores: list[Score], metric: Metric, dataset: str, cases: tuple[str, ...], trainers: tuple[str, ...]
) -> Result:
    tables = {
        name: np.array([score.values[metric.name] for score in scores if score.trainer == name]).reshape(
            len(cases), len(LABELS)
        )
        for name in trainers
    }
    values = {name: table.mean(axis=1) for name, table in tables.items()}
    pairs, friedman, rankings = _table(values, metric, trainers)
    failures = []
    for name in trainers:
        order = np.argsort(values[name] if metric.higher_is_better else -values[name])[: max(1, len(cases) // 10)]
        worst = tuple(cases[index] for index in order)
        failures.append(Failures(name, 1, 2 * len(cases), 0, 0, float(values[name][order].mean()), worst))
    return Result(
        metric.name,
        dataset,
        cases,
        {name: tuple(map(float, of_trainer)) for name, of_trainer in values.items()},
        tuple(_summary(name, values[name]) for name in trainers),
        tuple(
            LabelSummary(label, tuple(_summary(name, tables[name][:, column]) for name in trainers))
            for column, label in enumerate(LABELS)
        ),
        pairs,
        friedman,
        rankings,
        tuple(failures),
    )


def _over_datasets(
    results: list[Result], metric: Metric, datasets: tuple[str, ...], trainers: tuple[str, ...]
) -> Result:
    of_metric = [result for result in results if result.metric == metric.name]
    values = {name: np.array([np.mean(result.values[name]) for result in of_metric]) for name in trainers}
    pairs, friedman, rankings = _table(values, metric, trainers)
    return Result(
        metric.name,
        None,
        datasets,
        {name: tuple(map(float, of_trainer)) for name, of_trainer in values.items()},
        tuple(_summary(name, values[name]) for name in trainers),
        (),
        pairs,
        friedman,
        rankings,
        (),
    )
