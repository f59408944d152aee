"""Fetching a published checkpoint from the Hugging Face hub: only what is needed, resumed, compared with the hub's checksums.

Only ever runs on the user's explicit act. Names that the hub gives are not trusted: they stay inside the target folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import shutil
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from .. import comfyui
from ..errors import DownloadError, HLWQError, InputError
from ..format.places import write_error
from ..format.portable import why_not
from ..format.record import RECORD, file_sha256, read_record, save_record
from ..models import families
from .alone import alone
from .job import Progress, Tally
from .replacing import finish, replace_all

# Connections that may break in one file, as long as each brings a part of it.
ATTEMPTS = 20
_WANTED_JSON = ("polar_config.json", "config.json")
_SPARE_BYTES = 64 << 20
JOURNAL = ".hlwq.replacing.json"
# The record of a revision whose files wait to take the places of another's.
NEXT_RECORD = f".{RECORD}.next"


@dataclass(frozen=True)
class RemoteFile:
    """A file as the hub lists it: `sha256` of large files, for the others git's own checksum, `blob` (if the hub tells it)."""

    name: str
    size: int
    sha256: str | None
    blob: str | None = None

    @property
    def checksum(self) -> str | None:
        """What its content is known by."""
        return self.sha256 or self.blob

    def digest(self, path: Path, told: Callable[[int], None]) -> str | None:
        """The same checksum of a file on the disk; None where the hub tells none. `told` gets the bytes read."""
        if self.sha256 is not None:
            return file_sha256(path, told)
        if self.blob is None:
            return None
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
                told(len(block))
        return digest.hexdigest()


@dataclass
class Downloaded:
    """What lies in the folder now: names of files that were fetched, that were there already and intact, and that came with
    another revision and are of no use with this one."""

    repository: str
    revision: str
    folder: str
    fetched: list[str]
    present: list[str]
    nbytes: int
    outdated: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def text(self) -> str:
        """The result for people."""
        lines = [
            f"{self.repository} at {self.revision[:12]} → {self.folder}",
            f"  {len(self.fetched)} files fetched, {len(self.present)} were there, {self.nbytes / 1e9:.2f} GB in all",
        ]
        return "\n".join([*lines, f"  {self.note()}"] if self.outdated else lines)

    def note(self) -> str:
        """What the user should do about files of another revision; empty where there are none."""
        names = ", ".join(self.outdated)
        return f"of another revision, and no part of this one (remove them): {names}" if names else ""


def download(
    repository: str | None = None,
    to: str | os.PathLike[str] | None = None,
    *,
    revision: str = "main",
    token: str | None = None,
    endpoint: str | None = None,
    progress: Progress | None = None,
) -> Downloaded:
    """Fetch a checkpoint.

    Args:
        repository: `owner/name`; None tries both names under which LTX-2.3 was published.
        to: the folder; None is `models/hlwq/NAME` of the ComfyUI that this pack is installed in.
        revision: branch, tag or commit.
        token: hub token; None takes what `HF_TOKEN` or `hf auth login` left.
        endpoint: hub address; None takes `HF_ENDPOINT`, else the public hub.
        progress: called with (bytes done, bytes in all, text); may raise to stop, and the download can be resumed.

    Raises:
        DownloadError: offline, no such repository, no access, no room on the disk, or a file that came corrupted.
        InputError: a name that is none, no folder given and no ComfyUI known, or another run writes to the folder.
    """
    if repository is not None and not families.REPOSITORY_NAME.fullmatch(repository):
        raise InputError(
            "this is no repository name",
            expected="owner/name",
            found=repository,
            fix="give the name as the address of the repository has it",
        )
    _refuse_offline()
    endpoint = endpoint or os.environ.get("HF_ENDPOINT") or None
    candidates = (repository,) if repository else families.repositories()
    found, commit, files = _list(candidates, revision, token, endpoint)
    folder = Path(to) if to is not None else default_folder(found)
    if folder.exists() and not folder.is_dir():
        raise InputError(
            "the target is a file", file=folder, expected="a folder", fix="choose another folder with --to"
        )
    with alone(folder):
        job = _Job(found, commit, folder, files, token, endpoint, progress)
        try:
            return job.run()
        except OSError as error:
            if job.tally.stopped is error:
                raise
            raise _failure(str(folder), error) from error


def default_folder(repository: str) -> Path:
    """`models/hlwq/NAME` of ComfyUI.

    Raises:
        InputError: there is none, see `comfyui.base`.
    """
    return comfyui.base() / "models" / "hlwq" / repository.split("/")[1]


def _refuse_offline() -> None:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise DownloadError(
            "offline mode is on: nothing is fetched",
            found="HF_HUB_OFFLINE=1",
            fix="unset HF_HUB_OFFLINE, or copy the checkpoint from another machine",
        )


def _list(
    candidates: Sequence[str], revision: str, token: str | None, endpoint: str | None
) -> tuple[str, str, list[RemoteFile]]:
    """The first repository that exists, its commit, and the files that a checkpoint needs."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    api = HfApi(endpoint=endpoint, token=token)
    refusal: Exception | None = None
    for repository in candidates:
        try:
            info = api.model_info(repository, revision=revision, files_metadata=True, timeout=30)
        except GatedRepoError as error:
            raise _no_access(repository, error) from error
        except RevisionNotFoundError as error:
            raise DownloadError(
                "the repository has no such revision",
                file=repository,
                found=revision,
                fix="check --revision: a branch, a tag or a commit; without it the newest is taken",
            ) from error
        except RepositoryNotFoundError as error:
            refusal = error
            continue
        except Exception as error:
            raise _failure(repository, error) from error
        commit = info.sha or revision
        files = _files(info.siblings or [], commit, repository)
        if not any(file.name.endswith(".safetensors") for file in files):
            raise DownloadError(
                "the repository has no safetensors files",
                file=repository,
                found=f"{len(info.siblings or [])} other files",
                fix="check the name; the weights may lie in another repository or revision",
            )
        return repository, commit, files
    assert refusal is not None
    if _status(refusal) == 401 and token is not None:
        raise _no_access(candidates[0], refusal) from refusal
    raise DownloadError(
        "there is no such repository, or it is private",
        file=" or ".join(candidates),
        found=f"HTTP {_status(refusal) or 404}",
        fix="check the name; for a private one give a token: HF_TOKEN, or hf auth login",
    ) from refusal


def _files(listed: Sequence[Any], commit: object, repository: str) -> list[RemoteFile]:
    """The files that a checkpoint needs, of those that the hub lists.

    Raises:
        DownloadError: what the hub says is of no form that is known, or names that are not safe.
    """
    files: list[RemoteFile] = []
    try:
        if not isinstance(commit, str) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)*", commit):
            raise ValueError(f"a commit {commit!r}")
        for one in listed:
            if not _needed(one.rfilename):
                continue
            check_name(one.rfilename, repository)
            size, sha256 = one.size or 0, one.lfs.sha256 if one.lfs else None
            if type(size) is not int or not 0 <= size < 1 << 60:
                raise ValueError(f"a size {size!r}")
            if sha256 is not None and not re.fullmatch("[0-9a-f]{64}", sha256):
                raise ValueError(f"a sha256 {sha256!r}")
            files.append(RemoteFile(one.rfilename, size, sha256, None if one.lfs else _git_checksum(one.blob_id)))
    except (AttributeError, TypeError, ValueError) as error:
        raise DownloadError(
            "the hub's listing of the repository cannot be understood: nothing is fetched",
            file=repository,
            expected="files, each with name, size and checksum, and a commit",
            found=str(error)[:200],
            fix="check --endpoint and HF_ENDPOINT: what answers there may be no hub; or update huggingface_hub",
        ) from error
    _check_distinct([file.name for file in files], repository)
    return files


def _status(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _no_access(repository: str, error: Exception) -> DownloadError:
    return DownloadError(
        "the hub refuses access to this repository",
        file=repository,
        found=f"HTTP {_status(error) or 401}",
        fix="accept the model's terms on its page, and give a token that may read it: HF_TOKEN, or hf auth login",
    )


def _failure(what: str, error: Exception) -> HLWQError:
    status = _status(error)
    if status in (401, 403):
        return _no_access(what, error)
    if isinstance(error, OSError) and error.errno in (28, 122):
        return DownloadError(
            "the disk is full",
            file=what,
            found=error.strerror,
            fix="free some space; the download goes on where it was",
        )
    if isinstance(error, OSError) and error.filename is not None:  # of a file here, not of a connection
        return write_error(Path(os.fsdecode(error.filename)), error)
    return DownloadError(
        "the hub cannot be reached, or answers with an error",
        file=what,
        found=f"HTTP {status}"
        if status
        else f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
        fix="try again: the download goes on where it was",
    )


def _git_checksum(blob: str | None) -> str | None:
    return blob if blob is not None and re.fullmatch("[0-9a-f]{40}", blob) else None


def _needed(name: str) -> bool:
    return name.endswith(".safetensors") or PurePosixPath(name).name in _WANTED_JSON


def check_name(name: str, repository: str) -> None:
    """Refuse a file name that leaves the folder, or that some system reads in another way.

    Raises:
        DownloadError: the name is not safe.
    """
    parts = name.split("/")
    if any(not re.fullmatch(r"[\w][\w.+ -]*", part) or why_not(part) for part in parts) or len(parts) > 6:
        raise DownloadError(
            "the repository lists a file whose name is not safe: nothing is fetched",
            file=repository,
            found=repr(name),
            fix="do not trust this repository; report it to the hub",
        )


def _check_distinct(names: Sequence[str], repository: str) -> None:
    """Refuse names that some systems take for one: each would be written over the other."""
    seen: dict[str, str] = {}
    for name in names:
        key = unicodedata.normalize("NFC", name).casefold()
        if key in seen:
            raise DownloadError(
                "the repository lists two files that are one to some systems: nothing is fetched",
                file=repository,
                found=f"{seen[key]!r} and {name!r}",
                fix="do not trust this repository; report it to the hub",
            )
        seen[key] = name


class _Counting(io.RawIOBase):
    """The growing file, as the hub library writes into it: counts, and lets the caller stop."""

    def __init__(self, file: BinaryIO, told: Callable[[int], None]):
        self._file = file
        self._told = told

    def write(self, data: Any) -> int:
        written = self._file.write(data)
        self._told(len(data))
        return written

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def truncate(self, size: int | None = None) -> int:
        return self._file.truncate(size)


@dataclass
class _Job:
    repository: str
    commit: str
    folder: Path
    files: list[RemoteFile]
    token: str | None
    endpoint: str | None
    progress: Progress | None

    def __post_init__(self) -> None:
        self.tally = Tally(self.progress, sum(file.size for file in self.files))

    def run(self) -> Downloaded:
        finish(self.folder / JOURNAL, self.folder)
        self._remove_old_parts()
        noted = self._noted()
        present: list[RemoteFile] = []
        absent: list[RemoteFile] = []
        for file in self.files:
            (present if self._intact(self.folder / file.name, file) else absent).append(file)
        self._check_space(absent)
        # Where files are replaced, all wait until the last is there: two revisions mixed would be loaded as one model.
        replaces = any((self.folder / file.name).exists() for file in absent)
        for file in absent:
            self._fetch(file, stay=replaces)
        self._put_in_place(absent if replaces else [])
        there = {file.name for file in self.files}
        return Downloaded(
            repository=self.repository,
            revision=self.commit,
            folder=str(self.folder),
            fetched=[file.name for file in absent],
            present=[file.name for file in present],
            nbytes=self.tally.total,
            outdated=sorted(name for name in noted if name not in there and (self.folder / name).is_file()),
        )

    def _noted(self) -> list[str]:
        """The names in the record of an earlier download."""
        try:
            return list(read_record(self.folder))
        except HLWQError:
            return []  # it is written anew

    def _remove_old_parts(self) -> None:
        """Parts of files of earlier revisions: nobody would go on with them."""
        current = {self._partial(file) for file in self.files}
        for folder in {(self.folder / file.name).parent for file in self.files}:
            for path in folder.glob(".*.partial") if folder.is_dir() else ():
                if path not in current and re.fullmatch(r"\..+\.[0-9a-f]{12}\.partial", path.name):
                    path.unlink(missing_ok=True)
        if (record := self.folder / NEXT_RECORD).is_file():
            record.unlink()

    def _put_in_place(self, waiting: list[RemoteFile]) -> None:
        """Files that wait, and the record of all, together."""
        noted = {f.name: {"size": f.size, "sha256": f.sha256} for f in self.files if f.sha256 is not None}
        record = self.folder / (NEXT_RECORD if waiting else RECORD)
        save_record(record, noted, repository=self.repository, revision=self.commit)
        if waiting:
            into = [(self._partial(file), self.folder / file.name) for file in waiting]
            replace_all(self.folder / JOURNAL, self.folder, into=[*into, (record, self.folder / RECORD)])

    def _intact(self, path: Path, file: RemoteFile) -> bool:
        # A `git clone` without LFS leaves pointers of 130 bytes under these names: size and checksum tell.
        if not path.is_file() or path.stat().st_size != file.size:
            return False
        start = self.tally.done
        told = file.digest(path, lambda n: self.tally.add(n, f"checking {file.name}"))
        self.tally.done = start
        # The size alone does not tell a file from another revision's; without a checksum it is fetched again, being small.
        if told is None or told != file.checksum:
            return False
        self.tally.add(file.size, file.name)
        return True

    def _partial(self, file: RemoteFile) -> Path:
        path = self.folder / file.name
        return path.with_name(f".{path.name}.{(file.checksum or self.commit)[:12]}.partial")

    def _check_space(self, absent: list[RemoteFile]) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                "the folder cannot be made",
                file=self.folder,
                found=error.strerror or error,
                fix="choose a folder that may be written to, with --to",
            ) from error
        there = sum(path.stat().st_size for file in absent if (path := self._partial(file)).is_file())
        needed = sum(file.size for file in absent) - there
        free = shutil.disk_usage(self.folder).free
        if absent and free < needed + _SPARE_BYTES:
            raise DownloadError(
                "there is not enough room on the disk: nothing was fetched",
                file=self.folder,
                expected=f"{(needed + _SPARE_BYTES) / 1e9:.2f} GB free",
                found=f"{free / 1e9:.2f} GB",
                fix="free some space, or choose a folder on another disk with --to",
            )

    def _fetch(self, file: RemoteFile, stay: bool) -> None:
        """Fetch a file to its place; `stay`: only beside it."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers

        target = self.folder / file.name
        if not target.resolve().is_relative_to(self.folder.resolve()):
            raise DownloadError(
                "a link inside the folder leads out of it", file=target, fix="choose an empty folder: --to"
            )
        partial = self._partial(file)
        url = hf_hub_url(self.repository, file.name, revision=self.commit, endpoint=self.endpoint)
        start = self.tally.done
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(partial, "ab") as raw:
                if raw.tell() > file.size:
                    raw.truncate(0)
                self.tally.add(raw.tell(), file.name)
                growing = _Counting(raw, lambda n: self.tally.add(n, file.name))
                for left in reversed(range(ATTEMPTS)):
                    begun = raw.tell()
                    try:
                        http_get(
                            url,
                            growing,  # type: ignore[arg-type]
                            resume_size=begun,
                            headers=build_hf_headers(token=self.token, library_name="comfyui-hlwq"),
                            expected_size=file.size,
                        )
                        break
                    except Exception as error:
                        # Older hub libraries give up where a connection breaks in the middle of a file.
                        if self.tally.stopped is error or raw.tell() == begun or not left:
                            raise
                raw.flush()
                os.fsync(raw.fileno())
        except HLWQError:
            raise
        except Exception as error:
            if self.tally.stopped is error:
                raise
            raise _failure(f"{self.repository}: {file.name}", error) from error
        self._compare(partial, file)
        if not stay:
            os.replace(partial, target)
        self.tally.done = start
        self.tally.add(file.size, file.name)

    def _compare(self, partial: Path, file: RemoteFile) -> None:
        size = partial.stat().st_size
        digest = None
        if size == file.size:
            # No progress of its own, but Cancel works here too.
            digest = file.digest(partial, lambda n: self.tally.add(0, f"checking {file.name}"))
        if size != file.size or digest != file.checksum:
            with contextlib.suppress(OSError):  # what is wrong with the file is the error to tell
                partial.unlink()
            raise DownloadError(
                "a file came corrupted and was thrown away",
                file=f"{self.repository}: {file.name}",
                expected=f"{file.size} bytes, checksum {file.checksum or 'not told'}",
                found=f"{size} bytes, checksum {digest or 'not computed'}",
                fix="start the download again; if it happens again, a proxy or the disk damages files",
            )
