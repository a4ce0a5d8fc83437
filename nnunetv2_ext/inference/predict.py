"""Prediction of many cases: one process, and a segmentation appears under its name when it is complete.

nnU-Net's own command starts processes that read and write beside the network, each of which imports torch anew. Here
threads do: the next cases are read and prepared while the network works, and the last one is enlarged and written.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from nnunetv2_ext.inference.cases import Case, prepare_case
from nnunetv2_ext.inference.segmentation import segment_by_class
from nnunetv2_ext.io.files import ended_by_an_exception, whole_file

if TYPE_CHECKING:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

__all__ = ["predict_cases"]


class _Step(NamedTuple):
    """A case on its way, with the seconds that it has taken so far."""

    data: Tensor
    properties: dict[str, Any]
    seconds: float


class _AtOnce(Executor):
    """Calls a function when it is submitted, in the same thread; an error is kept as in other executors."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def predict_cases(predictor: nnUNetPredictor, cases: Sequence[Case], output: Path, *, ahead: int = 0) -> list[str]:
    """Segment cases; one that fails does not keep the others from being segmented.

    Args:
        predictor: see `nnunetv2_ext.inference.backends.load_predictor`.
        cases: see `nnunetv2_ext.inference.cases.find_cases`.
        output: folder for the segmentations, `CASE` and the ending of the model's images; it is made.
        ahead: cases that are prepared while the network works; 0: one thing after the other, with the least memory.

    Returns:
        What went wrong, one sentence per case.
    """
    output.mkdir(parents=True, exist_ok=True)
    ending = predictor.dataset_json["file_ending"]
    failures: list[str] = []

    def prepare(case: Case) -> _Step:
        start = time.perf_counter()
        data, properties = prepare_case(case, predictor)
        return _Step(torch.from_numpy(data), properties, time.perf_counter() - start)

    def compute(prepared: Future[_Step]) -> _Step:
        start, step = time.perf_counter(), prepared.result()
        waited = time.perf_counter() - start
        logits = predictor.predict_logits_from_preprocessed_data(step.data)
        return _Step(logits, step.properties, step.seconds + time.perf_counter() - start - waited)

    def write(case: Case, computed: Future[_Step]) -> float:
        start, step = time.perf_counter(), computed.result()
        segmentation = segment_by_class(step.data, step.properties, predictor)
        with whole_file(output / f"{case.name}{ending}") as partial:
            predictor.plans_manager.image_reader_writer_class().write_seg(segmentation, str(partial), step.properties)
        return step.seconds + time.perf_counter() - start

    def report(number: int, case: Case, written: Future[float]) -> None:
        error = written.exception()
        if error is None:
            print(f"[{number}/{len(cases)}] {case.name}: {written.result():.1f} s", flush=True)
            return
        # Readers, torch and nnU-Net have their own types of errors; the next case may be all right.
        reason = " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
        failures.append(f"{case.images[0]} could not be segmented ({reason}).")
        print(f"[{number}/{len(cases)}] {case.name} failed", flush=True)

    with ExitStack() as stack:
        stack.enter_context(ended_by_an_exception())
        here = _AtOnce()
        reader, writer = (ThreadPoolExecutor(ahead), ThreadPoolExecutor(1)) if ahead else (here, here)
        for executor in (reader, writer):
            stack.callback(executor.shutdown, cancel_futures=True)
        last: tuple[int, Case, Future[float]] | None = None
        for number, (case, prepared) in enumerate(_ahead(reader, prepare, cases, ahead), start=1):
            computed = here.submit(compute, prepared)
            # One segmentation is written at a time, so that the logits of two cases at most are in memory.
            if last is not None:
                report(*last)
            last = number, case, writer.submit(write, case, computed)
            del prepared, computed
            if not ahead:
                report(*last)
                last = None
        if last is not None:
            report(*last)
    return failures


def _ahead(
    executor: Executor, prepare: Callable[[Case], _Step], cases: Sequence[Case], ahead: int
) -> Iterator[tuple[Case, Future[_Step]]]:
    """Yield each case with its preparation, while that of `ahead` further ones goes on."""
    waiting: deque[tuple[Case, Future[_Step]]] = deque()
    for case in cases:
        waiting.append((case, executor.submit(prepare, case)))
        if len(waiting) > ahead:
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()
