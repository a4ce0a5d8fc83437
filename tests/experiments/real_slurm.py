"""A Slurm of one node that a test starts for itself, where its programs are installed and root runs the tests."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "squeue", "scontrol", "scancel")
_SEARCH_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
_CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
GresTypes=gpu
SlurmdParameters=config_overrides
KillWait=10
MinJobAge=300
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=bf_interval=1,sched_interval=2
MessageTimeout=5
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=4000 Gres=gpu:2 State=UNKNOWN
PartitionName=low Nodes={host} Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=high Nodes={host} MaxTime=INFINITE State=UP PriorityTier=9
"""


def why_not() -> str:
    """Return why there can be no Slurm here; nothing if there can."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=_SEARCH_PATH) is None]
    if missing:
        return f"no Slurm is installed ({', '.join(missing)})"
    return "" if os.geteuid() == 0 else "only root can start Slurm"


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


class RealSlurm:
    """A controller and a node, with two CPUs and two GPUs that are none."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("state", "spool", "log", "munge"):
            (folder / name).mkdir(parents=True)
        self.file = folder / "slurm.conf"

    def start(self) -> None:
        key = self.folder / "munge" / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        names = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        self._run("munged", "--force", *(f"--{name}={key.with_suffix(f'.{end}')}" for name, end in names.items()))
        values = {"controller_port": _free_port(), "node_port": _free_port(), "folder": self.folder}
        self.file.write_text(_CONFIGURATION.format(host=socket.gethostname().partition(".")[0], **values))
        (self.folder / "gres.conf").write_text("Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n")
        self.start_controller()
        self._run("slurmd", "-f", str(self.file))
        deadline = time.monotonic() + 60
        while "idle" not in self.ask("sinfo", "--noheader", "--format=%T"):
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.2)

    def start_controller(self) -> None:
        self._run("slurmctld", "-f", str(self.file))

    def stop_controller(self) -> None:
        self._end("slurmctld.pid")

    def stop(self) -> None:
        if self.file.is_file():
            subprocess.run(["scancel", f"--user={os.geteuid()}"], env=self._environment(), check=False, timeout=30)
            time.sleep(0.5)
        for name in ("slurmd.pid", "slurmctld.pid", "munge/munge.pid"):
            self._end(name)

    def log(self) -> str:
        """Return what the controller has written."""
        return (self.folder / "log" / "slurmctld.log").read_text(errors="replace")

    def ask(self, *command: str) -> str:
        return subprocess.run(
            command, env=self._environment(), check=False, capture_output=True, text=True, timeout=60
        ).stdout

    def _run(self, program: str, *options: str) -> None:
        found = shutil.which(program, path=_SEARCH_PATH)
        assert found
        subprocess.run([found, *options], env=self._environment(), check=True, timeout=60)

    def _environment(self) -> dict[str, str]:
        # Without a bench's variables, by which its processes are known: the daemons outlive it.
        kept = {name: value for name, value in os.environ.items() if not name.startswith("nnUNet")}
        return {**kept, "SLURM_CONF": str(self.file)}

    def _end(self, name: str) -> None:
        """End a daemon, and wait until it is gone."""
        file = self.folder / name
        if not file.is_file():
            return
        pid = int(file.read_text())
        deadline = time.monotonic() + 30
        # By its command: its number may be another's by now, and one that nobody waits for keeps it when it has ended.
        own = os.fsencode(self.folder)
        while own in _command_of(pid) and time.monotonic() < deadline:
            os.kill(pid, signal.SIGTERM)
            time.sleep(0.1)
        file.unlink(missing_ok=True)
