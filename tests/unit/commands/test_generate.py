"""The command line of generate and queue: what is wrong is said before anything runs."""

from __future__ import annotations

import signal

import pytest

from hlwq_core import cli

pytestmark = pytest.mark.timeout(60)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "there is no prompt"),
        (["--prompt", "x", "--image", "none.png"], "no such file"),
        (["--prompt", "x", "--frames", "9", "--seconds", "1"], "twice"),
        (["--prompt", "x", "--workflow", "none.json"], "cannot be read"),
        (["--prompt", "x", "--server", "--comfyui", "y"], "--comfyui"),
        (["--prompt", "x", "--width", "700", "--server", "http://127.0.0.1:9"], "--width 704"),
        (["--prompt", "x", "--server", "http://127.0.0.1:9"], "no answer from ComfyUI"),
        (["--prompt", "x", "--server", "http://127.0.0.1:9", "--output", "/nowhere/x.mp4"], "does not exist"),
    ],
)
def test_what_is_wrong_is_said_in_a_line_with_a_way_out(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["generate", *arguments]) == 2
    assert says in capsys.readouterr().err


def test_options_of_comfyui_stand_at_the_end() -> None:
    for command in (["generate"], ["queue", "w.json", "-n", "2"], ["queue", "-n", "2", "w.json"]):
        args = cli.parser().parse_args(
            [*command, "--output", "x", "--comfyui-args", "--lowvram", "--reserve-vram", "2"]
        )
        assert args.comfyui_args == ["--lowvram", "--reserve-vram", "2"] and args.output == "x"
    assert cli.parser().parse_args(["generate"]).comfyui_args == []
    with pytest.raises(SystemExit):
        cli.parser().parse_args(["generate", "a prompt without its option"])


def test_lora_strengths() -> None:
    from hlwq_core.batch.read import lora

    assert lora("a.safetensors:0.5") == ("a.safetensors", 0.5)
    assert lora("C:style") == ("C:style", 1.0)
    assert lora("b") == ("b", 1.0)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no SIGHUP")
def test_nohup_is_respected() -> None:
    from hlwq_core.commands.generate import stoppable

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stoppable():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with stoppable():
            assert callable(signal.getsignal(signal.SIGHUP))
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no SIGHUP")
def test_a_second_signal_does_not_end_the_clean_up_of_the_first() -> None:
    """Service managers send SIGTERM and SIGHUP; a terminal that closes, two SIGHUPs."""
    from hlwq_core.commands.generate import stoppable

    with stoppable():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGTERM)
