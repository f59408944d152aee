"""Files of jobs: each form of them, and what is wrong with one, said with its line."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from hlwq_core.batch.job import plain, request_of
from hlwq_core.batch.read import check_jobs, read_jobs, seeds
from hlwq_core.client.generate import Request
from hlwq_core.errors import HLWQError, InputError


def write(tmp_path: Path, text: str | bytes, name: str) -> Path:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_csv_with_every_column_and_any_input(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "\ufeffprompt, Seed ,width,image,lora,Save.codec,--text-encoder,name\r\n"
        '"rain, and thunder",7,128,a.png,x.safetensors:0.5;y,h265,gemma,storm\r\n'
        "\r\n , ,,\r\n"
        '"two\nlines",1-3,,,,,,\r\n',
        "jobs.csv",
    )
    first, *rest = [job.request for job in read_jobs(path, Request(height=64, settings=["Save.quality=9"]))]
    assert (first.prompt, first.seed, first.width, first.height) == ("rain, and thunder", 7, 128, 64)
    assert first.image == tmp_path / "a.png" and first.text_encoder == "gemma"
    assert first.loras == [("x.safetensors", 0.5), ("y", 1.0)] and first.settings == [
        "Save.quality=9",
        "Save.codec=h265",
    ]
    assert [(r.prompt, r.seed, r.width, r.settings) for r in rest] == [
        ("two\nlines", n, None, ["Save.quality=9"]) for n in (1, 2, 3)
    ]
    assert read_jobs(path, Request())[0].name == "storm"


def test_json_lines(tmp_path: Path) -> None:
    lines = [
        {"prompt": "a", "seed": [1, "5-6"], "Save.filename_prefix": "x"},
        {"prompt": "\u2028 b", "fps": 24, "seed": None},
    ]
    path = write(tmp_path, "\n\n".join(map(json.dumps, lines)) + "\n", "jobs.jsonl")
    jobs = [job.request for job in read_jobs(path, Request(), seed=[8])]
    assert [(r.prompt, r.seed, r.fps) for r in jobs] == [
        ("a", 1, None),
        ("a", 5, None),
        ("a", 6, None),
        ("\u2028 b", 8, 24),
    ]


def test_text_takes_a_prompt_a_line(tmp_path: Path) -> None:
    path = write(tmp_path, b"\xef\xbb\xbf# remark\r\n\r\n a \r\nb\x0cb\nc\xe2\x80\xa8c", "jobs.txt")
    assert [job.request.prompt for job in read_jobs(path, Request())] == ["a", "b\x0cb", "c\u2028c"]


def test_ids_and_names_do_not_depend_on_the_place_in_the_file(tmp_path: Path) -> None:
    one = read_jobs(write(tmp_path, "a\nb\na\n", "jobs.txt"), Request())
    (tmp_path / "moved").mkdir()
    two = read_jobs(write(tmp_path / "moved", "new\na\na\nb\n", "jobs.txt"), Request())
    assert {(j.id, j.name, j.request.seed) for j in one} < {(j.id, j.name, j.request.seed) for j in two}
    assert len({j.name for j in one}) == 3 and all(0 <= (j.request.seed or -1) < 2**32 for j in one)
    other = read_jobs(write(tmp_path, "a\nb\na\n", "jobs.txt"), Request(width=96))
    assert not {j.id for j in one} & {j.id for j in other}


@pytest.mark.parametrize(
    "prompt", ["../../etc/passwd", "con", "a" * 5000, "\U0001f600" * 300, "...", "x\x00y", "日本語の雨" * 50]
)
def test_names_of_any_prompt_are_names(tmp_path: Path, prompt: str) -> None:
    from hlwq_core.format.portable import why_not

    path = write(tmp_path, json.dumps({"prompt": prompt}), "jobs.jsonl")
    (job,) = read_jobs(path, Request())
    assert why_not(job.name + ".mp4") is None and len(job.name.encode()) < 200


def test_seeds() -> None:
    assert seeds("7") == seeds(7) == seeds(7.0) == [7]
    assert seeds("1-3, 9,20..21") == [1, 2, 3, 9, 20, 21] and seeds([1, "4:5"]) == [1, 4, 5]
    for bad in ("", "x", "3-1", "-1", "1-99999999999", 1.5, True, [], [[1]], {}, str(2**64), "1-2-3", "0-" + "9" * 500):
        with pytest.raises(ValueError):
            seeds(bad)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("j.csv", "promt\na\n", "is prompt meant?"),
        ("j.csv", "prompt,prompt\na,b\n", "prompt twice"),
        ("j.csv", "prompt,\na,b\n", "without a name"),
        ("j.csv", "prompt\na,b\n", "line 2 has more cells"),
        ("j.csv", 'prompt\n"a\n', "no CSV"),
        ("j.csv", "prompt,width\na,wide\n", "line 2: width does not fit"),
        ("j.csv", "prompt,Nobody.value\na,1\n", "line 2: this names no node"),
        ("j.csv", "prompt,Width.value\na,wide\n", "line 2: this value does not fit"),
        ("j.csv", "prompt,name\na,x/y\n", "no name for a file"),
        ("j.csv", "prompt,name\na,.x\n", "begins with a dot"),
        ("j.csv", "prompt,name\na,x\nb,X\n", "two jobs have one name"),
        ("j.csv", "prompt,upscale\na,much\n", "none or spatial or temporal"),
        ("j.csv", "prompt,workflow\na,none.json\n", "none.json"),
        ("j.csv", "prompt\n", "no job"),
        ("j.txt", "# only this\n\n", "no job"),
        ("j.txt", b"\xff\xfea\x00", "UTF-8"),
        ("j.jsonl", json.dumps({"prompt": "a" * 100_001}), "prompt does not fit"),
        ("j.jsonl", "[1]\n", "line 1 is no job"),
        ("j.jsonl", '{"prompt": "a"}\n{"prompt"\n', "line 2"),
        ("j.jsonl", '{"prompt": ["a"]}', "prompt does not fit"),
        ("j.jsonl", '{"prompt": "a", "seed": NaN}', "line 1"),
        ("j.jsonl", '{"prompt": "a", "fps": 1e400}', "line 1"),
        ("j.jsonl", '{"prompt": "a", "width": true}', "width does not fit"),
        ("j.jsonl", '{"prompt": "a", "frames": 24.5}', "frames does not fit"),
        ("j.jsonl", '{"prompt": "a", "lora": [1]}', "lora does not fit"),
        ("j.jsonl", "[" * 5000, "line 1"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, name: str, text: str | bytes, says: str) -> None:
    with pytest.raises(HLWQError) as caught:
        check_jobs(read_jobs(write(tmp_path, text, name), Request()))
    assert says in str(caught.value) and caught.value.fix


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ({"prompt": "a", "width": 70}, "--width 64"),
        ({"prompt": "a", "frames": 24}, "--frames 25"),
        ({"prompt": "a", "image": "none.png"}, "none.png"),
        ({"prompt": "a", "seconds": 2, "frames": 25}, "twice"),
    ],
)
def test_what_can_be_refused_is_refused_before_anything_starts(tmp_path: Path, line: dict, says: str) -> None:
    path = write(tmp_path, json.dumps({"prompt": "fine"}) + "\n" + json.dumps({**line, "name": "mine"}), "j.jsonl")
    with pytest.raises(InputError) as caught:
        check_jobs(read_jobs(path, Request()))
    assert says in str(caught.value) and "job mine" in str(caught.value)


def test_a_hundred_thousand_jobs(tmp_path: Path) -> None:
    path = write(tmp_path, "prompt,seed\n" + "".join(f"prompt {n},{n}\n" for n in range(100_000)), "jobs.csv")
    begun = time.process_time()
    jobs = read_jobs(path, Request(width=128))
    check_jobs(jobs)
    assert len({job.id for job in jobs}) == len({job.name for job in jobs}) == 100_000
    assert time.process_time() - begun < 60


def test_requests_cross_as_json() -> None:
    request = Request(prompt="a", image=Path("a.png"), loras=[("x", 0.5)], settings=["a.b=c"], seed=0, fps=24.0)
    assert request_of(json.loads(json.dumps(plain(request)))) == request
