"""A stand-in for Slurm's commands, started by name: `fake_slurm.py sbatch --parsable slurm/train.sbatch`.

It keeps a queue in a file and runs nothing: tests change states themselves. Files beside it make it fail. Only the
standard library, so that one starts in a moment.
"""

import json
import os
import re
import signal
import sys
from pathlib import Path

FOLDER = Path(os.environ["FAKE_SLURM"])
QUEUE, CALLS = FOLDER / "queue.json", FOLDER / "calls.log"


def fault(name: str) -> bool:
    """Return whether a fault is asked for; its file holds how many times, or from which call on."""
    file = FOLDER / name
    if not file.is_file():
        return False
    left = int(file.read_text())
    file.write_text(str(left - 1))
    if left <= 1:
        file.unlink()
    return True


def numbers(text: str) -> list[str]:
    found: list[str] = []
    for part in text.partition("%")[0].split(","):
        low, _, high = part.partition("-")
        found += [str(number) for number in range(int(low), int(high or low) + 1)]
    return found


def sbatch(words: list[str], queue: list[dict[str, str]]) -> None:
    *options, script = words
    lines = Path(script).read_text().splitlines()
    asked = [*(line.split(maxsplit=1)[1] for line in lines if line.startswith("#SBATCH ")), *options]
    value = {name: content for name, _, content in (option.partition("=") for option in asked)}
    if value.get("--partition") == "nowhere":
        sys.exit("sbatch: error: invalid partition specified: nowhere")
    counter = FOLDER / "last"
    job = str(1 + (int(counter.read_text()) if counter.is_file() else 0))
    counter.write_text(job)
    before = re.findall(r":(\d+(?:_\d+)?)", value.get("--dependency", ""))
    for index in numbers(value["--array"]) if "--array" in value else ["N/A"]:
        queue.append(
            {
                "job": job,
                "index": index,
                "state": "PENDING",
                "reason": "Dependency" if before else "Priority",
                "after": ",".join(f"afterok:{number}(unfulfilled)" for number in before) or "(null)",
                "name": value["--job-name"],
                "limit": value.get("--array", "").partition("%")[2],
            }
        )
    QUEUE.write_text(json.dumps(queue))
    if (FOLDER / "kill").is_file() and not fault("spare"):
        # The submission is killed when the job is in the queue, and before it knows.
        (FOLDER / "kill").unlink()
        submission = os.getppid()
        # Never the process of the tests, which was started without this variable.
        started_with = Path(f"/proc/{submission}/environ").read_bytes().split(b"\0")
        assert os.fsencode(f"FAKE_SLURM={FOLDER}") in started_with
        os.kill(submission, signal.SIGKILL)
    if fault("lost"):
        sys.exit("sbatch: error: Batch job submission failed: Socket timed out on send/recv operation")
    print(job)


def squeue(queue: list[dict[str, str]]) -> None:
    for entry in queue:
        times = ("1:02:03", "2-00:00:00", "gpu01") if entry["state"] == "RUNNING" else ("0:00", "2-00:00:00", "")
        start = (entry["job"], entry["index"], entry["state"], entry["reason"], *times)
        print("|".join((*start, entry["after"], entry["name"])))


def scancel(words: list[str], queue: list[dict[str, str]]) -> None:
    gone = {word for word in words if not word.startswith("-")}
    pending = "--state=PENDING" in words
    kept = [
        entry
        for entry in queue
        if not gone & {entry["job"], f"{entry['job']}_{entry['index']}"} or (pending and entry["state"] != "PENDING")
    ]
    QUEUE.write_text(json.dumps(kept))


if __name__ == "__main__":
    program, *rest = sys.argv[1:]
    with CALLS.open("a") as log:
        log.write(f"{program} {' '.join(rest)}\n")
    if fault("away"):
        sys.exit(f"{program}: error: Unable to contact slurm controller (connect failure)")
    content = json.loads(QUEUE.read_text()) if QUEUE.is_file() else []
    if program == "sbatch":
        sbatch(rest, content)
    elif program == "squeue":
        squeue(content)
    elif program == "scancel":
        scancel(rest, content)
