"""How a server is reached, beside its address: headers, query, TLS and proxy. Values that show nothing secret."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import SecretStr

from shared_engine.errors import SettingsError

HeaderPairs = tuple[tuple[str, str], ...]
logger = logging.getLogger(__name__)
_warned: set[str] = set()


@dataclass(frozen=True)
class HttpOptions:
    """See the settings of the same names.

    Attributes:
        headers: sent with each request, the Authorization among them.
        proxy_auth: ``user:password``.
    """

    headers: HeaderPairs = field(default=(), repr=False)
    query: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    proxy: str | None = None
    proxy_auth: str | None = field(default=None, repr=False)
    ssl_verify: bool = True
    ssl_ca_certs: str | None = None
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None

    def ssl_context(self, url: str) -> ssl.SSLContext | bool:
        """For connections to ``url``; True for Python's own, which reads SSL_CERT_FILE.

        Raises:
            SettingsError: a file is not what it should be.
        """
        if (self.ssl_verify and not (self.ssl_ca_certs or self.ssl_certfile)) or not url.startswith("https://"):
            return True
        try:
            context = ssl.create_default_context(cafile=self.ssl_ca_certs)
        except OSError as exc:  # ssl.SSLError is one
            raise SettingsError(
                f"ssl_ca_certs = {self.ssl_ca_certs!r}: has no certificates that can be read: {exc}"
            ) from exc
        if self.ssl_certfile:
            try:  # with a password, or OpenSSL would ask for one on the terminal
                context.load_cert_chain(self.ssl_certfile, self.ssl_keyfile, password="")
            except (OSError, ValueError) as exc:
                raise SettingsError(
                    f"ssl_certfile = {self.ssl_certfile!r}, ssl_keyfile = {self.ssl_keyfile!r}: not a certificate and "
                    f"its key, unencrypted, in PEM form: {exc}"
                ) from exc
        if not self.ssl_verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            if url not in _warned:
                _warned.add(url)
                logger.warning("%s: its certificate is not checked (ssl_verify=False): anybody may answer for it", url)
        return context


def header_pairs(*layers: Mapping[str, SecretStr] | None) -> HeaderPairs:
    """Names and values as they are sent; a later one of the same name, in whatever case, is sent instead."""
    headers: dict[str, tuple[str, str]] = {}
    for layer in layers:
        for name, value in (layer or {}).items():
            headers[name.lower()] = name, value.get_secret_value()
    return tuple(headers.values())


DEFAULT = HttpOptions()
