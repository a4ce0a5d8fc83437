"""Comparing trainings, or folders of predictions: from what was found to a whole `Comparison`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nnunetv2_ext.comparison.citations import REFERENCES, find_versions
from nnunetv2_ext.comparison.costs import find_costs, find_setup, read_plan
from nnunetv2_ext.comparison.facts import Costs, Dataset, Finding, Metric, Missing, Setup
from nnunetv2_ext.comparison.fairness import find_general_findings, find_record_findings, find_setup_findings
from nnunetv2_ext.comparison.files import find_files
from nnunetv2_ext.comparison.findings import find_case_findings, find_size_findings
from nnunetv2_ext.comparison.model import CaseFiles, Comparison, Result, Score
from nnunetv2_ext.comparison.results import Fold, Training, dataset_folders, find_fold, label_key, results_folder
from nnunetv2_ext.comparison.scoring import IN_SUMMARIES, Scoring, metrics_of, score_fold, score_predictions
from nnunetv2_ext.comparison.statistics import RESAMPLES, SEED
from nnunetv2_ext.comparison.tables import compare_cases, compare_datasets
from nnunetv2_ext.comparison.training import read_record
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.images.labels import read_dataset_json

__all__ = ["compare_predictions", "compare_trainings"]


@dataclass
class _Found:
    """What is collected on the way, over all datasets."""

    datasets: list[Dataset] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)
    files: list[CaseFiles] = field(default_factory=list)
    setups: list[Setup] = field(default_factory=list)
    costs: list[Costs] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)


def compare_trainings(
    trainers: Sequence[str],
    datasets: Sequence[str],
    configuration: str,
    *,
    plans: Sequence[str] = ("nnUNetPlans",),
    folds: Sequence[int] = (0, 1, 2, 3, 4),
    metrics: Sequence[str] = (),
    reference: str | None = None,
    scoring: Scoring | None = None,
) -> Comparison:
    """Compare what trainings left behind in nnU-Net's folder of results.

    Args:
        trainers: class names, of any package; no trainer is imported.
        datasets: numbers or names.
        configuration: such as "3d_fullres".
        plans: identifiers: one for all, or one per trainer.
        folds: those that are wanted.
        metrics: names; the first is the main one. By default Dice, or the protocol's first.
        reference: the trainer against which others are held; by default the first.
        scoring: how label maps are scored, where they are; see `Scoring`.

    Raises:
        UserError: in one sentence, where nothing can be compared.
    """
    names = _names(trainers, plans)
    reference = _reference(reference, list(names))
    scoring = scoring or Scoring()
    wanted, to_score = _metrics(metrics, scoring)
    results = results_folder()
    found = _Found()
    for dataset in dataset_folders(datasets, results):
        trainings = [
            Training(name, trainer, dataset, of, configuration, results / dataset / f"{trainer}__{of}__{configuration}")
            for name, (trainer, of) in names.items()
        ]
        _add_dataset(found, dataset, trainings, folds, wanted, scoring, to_score, reference)
    if not found.datasets:
        first = found.missing[0]
        raise UserError(f"There is no finished training to compare: {first.what} Make it with `{first.command}`.")
    found.findings += find_general_findings()
    return _whole(found, tuple(names), wanted, reference)


def compare_predictions(
    folders: Mapping[str, Path],
    references: Path,
    *,
    metrics: Sequence[str] = (),
    reference: str | None = None,
    scoring: Scoring | None = None,
) -> Comparison:
    """Compare folders of predictions, such as those of a test set.

    Args:
        folders: folder of each name.
        references: folder of the references, with the same names of cases.
        metrics: names; the first is the main one. By default the protocol's first.
        reference: the name against which others are held; by default the first.
        scoring: how label maps are scored; see `Scoring`.

    Raises:
        UserError: in one sentence, if something does not fit together.
    """
    reference = _reference(reference, list(folders))
    scoring = scoring or Scoring()
    wanted = metrics_of(metrics, scoring)
    found = _Found()
    scores: list[Score] = []
    for name, folder in folders.items():
        of_folder, remarks = score_predictions(name, folder, references, scoring)
        scores += of_folder
        found.findings += [Finding("files", f"{name}: {remark}") for remark in remarks]
    nearby = (references, references.resolve().parent, *folders.values())
    _add_scores(found, scores[0].dataset, scores, wanted, list(folders), [place / "dataset.json" for place in nearby])
    found.files += find_files(found.datasets[0], {name: [folder] for name, folder in folders.items()}, references)
    found.findings.append(
        Finding("settings", "Folders of predictions do not say how they were made: trainings, ensembles, mirroring and "
        "postprocessing are for the text to state.")
    )  # fmt: skip
    return _whole(found, tuple(folders), wanted, reference)


def _names(trainers: Sequence[str], plans: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Name each trainer with its plans: as given, and by more where one is given several times.

    Raises:
        UserError: if the numbers of both do not fit.
    """
    if len(plans) not in (1, len(trainers)):
        raise UserError(
            f"{len(plans)} plans are named for {len(trainers)} trainers: give one for all, or one for each."
        )
    several = list(plans) if len(plans) == len(trainers) else [plans[0]] * len(trainers)
    names: dict[str, tuple[str, str]] = {}
    for trainer, of in zip(trainers, several, strict=True):
        name = trainer if trainer not in names or names[trainer][1] == of else f"{trainer}__{of}"
        repeated = sum(known == (trainer, of) for known in names.values())
        names[f"{name} ({repeated + 1})" if repeated else name] = (trainer, of)
    return names


def _reference(reference: str | None, names: Sequence[str]) -> str:
    if reference is not None and reference not in names:
        raise UserError(f"{reference} is not among those that are compared: name one of {', '.join(names)}.")
    return reference or names[0]


def _metrics(names: Sequence[str], scoring: Scoring) -> tuple[tuple[Metric, ...], tuple[str, ...]]:
    """Find the metrics, and for which of them label maps must be scored."""
    names = list(dict.fromkeys(names))
    if scoring.anew:
        metrics = metrics_of(names, scoring)
        return metrics, tuple(metric.name for metric in metrics)
    names = names or ["Dice"]
    to_score = tuple(name for name in names if name not in IN_SUMMARIES)
    scored = {metric.name: metric for metric in metrics_of(to_score, scoring)} if to_score else {}
    return tuple(IN_SUMMARIES.get(name) or scored[name] for name in names), to_score


def _add_dataset(
    found: _Found,
    dataset: str,
    trainings: Sequence[Training],
    numbers: Sequence[int],
    metrics: Sequence[Metric],
    scoring: Scoring,
    to_score: Sequence[str],
    reference: str,
) -> None:
    """Read all folds of a dataset, and add what they hold."""
    folds: dict[str, list[Fold]] = {}
    for training in trainings:
        of_training = [find_fold(training, number) for number in numbers]
        found.missing += [fold for fold in of_training if isinstance(fold, Missing)]
        whole = [fold for fold in of_training if isinstance(fold, Fold)]
        folds[training.name] = [score_fold(fold, scoring, to_score) for fold in whole] if to_score else whole
    there = [training for training in trainings if folds[training.name]]
    if not there:
        return
    scores = [score for training in there for score in _each_once(found, folds[training.name])]
    names = [training.name for training in there]
    _add_scores(found, dataset, scores, metrics, names, [training.folder / "dataset.json" for training in there])
    of_trainer = {name: [fold.validation for fold in folds[name]] for name in names}
    found.files += find_files(found.datasets[-1], of_trainer, None)
    setups, costs = [], []
    for training in there:
        own = folds[training.name]
        records = [read_record(fold.folder) for fold in own]
        problems = [
            f"fold {fold.number}: {problem}"
            for fold, record in zip(own, records, strict=True)
            for problem in record.problems
        ]
        try:
            planned = read_plan(training)
        except UserError as error:
            planned = None
            problems.append(str(error))
        setups.append(find_setup(training, own, records, planned))
        of_costs, more = find_costs(training, setups[-1], own, records, planned)
        costs.append(of_costs)
        who = f"{training.name} on {dataset}"
        found.findings += [Finding("files", f"{who}, {problem}") for problem in (*problems, *more)]
        found.findings += find_record_findings(training.name, dataset, [fold.number for fold in own], records)
    found.setups += setups
    found.costs += costs
    found.findings += find_setup_findings(setups, costs, reference)


def _each_once(found: _Found, folds: Sequence[Fold]) -> list[Score]:
    """Return the scores of a training's folds, those of a case from the first fold that has it."""
    first: dict[str, int] = {}
    twice: dict[str, list[str]] = {}
    for fold in folds:
        who = f"{fold.training.name} on {fold.training.dataset}"
        if fold.twice:
            twice.setdefault(f"{who} lists in summary.json of fold {fold.number} more than once", []).extend(fold.twice)
        for case in dict.fromkeys(score.case for score in fold.scores):
            if first.setdefault(case, fold.number) != fold.number:
                words = f"{who} was validated in fold {first[case]} and again in fold {fold.number} on"
                twice.setdefault(words, []).append(case)
    found.findings += [
        Finding("twice", f"{words}: {', '.join(cases)}. The first entry counts.") for words, cases in twice.items()
    ]
    return [score for fold in folds for score in fold.scores if first[score.case] == fold.number]


def _add_scores(
    found: _Found,
    name: str,
    scores: Sequence[Score],
    metrics: Sequence[Metric],
    trainers: Sequence[str],
    dataset_jsons: Sequence[Path],
) -> None:
    """Add a dataset with the cases and labels that all trainers have.

    Raises:
        UserError: if they have none in common.
    """
    own = [{score.case for score in scores if score.trainer == trainer} for trainer in trainers]
    keys = [{score.label for score in scores if score.trainer == trainer} for trainer in trainers]
    cases, labels = set.intersection(*own), set.intersection(*keys)
    for common, kind in ((cases, "case"), (labels, "label")):
        if not common:
            raise UserError(
                f"{', '.join(trainers)} have no {kind} on {name} in common: compare trainings "
                "of the same cases and labels."
            )
    names: dict[str, str] = {}
    path = next((path for path in dataset_jsons if path.is_file()), None)
    if path is not None:
        try:
            known = read_dataset_json(path)
            names = {label_key(str(value)): label for label, value in known.classes.items()}
            if known.ignore is not None:
                sentence = f"{name} has an ignore label ({known.ignore}): its voxels of the references count nowhere."
                found.findings.append(Finding("ignore", sentence))
        except UserError:
            sentence = f"The dataset.json of {name} cannot be read, so its labels are shown by their numbers."
            found.findings.append(Finding("files", sentence))
    ordered = sorted(labels, key=lambda label: ([*names, label].index(label), len(label), label))
    dataset = Dataset(name, {label: names.get(label, f"label {label}") for label in ordered}, tuple(sorted(cases)))
    found.datasets.append(dataset)
    found.scores += scores
    found.findings += find_case_findings(scores, dataset, metrics, trainers)


def _whole(found: _Found, trainers: tuple[str, ...], metrics: tuple[Metric, ...], reference: str) -> Comparison:
    """Compute the results, and put everything together."""
    results: list[Result] = []
    for metric in metrics:
        for dataset in found.datasets:
            of_dataset = [score for score in found.scores if score.dataset == dataset.name]
            results.append(compare_cases(of_dataset, dataset, metric, trainers, reference))
        if len(found.datasets) > 1:
            of_metric = [result for result in results if result.metric == metric.name]
            results.append(compare_datasets(of_metric, metric, trainers, reference))
    gone = []
    if found.missing:
        words = f"Of the runs that were asked for, {len(found.missing)} are missing; their list has the commands."
        gone = [Finding("missing", words)]
    return Comparison(
        reference=reference,
        trainers=trainers,
        metrics=metrics,
        datasets=tuple(found.datasets),
        scores=tuple(found.scores),
        files=tuple(found.files),
        results=tuple(results),
        setups=tuple(found.setups),
        costs=tuple(found.costs),
        findings=tuple(dict.fromkeys([*gone, *find_size_findings(found.datasets), *found.findings])),
        missing=tuple(found.missing),
        versions=find_versions(),
        references=REFERENCES,
        resamples=RESAMPLES,
        seed=SEED,
    )
