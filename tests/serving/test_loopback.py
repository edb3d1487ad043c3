"""Which hosts are this machine itself."""

from __future__ import annotations

import pytest

from echo_ska.serving.loopback import host_name, is_loopback


@pytest.mark.parametrize(
    "host",
    ["localhost", "LocalHost", "localhost.", "127.0.0.1", "127.0.0.2", "127.255.255.254", "::1", "[::1]", "[0:0::1]"],
)
def test_this_machine(host):
    assert is_loopback(host)
    if ":" not in host or host.startswith("["):
        assert host_name(host) == host_name(f"{host}:8000") == host_name(f"{host}:") == host


@pytest.mark.parametrize(
    "host",
    [
        "",
        ".",
        "0.0.0.0",
        "::",
        "[::]",
        "192.168.0.1",
        "128.0.0.1",
        "127.0.0.1.evil.example",
        "127.evil.example",
        "evil.example",
        "localhost.evil.example",
        "localhost..",
        "evil.localhost",
        "[::1",
        "[localhost]",
        "2130706433",
    ],
)
def test_any_other_is_not(host):
    assert not is_loopback(host)
    assert not is_loopback(host_name(host))
    assert not is_loopback(host_name(f"{host}:8000"))
