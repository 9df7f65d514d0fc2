"""Settings of the whole suite, and a watch over it: no secret may be in anything that a test prints or logs."""

import logging
import os
import signal

import pytest
from hypothesis import HealthCheck, settings

from bitmex_streams.auth import Credentials
from bitmex_streams.exchange import Account
from bitmex_streams.exchange.demo import DEMO_API_SECRET
from bitmex_streams.transport import TRANSPORTS

# Started in the background of a shell, the suite would be told to ignore what some of its tests press.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine is no failure; and where a failure has to mean a change, the examples are the same each time.
settings.register_profile(
    "steady", deadline=None, derandomize=bool(os.environ.get("CI")), suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("steady")


@pytest.fixture(scope="session")
def authority():
    """A certificate authority that nobody knows."""
    return pytest.importorskip("trustme").CA()


@pytest.fixture(autouse=True)
def transport_of_this_run(request, monkeypatch):
    """What a Connection uses that is not told."""
    if request.config.getoption("transport") == "fast" and not request.node.get_closest_marker("trio_websocket"):
        monkeypatch.setitem(TRANSPORTS, "default", TRANSPORTS["fast"])


SECRETS: set[str] = set()  # of all accounts that were opened, and of all that signed in; and what was signed by them
LEAKS: dict[str, None] = {}  # the tests, each once


class Watch(logging.Handler):
    """Keeps what is logged, by whatever logger at whatever level, without the work of wording it for a report."""

    def __init__(self):
        super().__init__()
        self.messages = []

    def emit(self, record):
        self.messages.append(self.format(record) if record.exc_info else record.getMessage())


WATCH = Watch()


def pytest_addoption(parser):
    """The suite runs on both transports."""
    parser.addoption("--transport", choices=["default", "fast"], default="default", help="what a Connection uses")


def pytest_report_header(config):
    """Which one it is."""
    return f"transport: {config.getoption('transport')}"


def pytest_configure(config):
    """Hear all that is logged; and note every secret when it is made."""
    logging.getLogger().addHandler(WATCH)
    logging.getLogger().setLevel(logging.DEBUG)
    sign, open_account, sign_in = Credentials._sign, Account.__init__, Credentials.__init__

    def _sign(self):
        signed = sign(self)
        SECRETS.add(signed[1])
        return signed

    def open_and_note(self, accounts, id, api_key, api_secret):
        SECRETS.add(api_secret)
        open_account(self, accounts, id, api_key, api_secret)

    def sign_in_and_note(self, key, secret):
        sign_in(self, key, secret)
        SECRETS.add(secret)

    Credentials._sign, Credentials.__init__, Account.__init__ = _sign, sign_in_and_note, open_and_note


def pytest_runtest_logreport(report):
    """What a test has printed and logged, and what is said of its failure."""
    text = "\n".join(
        [report.nodeid, *(content for _, content in report.sections), report.longreprtext, *WATCH.messages]
    )
    WATCH.messages.clear()
    # What a test calls a secret in two letters is in other words by chance; the demo account's is public.
    if any(len(secret) >= 12 and secret != DEMO_API_SECRET and secret in text for secret in SECRETS):
        LEAKS[report.nodeid] = None


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    """A secret that shows fails the run."""
    if LEAKS:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter):
    """Say where, and not what."""
    for nodeid in LEAKS:
        terminalreporter.write_line(f"SECRET SHOWN in the output of {nodeid}", red=True)
