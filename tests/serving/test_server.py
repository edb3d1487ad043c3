import socket

import pytest

pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

from echo_ska.serving.server import address, bind


def test_an_address_is_bound_and_told():
    with bind("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        assert address(listening) == f"http://127.0.0.1:{port}/v1"
        with pytest.raises(OSError, match=f"cannot listen at 127.0.0.1 port {port}: .*choose another"):
            bind("127.0.0.1", port)
    with pytest.raises(OSError, match=r"cannot listen at 192\.0\.2\.1"):
        bind("192.0.2.1", 0)


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_ipv6():
    try:
        listening = bind("::1", 0)
    except OSError:
        pytest.skip("no IPv6 address here")
    with listening:
        assert address(listening).startswith("http://[::1]:")
