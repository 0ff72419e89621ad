"""Workers: order, errors, and the number of threads afterwards."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from outlierscope.model.workers import side_by_side


def test_results_come_in_order_from_single_core_threads():
    before = torch.get_num_threads()

    def work(number):
        time.sleep(0.01 if number % 2 else 0)
        return number, torch.get_num_threads(), threading.current_thread() is threading.main_thread()

    results = list(side_by_side(work, range(20)))
    assert results == [(number, 1, False) for number in range(20)]
    assert torch.get_num_threads() == before
    seen = []
    thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert seen == [before]


def test_errors_arrive_and_stop_the_rest():
    before, done = torch.get_num_threads(), []

    def work(number):
        if number == 3:
            raise ValueError("the third")
        time.sleep(0.005)
        done.append(number)

    with pytest.raises(ValueError, match="the third"):
        list(side_by_side(work, range(1000)))
    assert len(done) < 100
    assert torch.get_num_threads() == before


def test_stopping_early_stops_the_work():
    done = []
    results = side_by_side(lambda number: (time.sleep(0.002), done.append(number)), range(1000))
    next(results)
    results.close()
    assert len(done) < 100
