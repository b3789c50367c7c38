import subprocess
import sys
import time
from pathlib import Path

import pytest

from atft_model import process

CHILD = """
import signal, sys, time
from atft_model.process import die_with_parent
signal.signal(signal.SIGTERM, signal.SIG_IGN)
die_with_parent()
open(sys.argv[1], "w").close()
time.sleep(60)
"""
PARENT = """
import os, subprocess, sys, time
words = [sys.executable, "-c", *sys.argv[1:]]
child = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
while not os.path.exists(sys.argv[2]):
    time.sleep(0.01)
print(child.pid)
"""


def test_a_process_ends_with_its_parent_even_if_no_signal_reaches_it(tmp_path):
    words = [sys.executable, "-c", PARENT, CHILD, str(tmp_path / "up")]
    child = int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    end = time.monotonic() + 20
    while _running(child):
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("flags", "has"),
    [("sse2 avx512_bf16 avx", True), ("amx_bf16", True), ("avx512f avx512_bf16x", False)],
)
def test_the_processors_flags_say_whether_it_multiplies_bfloat16(flags, has, tmp_path, monkeypatch):
    facts = tmp_path / "cpuinfo"
    facts.write_text(f"model name: x\nflags\t: fpu {flags}\n")
    monkeypatch.setattr(process, "CPU_FACTS", facts)
    assert process.cpu_multiplies_bfloat16() is has
    facts.unlink()
    assert not process.cpu_multiplies_bfloat16()


def _running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
