"""Names of files that every system takes for the same file; what comes from elsewhere (a hub, a server) is held to them."""

from __future__ import annotations

import re

LONGEST = 255  # bytes of a name, on every file system that is common
# To Windows a device, whatever stands behind the first dot; the digits also as superscripts.
_DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])", re.IGNORECASE)
_FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f\ud800-\udfff]')


def why_not(name: str) -> str | None:
    """Why a name (of a file, not a path) is not one that every system reads alike; None if it is."""
    if not name or name in (".", ".."):
        return "no name"
    if found := _FORBIDDEN.search(name):
        return f"it holds {found[0]!r}"
    if name.endswith((".", " ")) or name.startswith(" "):
        return "it begins or ends with a space, or ends with a dot"
    if _DEVICES.fullmatch(name.partition(".")[0].strip()):
        return "to Windows it is a device"
    if len(name.encode()) > LONGEST:
        return f"it is longer than {LONGEST} bytes"
    return None


def portable(name: str) -> str:
    """The name, or one like it that every system reads alike."""
    if why_not(name) is None:
        return name
    name = _FORBIDDEN.sub("_", name).strip(" ").rstrip(". ") or "_"
    if _DEVICES.fullmatch(name.partition(".")[0].strip()):
        name = "_" + name
    stem, dot, ending = name.rpartition(".")
    room = LONGEST - len((dot + ending).encode())
    if dot and 0 < room < LONGEST:
        return stem.encode()[:room].decode(errors="ignore") + dot + ending
    return name.encode()[:LONGEST].decode(errors="ignore")
