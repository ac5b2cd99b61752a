"""On PYTHONPATH this blocks the network for Python and every kernel that it starts.

Loopback and unix sockets stay, because Jupyter talks to its kernels through them, and this machine's
own addresses, through which the parts of a local Ray talk. An audit hook cannot be taken away again
and sees every call, whichever library makes it.
"""

import ipaddress
import sys

WATCHED = (
    "socket.connect",
    "socket.sendto",
    "socket.sendmsg",
    "socket.getaddrinfo",
    "socket.gethostbyname",
)


def _is_local(host: object) -> bool:
    if host in (None, "", "localhost", b"localhost"):
        return True
    try:
        address = ipaddress.ip_address(host.decode() if isinstance(host, bytes) else host)
    except (ValueError, AttributeError):
        return False
    return address.is_loopback or str(address) in _own_addresses()


def _own_addresses() -> set[str]:
    import psutil  # loads here: every Python process reads this file

    return {a.address for each in psutil.net_if_addrs().values() for a in each}


def _refuse(event: str, arguments: tuple) -> None:
    if event not in WATCHED:
        return
    address = arguments[0] if event.startswith("socket.get") else arguments[1]
    if isinstance(address, tuple):
        address = address[0]
    elif not event.startswith("socket.get"):
        return  # a path: unix socket; None: an already connected one
    if not _is_local(address):
        raise ConnectionRefusedError(f"the network is blocked in this run ({event} to {address})")


sys.addaudithook(_refuse)
