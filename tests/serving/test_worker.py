import threading

import pytest

from echo_ska.serving.worker import BusyError, Job, Worker


@pytest.fixture
def worker():
    worker = Worker(most_waiting=3)
    yield worker
    assert worker.close()


def test_jobs_run_in_order_one_at_a_time_in_one_thread(worker):
    done, running, ended = [], [], threading.Event()
    begin = threading.Event()

    def job(number):
        def run(_):
            begin.wait(10)
            running.append(number)
            assert len(running) == 1
            done.append((number, threading.get_ident()))
            running.clear()
            if number == 2:
                ended.set()

        return Job(run)

    for number in range(3):
        worker.submit(job(number))
    begin.set()
    assert ended.wait(10)
    assert [number for number, _ in done] == [0, 1, 2]
    assert len({thread for _, thread in done}) == 1


def test_a_job_that_fails_does_not_end_the_others(worker, caplog):
    def fail(_):
        raise RuntimeError("broken")

    ended = threading.Event()
    worker.submit(Job(fail))
    worker.submit(Job(lambda _: ended.set()))
    assert ended.wait(10)
    assert "broken" in caplog.text


def test_only_so_many_wait_and_those_called_off_do_not_count(worker):
    started = threading.Event()

    def run(job):
        started.set()
        while not job.is_cancelled:
            threading.Event().wait(0.01)

    first, waiting, ran = Job(run), [Job(lambda _: None) for _ in range(3)], threading.Event()
    worker.submit(first)
    assert started.wait(10)
    for job in waiting:
        worker.submit(job)
    assert worker.unfinished == 4
    with pytest.raises(BusyError, match="3 requests wait already"):
        worker.submit(Job(lambda _: None))
    waiting[1].cancel()
    assert worker.unfinished == 3
    worker.submit(Job(lambda _: ran.set()))
    first.cancel()
    assert ran.wait(10)


def test_what_waits_when_it_closes_is_told_so_whatever_is_submitted_then():
    worker, started, goes_on, told = Worker(), threading.Event(), threading.Event(), []

    def busy(_):
        started.set()
        goes_on.wait(10)

    worker.submit(Job(busy))
    assert started.wait(10)
    for _ in range(2):
        worker.submit(Job(lambda job: told.append(job.is_cancelled)))
    assert not worker.close(timeout=0)
    with pytest.raises(BusyError, match="being stopped"):
        worker.submit(Job(busy))
    goes_on.set()
    assert worker.close()
    assert told == [True, True]


def test_a_closed_worker_calls_all_off_and_takes_nothing():
    worker, started = Worker(), threading.Event()

    def run(job):
        started.set()
        while not job.is_cancelled:
            threading.Event().wait(0.01)

    worker.submit(Job(run))
    assert started.wait(10)
    assert worker.close()
    with pytest.raises(BusyError, match="being stopped"):
        worker.submit(Job(run))
