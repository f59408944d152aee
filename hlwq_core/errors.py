"""The errors of the pack. Each says what is wrong, where, and what to do next."""

from __future__ import annotations

import os
import re
import sys

# What a terminal or a log would act upon instead of showing it, and halves of characters that no encoding can write.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_LONGEST = 2000


def printable(text: object) -> str:
    """Text as it can be shown anywhere: what comes out of files may hold control characters, or be megabytes."""
    shown = str(text)
    if len(shown) > _LONGEST:
        shown = f"{shown[:_LONGEST]}… ({len(shown):,} characters)"
    return _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], shown)


class HLWQError(Exception):
    """Base of every error that a user can meet.

    Args:
        what: one sentence, what is wrong.
        file: the file or folder concerned.
        tensor: the tensor's name.
        expected, found: what should have been there, and what was.
        fix: what the user can do next.
    """

    def __init__(
        self,
        what: str,
        *,
        file: str | os.PathLike[str] | None = None,
        tensor: str | None = None,
        expected: object = None,
        found: object = None,
        fix: str | None = None,
    ):
        self.what = what
        self.file = os.fspath(file) if file is not None else None
        self.tensor = tensor
        self.expected = expected
        self.found = found
        self.fix = fix
        super().__init__(str(self))

    def __str__(self) -> str:
        lines = [self.what]
        for label, value in (
            ("file", self.file),
            ("tensor", self.tensor),
            ("expected", self.expected),
            ("found", self.found),
            ("what to do", self.fix),
        ):
            if value is not None:
                lines.append(f"  {label}: {printable(value)}")
        return "\n".join(lines)


class FormatError(HLWQError):
    """A file is not what it claims to be: truncated, corrupt, contradictory."""


class ChangedError(FormatError):
    """A file is another one than when it was opened."""


class IncompleteError(HLWQError):
    """Something that the model needs is in no file."""


class UnsupportedError(HLWQError):
    """A known format that is out of scope (GGUF, EOQ, pq3_0), named as such."""


class InputError(HLWQError):
    """A value that the user gave does not fit."""


class ListingError(InputError):
    """A folder of one model cannot be listed whole."""


class DiskFullError(InputError):
    """There is no room for what is written."""


class ConfigError(HLWQError):
    """The model's config is missing or contradicts the tensors."""


class DownloadError(HLWQError):
    """A download failed or was refused."""


class ServerError(HLWQError):
    """ComfyUI could not be started, reached, or refused the work."""


class WorkError(ServerError):
    """ComfyUI refused the work or failed at it, and is itself well.

    Attributes:
        final: it would end so each time: the workflow was refused.
    """

    final = False


class MediaError(HLWQError):
    """Frames or sound could not be coded or written."""


def missing_module(error: ModuleNotFoundError) -> str:
    """What the command line says where the Python that runs it lacks a package."""
    return (
        f"error: {sys.executable} has no {(error.name or str(error)).split('.')[0]}\n"
        "  what to do: run this with ComfyUI's own Python (in a portable ComfyUI python_embeded/python.exe), after\n"
        "    pip install -r requirements.txt there"
    )


def is_refusal(error: RuntimeError) -> bool:
    """Whether a library refused what it was asked for, and another way may be tried: neither out of memory nor a broken
    device, which torch tells by subclasses."""
    return type(error) is RuntimeError
