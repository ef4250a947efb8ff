"""The suite on a real Slurm of this machine's own: Debian's slurm-wlm, two stand-ins for GPUs, no accounting."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from importlib.util import find_spec

import psutil
import pytest
from repository import PATIENCE, make_repository, notebooks_run, order, running_suite, suite, wait_until

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue")
os.environ["PATH"] += ":/usr/sbin:/sbin"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not all(map(shutil.which, NEEDED)), reason="Slurm is not installed"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a Slurm with devices of its own"),
    pytest.mark.skipif(not find_spec("snakemake_executor_plugin_slurm"), reason="Snakemake's Slurm plugin is missing"),
]
CONFIGURATION = """
ClusterName=suite
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
AuthInfo=socket={folder}/munge.socket
SlurmUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
GresTypes=gpu
NodeName=localhost NodeAddr=127.0.0.1 NodeHostname={host} CPUs=8 RealMemory=64000 Gres=gpu:2
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
CELL = """import os
with open("../devices", "a") as file:
    print(os.getpid(), os.environ["CUDA_VISIBLE_DEVICES"], os.environ["OMP_NUM_THREADS"], file=file)
"""


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """A Slurm of the module's own, on loopback; its commands find it through SLURM_CONF."""
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("state", "spool"):
        (folder / name).mkdir()
    for number in range(2):
        subprocess.run(["mknod", folder / f"gpu{number}", "c", "1", "3"], check=True)  # as harmless as /dev/null
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    host = socket.gethostname().split(".")[0]
    configuration = folder / "slurm.conf"
    configuration.write_text(CONFIGURATION.format(folder=folder, host=host, ports=free_ports(2)))
    (folder / "gres.conf").write_text(f"NodeName=localhost Name=gpu File={folder}/gpu[0-1]\n")
    srun = folder / "bin/srun"  # Snakemake's plugin drops SLURM_CONF, and the configuration is not in /etc
    srun.parent.mkdir()
    srun.write_text(f'#!/bin/sh\nSLURM_CONF="{configuration}" exec {shutil.which("srun")} "$@"\n')
    srun.chmod(0o755)
    munge = ["--socket", folder / "munge.socket", "--key-file", key, "--log-file", folder / "munge.log"]
    munge += ["--pid-file", folder / "munge.pid", "--seed-file", folder / "munge.seed"]
    changed = pytest.MonkeyPatch()
    changed.setenv("SLURM_CONF", str(configuration))
    changed.setenv("PATH", f"{srun.parent}:{os.environ['PATH']}")
    daemons = [
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for command in (["munged", "-F", "--force", *munge], ["slurmctld", "-D"], ["slurmd", "-D", "-N", "localhost"])
        if time.sleep(1) is None  # each needs the one before it
    ]
    try:
        wait_until(lambda: b"idle" in subprocess.run(["sinfo", "-h", "-o", "%t"], capture_output=True).stdout, 60)
        yield folder
    finally:
        subprocess.run(["scancel", "--user", "root"])
        with suppress(AssertionError):  # its jobs are processes of their own
            wait_until(lambda: jobs() == [], 30)
        changed.undo()
        for daemon in reversed(daemons):
            for process in [*psutil.Process(daemon.pid).children(recursive=True), daemon]:
                process.kill()
            daemon.wait()


def jobs():
    return subprocess.run(["squeue", "-h", "-o", "%T"], capture_output=True, text=True, check=True).stdout.split()


def test_the_suite_runs_on_slurm_with_a_gpu_a_notebook(slurm, tmp_path):
    """Two at a time on the two GPUs, four threads each; a job whose kernel is killed is sent again."""
    repository = make_repository(tmp_path, ["01", "03", "04", "10"], CELL)
    for number in ("03", "04"):
        (repository / f"wait{number}").touch()
    with running_suite(repository, "--cluster", "slurm", "--scenario", "class") as (process, _):
        wait_until(lambda: {"03", "04"} <= set(notebooks_run(repository)))
        shown = suite(repository, "status", "--scenario", "class").stdout
        assert shown.count(": running: started\n") == 2 and "10 some words: to do\n" in shown
        os.kill(devices(repository)[1][0], signal.SIGKILL)
        wait_until(lambda: len(notebooks_run(repository)) == 4)
        for number in ("03", "04"):
            (repository / f"wait{number}").unlink()
        output = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 0 and "All done in" in output, output
    assert sorted(order(repository)).count("10") == 1
    threads = min(4, os.cpu_count())
    assert sorted(rest for _, *rest in devices(repository)[1:3]) == [[0, threads], [1, threads]]
    assert jobs() == []


def devices(repository):
    """Of each notebook that ran: its process, its GPU, its threads."""
    return [[int(word) for word in line.split()] for line in (repository / "devices").read_text().splitlines()]


def test_a_killed_driver_leaves_its_job_and_the_same_command_ends_well(slurm, tmp_path):
    """The job that was left and the one that is sent for it take turns; the second repeats or finds the work."""
    repository = make_repository(tmp_path, ["03", "10"])
    (repository / "wait03").touch()
    with running_suite(repository, "--cluster", "slurm", "--scenario", "class") as (process, _):
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert jobs() == ["RUNNING"]
    command = [sys.executable, "workflow/suite.py", "--cluster", "slurm", "--scenario", "class"]
    again = subprocess.Popen(command, cwd=repository, stdout=subprocess.PIPE, text=True)
    wait_until(lambda: jobs() == ["RUNNING"] * 2)
    (repository / "wait03").unlink()
    output = again.communicate(timeout=PATIENCE)[0]
    assert again.returncode == 0 and "All done in" in output
    assert order(repository) in (["03", "10"], ["03", "03", "10"])


def test_an_interrupt_cancels_the_jobs(slurm, tmp_path):
    repository = make_repository(tmp_path, ["03"])
    (repository / "wait03").touch()
    with running_suite(repository, "--cluster", "slurm", "--scenario", "class") as (process, _):
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
    wait_until(lambda: jobs() == [], 60)
