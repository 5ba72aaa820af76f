"""Where the tests' processor time goes: python -m pytest -p tools.test_times

After the tests, it prints for each file, and for each of the longest tests, the processor time of
this process and of the child processes that have ended, how much of it numba took to compile, and
how many child processes were started. Processor time hardly depends on what else the machine does.
"""

import collections
import json
import os
import sys
import time

import pytest

# numba loads NumPy, before tests/conftest.py can set this.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from numba.core import event

LONGEST = 60  # tests that are printed
COLUMNS = ("cpu", "child", "compile", "wall", "children")
_total = collections.Counter()
_tests = {}


class _Compiling(event.Listener):
    """Adds up the processor time of the outermost compilations of this process."""

    depth = 0

    def on_start(self, _):
        self.depth += 1
        if self.depth == 1:
            self.started = time.process_time()

    def on_end(self, _):
        self.depth -= 1
        if self.depth == 0:
            _total["compile"] += time.process_time() - self.started


def _audit(name, _):
    if name in ("subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn"):
        _total["children"] += 1


def _now() -> collections.Counter:
    times = os.times()
    child = times.children_user + times.children_system
    return _total | collections.Counter(
        cpu=times.user + times.system + child, child=child, wall=time.perf_counter()
    )


def pytest_configure(config):
    config.times_start = _now()
    event.register("numba:compile", _Compiling())
    sys.addaudithook(_audit)


@pytest.hookimpl(wrapper=True)
def pytest_collection(session):
    before = _now()
    try:
        return (yield)
    finally:
        session.config.times_collection = _since(before)


def _since(before: collections.Counter) -> dict:
    now = _now()
    return {column: now[column] - before[column] for column in COLUMNS}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    item.times_before = _now()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    report.user_properties.append(("times", _since(item.times_before)))
    item.times_before = _now()
    return report


def pytest_runtest_logreport(report):
    for name, times in report.user_properties:
        if name == "times":
            _tests.setdefault(report.nodeid, collections.Counter()).update(times)


def pytest_sessionfinish(session):
    config = session.config
    if hasattr(config, "workeroutput"):
        config.workeroutput["times_collection"] = config.times_collection
        config.workeroutput["times_all"] = _since(config.times_start)


class _Workers:
    """Only where pytest-xdist is there."""

    def pytest_testnodedown(self, node):
        for name in ("times_collection", "times_all"):
            if name in getattr(node, "workeroutput", {}):
                _tests.setdefault(f"[{node.gateway.id} {name[6:]}]", collections.Counter()).update(
                    node.workeroutput[name]
                )


def pytest_plugin_registered(plugin, manager):
    if manager.hasplugin("dsession") and not manager.hasplugin("times_workers"):
        manager.register(_Workers(), "times_workers")


def pytest_terminal_summary(terminalreporter, config):
    files = collections.defaultdict(collections.Counter)
    for test, times in _tests.items():
        files[test.partition("::")[0]].update(times, tests=1)
    if hasattr(config, "times_start"):
        files["[this process]"].update(_since(config.times_start))
    out = os.environ.get("TIMES_OUT")
    if out:
        with open(out, "w") as f:
            json.dump({"files": files, "tests": _tests}, f)
    total = collections.Counter()
    for name, times in files.items():
        if not name.startswith("["):
            total.update(times)
    files["all tests"] = total
    head = "".join(f"{column:>10}" for column in (*COLUMNS, "tests"))
    for title, table in (("file", files), ("test", _tests)):
        terminalreporter.section(f"processor seconds of each {title}")
        terminalreporter.line(head)
        for name, times in sorted(table.items(), key=lambda row: -row[1]["cpu"])[:LONGEST]:
            cells = "".join(f"{times[column]:10.2f}" for column in COLUMNS)
            terminalreporter.line(f"{cells}{times['tests']:10}  {name}")
