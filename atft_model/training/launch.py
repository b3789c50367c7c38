"""Starts one training command in several processes, by ``torchrun``, and says why they ended.

``python -m atft_model train --nproc 2 ...`` and ``torchrun --nproc-per-node 2 -m atft_model train
...`` are the same run; the first ends with one line that names the process that failed.
"""

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, get_error_handler
from torch.distributed.run import parse_args, run

from atft_model.errors import InputError


def launch(nproc: int, torchrun: Sequence[str], command: Sequence[str]) -> int:
    """Runs ``python -m atft_model <command>`` in ``nproc`` processes; the exit code of the run.

    Args:
        torchrun: Further arguments of torchrun, for several machines.
    """
    # torchrun would give each process one thread, and print a warning about it.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // nproc)))
    # Or each process warns that every parameter was used: that is as it should be.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    logging.disable(logging.ERROR)  # torchrun's account of a failure, which is ours to give
    try:
        # torchrun's own folder, by which a process says why it ended, would stay for ever.
        with tempfile.TemporaryDirectory(prefix="torchrun_") as folder:
            words = [f"--nproc-per-node={nproc}", f"--log-dir={folder}", *torchrun]
            run(parse_args([*words, "--module", "atft_model", *command]))
    except ChildFailedError as error:
        codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        said = {rank: recorded(failure.message) for rank, failure in error.failures.items()}
        print(f"atft_model: {reason(codes, said)}", file=sys.stderr)
        return 2 if 2 in codes.values() else 1
    except SignalException as error:
        return 128 + error.sigval
    return 0


def record_reason(error: InputError) -> None:
    """Leaves a process's reason to end for the one that launched it, which says it once."""
    get_error_handler().record_exception(error)


def recorded(message: str | Mapping[str, str]) -> str:
    """What ``record_reason`` left; torch hands over the whole record, or words of its own."""
    return message if isinstance(message, str) else message["message"]


def reason(codes: Mapping[int, int], said: Mapping[int, str]) -> str:
    """Why a run of several processes ended, from what each left; those that are missing lived.

    When one fails the launcher ends the others (SIGTERM), and they may fail for want of it: bad
    input goes before a signal, a signal before an error.
    """
    for rank in sorted(codes):
        if codes[rank] == 2:
            return said[rank].removeprefix(f"{InputError.__name__}: ")
    for rank in sorted(codes):
        if codes[rank] < 0 and codes[rank] != -signal.SIGTERM:
            name = signal.Signals(-codes[rank]).name
            hint = " (perhaps out of memory)" if name == "SIGKILL" else ""
            return (
                f"rank {rank} was ended by {name}{hint}, and the others with it; go on from the "
                "checkpoint with --resume"
            )
    rank = min(codes)
    return (
        f"rank {rank} ended with exit code {codes[rank]} (its own words stand above), and the "
        "others with it; go on from the checkpoint with --resume"
    )
