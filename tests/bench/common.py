"""What the benches share: running commands, medians of rounds, raw runs as JSON. No packages needed."""

import json
import os
import platform
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
PICTURES = HERE.parent.parent / "demo/pictures"
# Some machines pin OpenBLAS to older kernels by these; a peer should run as fast as it can.
UNSET = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")


class Failed(Exception):
    """A contestant that does not run; the others go on."""


@dataclass
class Ran:
    """A command that has ended: its standard output, and what all its threads took."""

    output: str
    seconds: float
    cpu_seconds: float
    peak_mib: float

    def lines(self) -> list[dict]:
        """Its lines of JSON."""
        return [json.loads(line) for line in self.output.splitlines() if line.startswith("{")]


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in UNSET}


def run(command: list, expected: tuple[int, ...] = (0,)) -> Ran:
    """Runs a command to its end. Call it from a small process: a child's peak memory begins with its parent's."""
    import time

    words = [str(word) for word in command]
    started = time.perf_counter()
    process = subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )
    # Together, since who fills one pipe while the other is read would wait for ever.
    output, errors = drain(process)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in expected:
        raise Failed(f"{' '.join(words)}\nended with {process.returncode}: {errors[-2000:]}")
    return Ran(output, seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def drain(process: subprocess.Popen) -> tuple[str, str]:
    import threading

    errors: list[str] = []
    reader = threading.Thread(target=lambda: errors.append(process.stderr.read()))
    reader.start()
    output = process.stdout.read()
    reader.join()
    return output, errors[0]


def python(script: str, *arguments) -> list:
    """The command of another Python that runs a bench's script."""
    return [sys.executable, HERE / script, *arguments]


def median(values) -> float:
    return statistics.median(values)


def ratio(rounds: list[dict], who: str, beside: str) -> float | None:
    """Median of the rounds' ratios; none where one of the two never ran."""
    found = [round[who] / round[beside] for round in rounds if who in round and beside in round]
    return statistics.median(found) if found else None


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def machine(qbridge: Path) -> dict:
    """What `qbridge doctor` tells of this machine, without what changes from minute to minute."""
    found = json.loads(run([qbridge, "doctor", "--json"], expected=(0, 1)).output)["machine"]
    kept = ("cpu", "cores", "usable_threads", "instruction_sets", "memory_total", "platform", "version", "llama_cpp")
    return {name: found[name] for name in kept if name in found} | {"kernel": platform.release()}


def versions() -> dict[str, str]:
    """Of the packages that take part."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("torch", "transformers", "onnxruntime"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            pass
    return found
