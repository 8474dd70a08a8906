import signal
import threading

import pytest

from counterflow.stopping import StoppedBetweenSteps, between_steps


@pytest.fixture(autouse=True)
def handlers():
    before = {signum: signal.signal(signum, signal.default_int_handler) for signum in (signal.SIGINT, signal.SIGTERM)}
    yield
    for signum, does in before.items():
        signal.signal(signum, does)


def loop(steps, done, during=None):
    with between_steps() as request:
        request.listen()
        for step in range(steps):
            if during is not None and step == 2:
                during()
            done.append(step)
            if request.signum is not None:
                raise StoppedBetweenSteps


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_acts_when_the_step_is_done(signum):
    done: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        loop(5, done, lambda: signal.raise_signal(signum))
    assert done == [0, 1, 2] and signal.getsignal(signum) == signal.default_int_handler


def test_a_second_signal_acts_at_once():
    done: list[int] = []

    def twice():
        signal.raise_signal(signal.SIGTERM)
        done.append("still here")
        signal.raise_signal(signal.SIGINT)
        done.append("not here")

    with pytest.raises(KeyboardInterrupt):
        loop(5, done, twice)
    assert done == [0, 1, "still here"] and signal.getsignal(signal.SIGINT) == signal.default_int_handler


def test_a_signal_in_the_last_step_is_not_lost():
    done: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        loop(3, done, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt), between_steps() as request:
        request.listen()
        signal.raise_signal(signal.SIGINT)
        done.append(3)
    assert done == [0, 1, 2, 3]


def test_ignored_signals_stay_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    done: list[int] = []
    loop(5, done, lambda: signal.raise_signal(signal.SIGINT))
    assert done == [0, 1, 2, 3, 4]


def test_an_error_is_not_hidden_and_other_threads_have_no_handlers():
    with pytest.raises(ZeroDivisionError), between_steps() as request:
        request.listen()
        signal.raise_signal(signal.SIGINT)
        raise ZeroDivisionError
    done: list[int] = []
    thread = threading.Thread(target=loop, args=(3, done))
    thread.start()
    thread.join()
    assert done == [0, 1, 2]
