"""What holds for the whole suite: which tests run, that none skips, and that none touches the user's home."""

import itertools
import os
import signal
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.engines.installed import engines_of, missing_engines

pytest_plugins = ["tests.engines.fixtures"]

# Seeded: the same examples on every run, and nothing kept between runs. `--soak` looks for new ones.
settings.register_profile("suite", derandomize=True, database=None, deadline=None, print_blob=True)
settings.register_profile("soak", database=None, deadline=None, print_blob=True, max_examples=1000)

_LEFT_OUT = pytest.StashKey[dict[str, list[str]]]()
_SKIPPED = pytest.StashKey[list[str]]()
_FAILED = pytest.StashKey[bool]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="run the tests marked soak too")
    parser.addoption(
        "--backend",
        action="append",
        choices=["sqlite-local", "postgres-local", "postgres-s3", "mixed"],
        help="run all end-to-end tests on this backend, and on no other; may be given again",
    )


def pytest_configure(config: pytest.Config) -> None:
    # A shell that starts a job in the background has it ignore Ctrl-C, and so would every program that the tests interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    config.stash[_LEFT_OUT] = {}
    config.stash[_SKIPPED] = []
    settings.load_profile("soak" if config.getoption("--soak") else "suite")
    config.pluginmanager.register(_SkipWatch(config.stash[_SKIPPED]), "tensorkeep-skip-watch")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what can't or shouldn't run here: deselected and named, never skipped."""
    reasons = {}
    if os.geteuid() != 0:
        reasons["root"] = "they need root"
        reasons |= {name: f"{name} is not installed" for name in missing_engines()}
    if not config.getoption("--soak"):
        reasons["soak"] = "`make soak` runs them"
    kept, left_out = [], []
    for item in items:
        for name in engines_of(item):
            item.add_marker(name)
    for item in items:
        mark = next((mark for mark in reasons if item.get_closest_marker(mark)), None)
        if mark is None:
            kept.append(item)
        else:
            left_out.append(item)
            config.stash[_LEFT_OUT].setdefault(f"marked {mark}: {reasons[mark]}", []).append(item.nodeid)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = kept


class _SkipWatch:
    """Notes every test that skipped, or was expected to fail, without being marked gpu."""

    def __init__(self, skipped: list[str]) -> None:
        self._skipped = skipped

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and "gpu" not in report.keywords:
            self._skipped.append(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self._skipped.append(report.nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take over what a process of xdist noticed; each collects all tests, and says the same of what is left out."""
    noticed = getattr(node, "workeroutput", {})
    node.config.stash[_LEFT_OUT].update(noticed.get("left_out", {}))
    skipped = node.config.stash[_SKIPPED]
    skipped.extend(name for name in noticed.get("skipped", ()) if name not in skipped)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    item.stash[_FAILED] = item.stash.get(_FAILED, False) or report.failed
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Keep the folders of devices that a test has made for tests to come, before its folder is removed; after a failure all stays."""
    folder = getattr(item, "funcargs", {}).get("tmp_path")
    worlds = sys.modules.get("tests.faults.store_world")
    if worlds is not None and folder is not None and not item.stash.get(_FAILED, False):
        worlds.recycle(folder)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["left_out"] = session.config.stash[_LEFT_OUT]
        output["skipped"] = session.config.stash[_SKIPPED]
    elif session.config.stash[_SKIPPED]:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if counts := [
        value
        for report in terminalreporter.getreports("passed")
        for key, value in getattr(report, "user_properties", ())
        if key == "fuzz"
    ]:
        terminalreporter.section("fuzzed")
        for line in counts:
            terminalreporter.line(line)
    for reason, names in config.stash[_LEFT_OUT].items():
        terminalreporter.section(f"left out: {len(names)} tests {reason}")
        for name in names:
            terminalreporter.line(name)
    if skipped := config.stash[_SKIPPED]:
        terminalreporter.section("failed: only tests marked gpu may skip", red=True, bold=True)
        for name in skipped:
            terminalreporter.line(name)


@pytest.fixture(scope="session")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """New folders, one after the other; a numbered folder of the factory would list all others for every test."""
    base = tmp_path_factory.mktemp("homes")
    return (base / str(number) for number in itertools.count())


@pytest.fixture(autouse=True)
def home(homes: Iterator[Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder of the test's own: the default store and caches lie under it."""
    folder = next(homes)
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    own = ("TENSORKEEP_STORE", "TENSORKEEP_TOKEN", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME")
    for name in (*own, "COLUMNS", "LINES"):  # the last two are set by readline, wherever a process loads it
        monkeypatch.delenv(name, raising=False)
    return folder
