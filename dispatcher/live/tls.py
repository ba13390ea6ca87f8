"""TLS for redis-py's connections: one context for all of an address, not one each.

redis-py reads all certificates of the system for each connection, which takes 0.1 s of the event loop,
and trusts them beside the authority that was named.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any, Final

from redis.asyncio.connection import RedisSSLContext

_VERIFY: Final = {
    "none": ssl.CERT_NONE,
    "optional": ssl.CERT_OPTIONAL,
    "required": ssl.CERT_REQUIRED,
}
_FILES: Final = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")


class TlsContext(RedisSSLContext):
    """The context of all connections to an address; `options` are the address' own, by redis-py's names.

    It is made anew once a file of it has changed: certificates can be replaced while a server runs.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        """Raises ValueError for an option's value that is none."""
        verify = options.get("ssl_cert_reqs", "required")
        if verify not in _VERIFY:
            raise ValueError(f"ssl_cert_reqs takes {', '.join(_VERIFY)}")
        super().__init__(cert_reqs=_VERIFY[verify])
        self._options = options
        self._read_at: tuple[int, ...] = ()

    def check_files(self) -> None:
        """Raises ValueError, which names the option, where a file cannot be read."""
        for name in _FILES:
            try:
                if name in self._options:
                    Path(self._options[name]).read_bytes()
            except OSError as error:
                reason = f"{name}: {self._options[name]} cannot be read: {error.strerror}"
                raise ValueError(reason) from None

    def get(self) -> ssl.SSLContext:
        """Raises OSError, of which ssl.SSLError is one."""
        options = self._options
        files = [options[name] for name in _FILES if name in options]
        read_at = tuple(Path(file).stat().st_mtime_ns for file in files)
        if self.context is None or read_at != self._read_at:
            # Given an authority, it trusts no other one.
            context = ssl.create_default_context(
                cafile=options.get("ssl_ca_certs"), capath=options.get("ssl_ca_path")
            )
            # Without a certificate there is no name to check.
            is_checked = self.cert_reqs is not ssl.CERT_NONE
            context.check_hostname = is_checked and options.get("ssl_check_hostname", True)
            context.verify_mode = self.cert_reqs
            if "ssl_certfile" in options:
                context.load_cert_chain(
                    options["ssl_certfile"],
                    options.get("ssl_keyfile"),
                    options.get("ssl_password", ""),  # None: OpenSSL asks at the terminal
                )
            self.context, self._read_at = context, read_at
        return self.context
