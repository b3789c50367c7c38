"""A run without progress is reported once per stall, and the record learns how long it was."""

import logging
import time

from atft_model.training.stall import StallWatch


def test_a_stall_is_reported_once_and_its_length_handed_over(caplog):
    said = []
    watch = StallWatch(0.1, lambda after, seconds: said.append((after, seconds > 0.1)))
    with caplog.at_level(logging.WARNING, "atft"), watch.running():
        assert watch.beat("step 1") == []
        time.sleep(0.5)
        (stall,) = watch.beat("step 2")
        assert stall[0] == "step 1"
        assert 0.4 < stall[1] < 30
        assert watch.beat("step 3") == []
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("[STALL] no progress for 0 s, after step 1")
    assert said == [("step 1", True)]


def test_progress_is_no_stall(caplog):
    watch = StallWatch(5.0)
    with caplog.at_level(logging.WARNING, "atft"), watch.running():
        for step in range(20):
            assert watch.beat(f"step {step}") == []
            time.sleep(0.01)
    assert not caplog.records
