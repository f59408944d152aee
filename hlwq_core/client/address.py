"""Where a ComfyUI answers and what is sent along: the address with its query, headers, and which of it is secret.

Servers behind a gateway take a token in a header, in the query or as user and password. It goes to that server and nowhere
else: `hide` takes it out of whatever is shown.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import quote, quote_plus, unquote, urlencode

from yarl import URL

from ..errors import InputError
from ..format.bounded import read_bytes

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2
_SHORTEST_SECRET = 4
_HIDDEN = "(hidden)"


class Address:
    """A server's address.

    Args:
        text: `http://host:port`, with or without the scheme; a path before ComfyUI's routes and a query are kept,
            `user:password@` is sent as basic authentication.
        headers: sent with every request to this server.

    Attributes:
        shown: the address without anything secret.

    Raises:
        InputError: this is no address.
    """

    def __init__(self, text: str, headers: Mapping[str, str] | None = None):
        self.headers = dict(headers or {})
        try:
            whole = URL(text if "://" in text else f"http://{text}")
            if whole.scheme not in ("http", "https") or not whole.host:
                raise ValueError
            self._base = str(URL.build(scheme=whole.scheme, host=whole.host, port=whole.explicit_port))
            self._base += whole.raw_path.rstrip("/")
        except ValueError:
            raise InputError(
                "this is no address of a server",
                expected="http://host:port or https://host",
                found=re.sub(r"//[^/@]*@|\?.*", _HIDDEN, text),
                fix="correct --server",
            ) from None
        self._query = text.partition("#")[0].partition("?")[2].replace(" ", "%20")  # as it was given
        self.user, self.password = whole.user, whole.password
        self.shown = self._base
        self._secrets = sorted(self._find_secrets(whole), key=len, reverse=True)

    def _find_secrets(self, whole: URL) -> set[str]:
        values = [whole.password or "", *whole.query.values()]
        for value in self.headers.values():
            values += [value, *value.split()]
        long = {value for value in values if len(value) >= _SHORTEST_SECRET}
        return long | {change(value) for value in long for change in (quote, quote_plus, unquote)}

    def url(self, path: str, query: Mapping[str, str] | None = None) -> URL:
        """The URL of a route, with the address's own query behind `query`."""
        parts = [part for part in (urlencode(query or {}), self._query) if part]
        return URL(self._base + path + ("?" + "&".join(parts) if parts else ""), encoded=True)

    def socket(self, path: str, query: Mapping[str, str]) -> URL:
        """The same for a websocket."""
        url = self.url(path, query)
        return url.with_scheme("wss" if url.scheme == "https" else "ws")

    def hide(self, text: str) -> str:
        """The text without what is secret."""
        for secret in self._secrets:
            text = text.replace(secret, _HIDDEN)
        return text


def read_headers(given: Iterable[str]) -> dict[str, str]:
    """Headers as the command line takes them.

    Args:
        given: `Name: value`, or `@FILE` with such lines: what stands on a command line, other users of the machine can read.

    Raises:
        InputError: a line is no header; its value is not shown.
    """
    lines: list[tuple[str, str | None]] = []
    for text in given:
        if not text.startswith("@"):
            lines.append((text, None))
            continue
        path = text[1:]
        try:
            content = read_bytes(Path(path).expanduser(), "a file of headers", 1 << 20).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(
                "the headers cannot be read",
                file=path,
                expected="text in UTF-8",
                found=f"other bytes from {error.start:,} on",
                fix="save the file as UTF-8",
            ) from None
        lines += [(line, path) for line in content.splitlines() if line.strip() and not line.startswith("#")]
    found = {}
    for line, file in lines:
        name, colon, value = line.partition(":")
        name, value = name.strip(), value.strip()
        if not colon or not _TOKEN.fullmatch(name) or not value.isprintable():
            raise InputError(
                "this is no header",
                file=file,
                expected="Name: value",
                found=f"{name}: {_HIDDEN}" if colon and name.isprintable() else "a line without a name and a colon",
                fix='--header "Authorization: Bearer TOKEN", or --header @FILE with such lines',
            )
        found[name] = value
    return found
