"""Workers: order, errors, and the number of threads afterwards."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from outlierscope.model.workers import AHEAD, side_by_side


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


def test_only_a_few_are_begun_before_a_result_is_taken():
    lock, begun = threading.Lock(), []

    def note(number):
        with lock:
            begun.append(number)
        return number

    results = side_by_side(note, range(10_000))
    most = AHEAD * torch.get_num_threads() + 1
    for taken in range(100):
        assert next(results) == taken
        assert len(begun) <= taken + most
    results.close()
    assert len(begun) <= 100 + most
