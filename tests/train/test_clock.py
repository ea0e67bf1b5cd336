import time

import pytest

from maxlm.train.clock import Clock, Speed


def test_parts_and_compute_sum_to_the_total_and_start_again():
    clock = Clock()
    with clock.part("data_wait"):
        time.sleep(0.02)
    split = clock.split()
    assert split["data_wait"] >= 0.02
    parts = split["compute"] + split["data_wait"] + split["save_wait"] + split["eval"]
    assert parts == pytest.approx(split["total"])
    assert clock.split()["data_wait"] == 0


def test_speed_is_taken_over_bursts_and_forgets_old_steps():
    speed = Speed()
    speed.add(1, 100, 60.0)  # compiling
    for _ in range(50):  # two steps seen at once, then a pause: 1000 tokens a second
        speed.add(1, 100, 0.199)
        tokens, step = speed.add(1, 100, 0.001)
    assert tokens == pytest.approx(1000, rel=0.06)
    assert step == pytest.approx(0.1, rel=0.06)
