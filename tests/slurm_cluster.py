"""A Slurm cluster of one node on this machine, for tests: everything of it lies in one temporary folder.

Debian's munged, slurmctld and slurmd as root, without systemd: processes are tracked by their parents
(proctrack/linuxproc), cores are not bound. The daemons die with the process that started them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "setpriv")

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
MailProg=/bin/true
MpiDefault=none
SwitchType=switch/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
JobRequeue=1
KillWait=120
NodeName={host} NodeAddr=127.0.0.1 CPUs=2
PartitionName=night Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""
"""cred_expire: a requeued job starts again after seconds. KillWait: a worker on a busy machine can save."""


def missing() -> list[str]:
    """What a cluster would need and is not here."""
    return [*(["root"] if os.getuid() else []), *(name for name in PROGRAMS if shutil.which(name) is None)]


class Cluster:
    """`start` it, use its `environment` for Slurm's commands, and `stop` it whatever happens."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}
        self._daemons: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        controller_port, node_port = free_ports()
        text = CONFIGURATION.format(
            folder=self.folder,
            host=socket.gethostname(),
            controller_port=controller_port,
            node_port=node_port,
        )
        (self.folder / "slurm.conf").write_text(text)
        files = {"key-file": "munge.key", "pid-file": "munge.pid", "seed-file": "munge.seed"}
        files |= {"socket": "munge.socket", "log-file": "munge.log"}
        options = [f"--{name}={self.folder / file}" for name, file in files.items()]
        self._daemon("munged", "--foreground", "--force", *options)
        self._wait_for((self.folder / "munge.socket").exists, "munged")
        self._daemon("slurmctld", "-D", "-c")
        self._daemon("slurmd", "-D", "-N", socket.gethostname())
        self._wait_for(lambda: "idle" in self.ask("sinfo", "--noheader", "--format=%T"), "an idle node")

    def ask(self, *command: str) -> str:
        """What a command of Slurm's prints; "" where it fails."""
        done = subprocess.run(
            command, env={**os.environ, **self.environment}, capture_output=True, text=True, check=False
        )
        return done.stdout if done.returncode == 0 else ""

    def stop(self) -> None:
        """End the daemons and whatever still belongs to the cluster."""
        for daemon in reversed(self._daemons):
            daemon.kill()
            daemon.wait()
        for pid in self._strays():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _strays(self) -> list[int]:
        """What outlives slurmd: job steps, which keep its log open, and workers, which know its settings."""
        found, mark = [], f"SLURM_CONF={self.folder}/slurm.conf".encode()
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                files = [os.readlink(file) for file in (folder / "fd").iterdir()]
                known = mark in (folder / "environ").read_bytes().split(b"\0")
                if known or str(self.folder / "slurmd.log") in files:
                    found.append(int(folder.name))
        return found

    def _daemon(self, *command: str) -> None:
        with (self.folder / f"{command[0]}.out").open("wb") as out:
            self._daemons.append(
                subprocess.Popen(
                    ["setpriv", "--pdeathsig", "KILL", *command],
                    env={**os.environ, **self.environment},
                    stdout=out,
                    stderr=out,
                )
            )

    def _wait_for(self, condition: object, what: str) -> None:
        deadline = time.monotonic() + 120
        while not condition():  # type: ignore[operator]
            if time.monotonic() > deadline or any(daemon.poll() is not None for daemon in self._daemons):
                said = "\n".join(path.read_text() for path in self.folder.glob("*.out"))
                raise RuntimeError(f"no {what}:\n{said}")
            time.sleep(0.1)


def free_ports() -> tuple[int, int]:
    """Two ports of the loopback that nobody listens on."""
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]
