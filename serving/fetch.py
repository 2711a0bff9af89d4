"""Pictures that a request names instead of bringing: files below one folder, addresses of named hosts, nothing else.

A host's name is resolved once; every address that it has must be public, and the connection goes to that very address, so that a
second answer of the name server cannot turn it elsewhere. Redirects are not followed, proxies of the environment not used.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ..types import InputError

PORTS = {"http": 80, "https": 443}
NAT64 = ipaddress.ip_network("64:ff9b::/96")


@contextmanager
def closing(handle: int) -> Iterator[None]:
    try:
        yield
    finally:
        os.close(handle)


class Sources:
    """What may be read: `hosts` ("host", for the usual ports, or "host:port"), and files below the folder `root`."""

    def __init__(self, hosts: Sequence[str] = (), root: str | os.PathLike[str] | None = None, seconds: float = 10.0):
        self.hosts = {host.strip().lower() for host in hosts}
        self.seconds = seconds
        self.root = None if root is None else Path(root).resolve()
        if self.root is not None and (not self.root.is_dir() or self.root == Path(self.root.anchor)):
            raise InputError(f"{root} is no folder of pictures; give the folder that requests may read, not the whole disk")
        for host in self.hosts:
            if not host or any(mark in host for mark in "/@*? "):
                raise InputError(f"an allowed host is written host or host:port, got {host!r}")

    async def read(self, url: str, scheme: str, max_bytes: int) -> bytes:
        """The bytes that an allowed URL names. Raises InputError."""
        if scheme == "file":
            return await asyncio.to_thread(self.file, url, max_bytes)
        if scheme in PORTS:
            return await self.fetch(url, max_bytes)
        raise InputError(f"{scheme}: is no kind of picture that this server reads; send base64 or a data URL")

    def file(self, url: str, max_bytes: int) -> bytes:
        if self.root is None:
            raise InputError("this server reads no files; send the picture as base64 or a data URL")
        # One answer for all that is not there and all that is outside, so that nothing is told of the disk.
        refused = InputError("names no picture below the folder that this server reads; send it as base64 or a data URL")
        try:
            parts = urlsplit(url)
            path = Path(unquote(parts.path, errors="strict")).resolve(strict=True)
        except (OSError, ValueError, RuntimeError):
            raise refused from None
        if parts.netloc not in ("", "localhost") or parts.query or parts.fragment or not path.is_relative_to(self.root):
            raise refused
        try:
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            raise refused from None
        with closing(handle):
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise refused
            with open(handle, "rb", closefd=False) as file:
                data = file.read(max_bytes + 1)
        if len(data) > max_bytes:
            raise InputError(f"the picture has more than the limit of {max_bytes:,} bytes; make it smaller")
        return data

    async def fetch(self, url: str, max_bytes: int) -> bytes:
        if not self.hosts:
            raise InputError("this server fetches no web addresses; send the picture as base64 or a data URL")
        import httpx

        try:
            target = httpx.URL(url)
        except (httpx.InvalidURL, ValueError):
            raise InputError("is not a valid web address; send the picture as base64 or a data URL") from None
        host, port = target.host.lower(), target.port or PORTS[target.scheme]
        usual = target.port in (None, PORTS[target.scheme])
        if target.userinfo or not ((usual and host in self.hosts) or f"{host}:{port}" in self.hosts):
            raise InputError("the host of this web address is not one that this server may ask; send the picture as base64 or a data URL")
        address = await public_address(host, port)
        headers = {"Host": target.netloc.decode("ascii"), "Accept": "image/*", "Accept-Encoding": "identity"}
        failed = f"{host} gave no picture"
        try:
            async with (
                asyncio.timeout(self.seconds),
                httpx.AsyncClient(trust_env=False, follow_redirects=False, timeout=self.seconds) as client,
                client.stream("GET", target.copy_with(host=address), headers=headers, extensions={"sni_hostname": host}) as response,
            ):
                if response.status_code != 200:
                    raise InputError(f"{failed}, it answers {response.status_code}; redirects are not followed")
                data = bytearray()
                async for piece in response.aiter_raw():
                    data += piece
                    if len(data) > max_bytes:
                        raise InputError(f"the picture has more than the limit of {max_bytes:,} bytes; make it smaller")
                return bytes(data)
        except TimeoutError:
            raise InputError(f"{failed} within {self.seconds:g} s; send it as base64 or a data URL") from None
        except httpx.HTTPError as error:
            raise InputError(f"{failed} ({type(error).__name__}); send it as base64 or a data URL") from None


async def public_address(host: str, port: int) -> str:
    """An address of the host. Raises InputError unless all of its addresses are public."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise InputError(f"the host {host} is not known; send the picture as base64 or a data URL") from None
    addresses = [str(entry[4][0]) for entry in found]
    if not addresses or not all(is_public(address) for address in addresses):
        raise InputError(f"the host {host} has an address that is not public; send the picture as base64 or a data URL")
    return addresses[0]


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the open internet; an IPv4 address inside an IPv6 one counts as itself."""
    ip = ipaddress.ip_address(address.split("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo and ip.teredo[1])
        if ip in NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner:
            return is_public(str(inner))
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified or ip.is_loopback or ip.is_link_local)
