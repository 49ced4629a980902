"""What keeps one test out of the next."""

import threading

from tests.lab.fixtures import still_running


def test_threads_that_end_are_waited_for_with_those_that_they_start_and_one_that_hangs_is_named() -> None:
    before, goes_on, ends = set(threading.enumerate()), threading.Event(), threading.Event()

    def start_another() -> None:
        goes_on.wait()
        threading.Thread(target=ends.wait, name="another").start()

    threading.Thread(target=start_another, name="one").start()
    assert still_running(before, 0.0) == ["one"]
    goes_on.set()
    while [thread.name for thread in threading.enumerate() if thread not in before] != ["another"]:
        pass
    assert still_running(before, 0.01) == ["another"]
    threading.Timer(0.05, ends.set).start()
    assert still_running(before, 60.0) == []
