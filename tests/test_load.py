"""The server under load: `python -m tools.load` in small. CI runs this, a release the whole."""

import sys

import pytest
from conftest import missing

from tools import load


@pytest.mark.compiled
def test_the_server_under_load():
    """No answer is lost or mixed with another one, and nothing is left behind."""
    if sys.platform != "linux":
        pytest.skip("it reads /proc")
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        missing(f"the server's packages are not installed: {error}")
    found = load.run(requests=70, malformed=30)
    seen, after = found["seen"], found["after"]
    assert set(load.KINDS) < seen.keys() and seen["malformed"] >= 29 and seen["SIGTERM"] == 1
    assert seen["queue was full"] > 0
    assert after["texts_running"] == 0 and after["cache_chunks"] <= load.SEQUENCES
