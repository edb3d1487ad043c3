"""Which hosts are this machine itself."""

from __future__ import annotations

import ipaddress


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it: a loopback address (an IPv6 one with or without brackets), or localhost.

    Any other name counts as reachable, whatever it stands for now: that is for whoever owns it to say.
    """
    address = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return host.lower().removesuffix(".") == "localhost"


def host_name(header: str) -> str:
    """The name in a request's Host header, without the port."""
    name, colon, port = header.rpartition(":")
    return name if colon and not port.endswith("]") else header
