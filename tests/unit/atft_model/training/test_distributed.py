"""Several processes: who is who, what each reports, and that a difference between them is seen."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from atft_model.settings import Place, place_from_environment
from atft_model.training.distributed import ALONE, Group
from atft_model.training.launch import reason

ROOT = Path(__file__).parents[4]


def test_the_place_is_torchruns_word_and_nobody_elses():
    given = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}
    assert place_from_environment({**given, "TORCHELASTIC_RUN_ID": "x"}) == Place(3, 1, 4, True)
    assert place_from_environment(given) == Place()  # a cluster's own variables, and one process


def test_each_process_takes_its_equal_part_in_order():
    parts = list(range(6))
    assert [list(Group(rank, 3).mine(parts)) for rank in range(3)] == [[0, 1], [2, 3], [4, 5]]
    assert list(ALONE.mine(parts)) == parts


@pytest.mark.parametrize(
    ("codes", "said", "words"),
    [
        ({0: 1, 1: -9}, {0: "Connection closed", 1: ""}, "rank 1 was ended by SIGKILL (perhaps"),
        ({0: -15, 1: -11}, {0: "", 1: ""}, "rank 1 was ended by SIGSEGV, and"),
        ({1: 1}, {1: "x"}, "rank 1 ended with exit code 1 (its own words stand above)"),
        ({0: 2, 1: 2}, {0: "InputError: panel: gone", 1: "InputError: other"}, "panel: gone"),
        ({0: -9, 1: 2}, {0: "", 1: "InputError: panel: gone"}, "panel: gone"),
    ],
)
def test_the_reason_names_the_rank_that_failed_first_not_those_that_followed(codes, said, words):
    assert reason(codes, said).startswith(words)
    assert "-" + str(signal.SIGTERM.value) not in reason(codes, said)


SCRIPT = """
import torch
from atft_model.errors import InputError
from atft_model.settings import place_from_environment
from atft_model.training.distributed import open_group

with open_group(place_from_environment(), "cpu") as group:
    rank = torch.tensor([float(group.rank), 1.0])
    assert group.total(rank.clone()).tolist() == [1.0, 2.0]
    assert group.largest(rank.clone()).tolist() == [1.0, 1.0]
    group.check_same(lambda: "the same", "weights")
    try:
        group.check_same(lambda: f"not {group.rank}", "weights")
    except InputError as error:
        print(error)
"""


@pytest.mark.slow
def test_two_processes_add_up_and_a_difference_between_them_is_refused():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"TORCHELASTIC_RUN_ID": "test", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
              "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT], cwd=ROOT, text=True, stdout=subprocess.PIPE,
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]  # fmt: skip
    for process in processes:
        printed, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        assert printed.startswith("training: weights of rank 1 differ from those of rank 0; ")
