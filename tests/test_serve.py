"""The page: its functions by themselves, its server and errors, and the whole of it in a headless browser."""

import json
import re
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch

from unitkit import audio, cli
from unitkit.audio import AudioError
from unitkit.manifest import read_manifest
from unitkit.pipeline import TTS, Recognizer, Translator, Vocoder, VoiceConverter
from unitkit.serve import Limits, Models, Work, application, hold_port, load_models, unit_text
from unitkit.serve import models as models_module
from unitkit.serve import server as server_module
from unitkit.serve.page import MISSING, blocks
from unitkit.serve.picture import facts, timeline, unit_list
from unitkit.tokenizer import Tokenizer
from unitkit.units import FingerprintError, UnitsError, bitrate

torch.set_num_threads(1)
pytestmark = pytest.mark.timeout(300)  # Gradio and Chromium start in it; seconds where the machine is idle
ROOT = Path(__file__).resolve().parents[1]
ROWS = list(read_manifest(ROOT / "samples" / "en" / "dev.jsonl"))[:3]
SOUND, OTHER = ROWS[0].audio, ROWS[1].audio
NAME = "prompts-mfcc100"  # the lightest of the bundled tokenizers
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


@pytest.fixture(scope="module")
def tok() -> Tokenizer:
    return Tokenizer.load(NAME, device="cpu")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Directories of tiny models, by the name of their option."""
    return tiny_models.all_of(tmp_path_factory.mktemp("models"), NAME)


@pytest.fixture(scope="module")
def work(made: dict[str, Path]) -> Work:
    return Work(load_models(tokenizer=NAME, device="cpu", **made), Limits(seconds=6, megabytes=1, characters=40))


def write(path: Path, seconds: float, rate: int = 16000) -> Path:
    t = np.arange(round(seconds * rate)) / rate
    audio.write(path, (0.3 * np.sin(2 * np.pi * 220 * t) * np.sin(3 * t)).astype(np.float32), rate)
    return path


# ---------------------------------------------------------------------------------------------- behind the tabs


def test_units_are_the_tokenizers(work: Work, tok: Tokenizer, tmp_path: Path) -> None:
    for path in (SOUND, str(write(tmp_path / "a.wav", 1.3, 44100)), str(write(tmp_path / "b.flac", 0.7, 8000))):
        found = work.encode(path)
        assert found.units == tok.encode(path) and found.tokenizer == tok.fingerprint
        assert found.wav is not None and np.array_equal(found.wav, audio.read(path, tok.sample_rate))
        assert found.units is not None
        header, row = map(json.loads, unit_text(found.units).splitlines())
        assert header["tokenizer"] == tok.fingerprint
        assert row == {"id": Path(path).stem, "units": found.units.ids.tolist()}
        short, _ = found.units.dedup()
        assert unit_list(found) == " ".join(map(str, short.ids))
        shown, picture = facts(found, rates=True), timeline(found)
        assert tok.fingerprint in shown and f">{len(short)} units<" in shown
        assert f"{bitrate([found.units]).bits_per_second:.0f} bit/s" in shown
        assert re.findall(r'data-unit="0:(\d+)"', picture) == [str(unit) for unit in short.ids]
        assert "http" not in picture


def test_units_become_speech(work: Work, tok: Tokenizer, made: dict[str, Path], tmp_path: Path) -> None:
    vocoder, units = Vocoder.load(made["vocoder"], device="cpu"), tok.encode(SOUND)
    found = work.resynthesise(SOUND)
    assert np.array_equal(found.wav, vocoder(units)) and found.units == units
    (tmp_path / "u.jsonl").write_text(unit_text(units))
    for again in (work.resynthesise(pasted=unit_text(units)), work.resynthesise(unit_file=tmp_path / "u.jsonl")):
        assert np.array_equal(again.wav, found.wav) and again.units == units
    short = work.resynthesise(SOUND, predicted=True)
    assert np.array_equal(short.wav, vocoder(units.dedup()[0]))
    assert short.units is not None and len(short.units) * 320 == len(short.wav) != len(found.wav)
    assert short.units.dedup()[0] == units.dedup()[0]


def test_a_vocoder_of_any_voice(work: Work, tok: Tokenizer, tmp_path: Path) -> None:
    ear = tiny_models.encoder()
    path = tiny_models.vocoder(
        tmp_path / "v", tok.header(), speaker_dim=8, speaker_vector_dim=6, speaker_encoder=ear.checksum()
    )
    with pytest.raises(ValueError, match=rf"--vocoder .*v: .*{ear.checksum()}.*speaker/, or name with --tts"):
        load_models(tokenizer=NAME, vocoder=path, device="cpu")
    ear.save(path / "speaker")
    here = Work(load_models(tokenizer=NAME, vocoder=path, device="cpu"))
    vocoder, units = Vocoder.load(path, device="cpu"), tok.encode(SOUND)
    for voice in (None, OTHER):
        vector = ear(audio.read(voice or SOUND, ear.sample_rate))
        assert np.array_equal(here.resynthesise(SOUND, voice=voice).wav, vocoder(units, vector=vector))
    with pytest.raises(ValueError, match="whose voice"):
        here.resynthesise(pasted=unit_text(units))
    assert np.array_equal(here.resynthesise(pasted=unit_text(units), voice=SOUND).wav, here.resynthesise(SOUND).wav)
    shutil.rmtree(path / "speaker")
    tts = TTS.load(tiny_models.tts(tmp_path / "tts", tok.header()), device="cpu")
    assert Models(tok, Vocoder.load(path, device="cpu"), ear=tts.encoder).ear is tts.encoder


def test_conversion_speech_translation_and_text(work: Work, made: dict[str, Path]) -> None:
    converter = VoiceConverter.load(made["converter"], device="cpu")
    for mode in ("speaker", "rhythm"):
        found = work.convert(SOUND, OTHER, mode=mode)
        assert np.array_equal(found.wav, converter(SOUND, OTHER, mode=mode))
    tts = TTS.load(made["tts"], device="cpu")
    said = work.speak("a bad cab 9", speaker="bob", language="es", speed=1.2)
    assert np.array_equal(said.wav, tts("a bad cab 9", speaker="bob", language="es", speed=1.2))
    assert said.notes == {"voice": "bob", "language": "es", "left out, for the model cannot say it": "9"}
    assert np.array_equal(work.speak("a cab", voice=SOUND).wav, tts("a cab", speaker=SOUND))
    translator = Translator.load(made["translator"], device="cpu")(SOUND)
    found = work.translate(SOUND)
    assert np.array_equal(found.wav, translator.wav) and found.text == translator.text
    assert found.units is not None and found.units.ids.tolist() == translator.frames.ids.tolist()
    recognizer = Recognizer.load(made["recognizer"], device="cpu")
    assert work.transcribe(SOUND).text == recognizer(SOUND)
    assert work.transcribe(SOUND, lang="es").notes["language"] == "es"
    prints = {one.tokenizer for one in (found, said, work.transcribe(SOUND), work.convert(SOUND, OTHER))}
    assert prints == {work.models.tokenizer.fingerprint}


def test_limits(work: Work, tmp_path: Path) -> None:
    long, big = write(tmp_path / "long.wav", 6.2), write(tmp_path / "big.wav", 3, 192000)
    assert work.encode(write(tmp_path / "fits.wav", 6.0)).units is not None
    for run in (work.encode, work.resynthesise, work.translate, work.transcribe, lambda x: work.convert(x, SOUND),
                lambda x: work.convert(SOUND, x), lambda x: work.speak("a", voice=x)):  # fmt: skip
        with pytest.raises(AudioError, match=r"long.wav: 6.2 s long; this page takes 6 s at most \(--max-seconds\)"):
            run(long)
        with pytest.raises(AudioError, match=r"big.wav: 1.2 MB; this page takes 1 MB at most \(--max-mb\)"):
            run(big)
    for nothing in (work.encode, work.translate, work.transcribe, lambda x: work.convert(SOUND, x)):
        with pytest.raises(ValueError, match="nothing to hear yet: upload or record"):
            nothing(None)
    with pytest.raises(ValueError, match="no units yet: upload or paste"):
        work.resynthesise()
    with pytest.raises(ValueError, match=r"41 characters; this page takes 40 at most \(--max-chars\)"):
        work.speak("a" * 41)
    with pytest.raises(ValueError, match="write a text"):
        work.speak("  ")
    units = work.models.tokenizer.header().units([1, 2] * 400, "u")
    with pytest.raises(ValueError, match=r"u: 8.0 s of units; this page takes 6 s \(--max-seconds\)"):
        work.resynthesise(pasted=unit_text(replace(units, rate_hz=100.0)))
    for name, limits in (
        ("seconds", {"seconds": 0}),
        ("mb", {"megabytes": float("nan")}),
        ("chars", {"characters": 0}),
    ):
        with pytest.raises(ValueError, match=f"--max-{name}"):
            Limits(**limits)


def test_a_header_that_says_too_little_does_not_get_past_the_limit(
    work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "long.wav", 9)
    true = audio.info(path)
    monkeypatch.setattr(audio, "info", lambda _: replace(true, duration=0.5))
    with pytest.raises(AudioError, match=r"7\.0 s long"):  # no more than that was read
        work.encode(path)


def test_what_cannot_be_is_said(work: Work, tmp_path: Path) -> None:
    (tmp_path / "noise.wav").write_bytes(b"RIFF" + bytes(range(200)))
    with pytest.raises(AudioError, match="noise.wav"):
        work.encode(tmp_path / "noise.wav")
    with pytest.raises(AudioError, match="too short"):
        work.encode(write(tmp_path / "short.wav", 0.002))
    with pytest.raises(UnitsError, match="not a unit file"):
        work.resynthesise(pasted="1 2 3")
    other = replace(work.models.tokenizer.header().units([1, 2], "u"), tokenizer="0123456789ab")
    with pytest.raises(FingerprintError, match="0123456789ab"):
        work.resynthesise(pasted=unit_text(other))
    with pytest.raises(ValueError, match="'/etc/passwd': known are bob, ann, cid"):
        work.speak("a cab", speaker="/etc/passwd")
    with pytest.raises(ValueError, match="exact pitch goes with"):
        work.convert(SOUND, OTHER, mode="all", exact_pitch=True)
    with pytest.raises(ValueError, match="without the model"):
        Work(Models(work.models.tokenizer)).translate(SOUND)


def test_models_that_do_not_belong_are_refused_with_their_option(made: dict[str, Path], tmp_path: Path) -> None:
    tok = Tokenizer.load("mini-100", device="cpu")
    mine = Tokenizer.load(NAME, device="cpu").fingerprint
    with pytest.raises(FingerprintError, match=f"--vocoder .*: .*{mine}.*{tok.fingerprint}"):
        load_models(tokenizer="mini-100", vocoder=made["vocoder"], device="cpu")
    for option in ("vocoder", "converter", "tts", "translator", "recognizer"):
        with pytest.raises(ValueError, match=f"--{option} {tmp_path}"):
            load_models(tokenizer=NAME, device="cpu", **{option: tmp_path})
    with pytest.raises(ValueError, match="--tokenizer nothing"):
        load_models(tokenizer="nothing", device="cpu")
    with pytest.raises(ValueError, match="--translator-vocoder .*name the translator"):
        load_models(tokenizer=NAME, translator_vocoder=made["vocoder"], device="cpu")


def test_a_tokenizer_that_is_not_beside_a_model_is_the_one_named(tmp_path: Path) -> None:
    own = Tokenizer.fit(ROOT / "samples/en/dev.jsonl", features="mfcc", units=8, device="cpu", max_frames=2000)
    own.save(tmp_path / "tok")
    converter = tiny_models.converter(tmp_path / "vc" / "converter", own.header())
    recognizer = tiny_models.recognizer(tmp_path / "asr", own.header())
    with pytest.raises(FingerprintError, match=f"--converter .*{own.fingerprint}"):
        load_models(converter=converter, device="cpu")
    with pytest.raises(FingerprintError, match=f"--recognizer .*{own.fingerprint}.*--tokenizer"):
        load_models(recognizer=recognizer, device="cpu")
    found = load_models(tokenizer=str(tmp_path / "tok"), converter=converter, recognizer=recognizer, device="cpu")
    assert found.converter is not None and found.recognizer is not None and found.recognizer.tokenizer is not None
    assert found.converter.tokenizer.fingerprint == found.recognizer.tokenizer.fingerprint == own.fingerprint


def test_bundled_models_are_taken_where_they_fit(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models_module, "BUNDLED", tmp_path)
    assert load_models(tokenizer=NAME, device="cpu").vocoder is None
    for name in ("vocoder", "tts", "converter", "recognizer"):
        shutil.copytree(made[name], tmp_path / name)
    found = load_models(tokenizer=NAME, device="cpu")
    assert found.vocoder is not None and found.tts is not None and found.converter is not None
    assert found.translator is None and found.recognizer is not None
    other = load_models(tokenizer="mini-100", device="cpu")
    assert other.vocoder is None and other.converter is not None
    (tmp_path / "converter" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"--converter \(bundled\)"):
        load_models(device="cpu")


# ---------------------------------------------------------------------------------------------- from the command line


@pytest.fixture
def unitkit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Run `unitkit ARGS` here: exit status and all it printed."""

    def run(*args: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["unitkit", *map(str, args)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return int(end.value.code or 0), "".join(capsys.readouterr())

    return run


def test_the_command_says_what_is_wrong(
    unitkit: Callable[..., tuple[int, str]], made: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    status, said = unitkit("serve", "--port", 0, "-t", "mini-100", "--vocoder", made["vocoder"], "--device", "cpu")
    assert status == 2 and "--vocoder" in said and "do not mix" in said and "Traceback" not in said
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        status, said = unitkit("serve", "--port", port)
    assert status == 2 and f"port {port} of 127.0.0.1" in said and "--port" in said
    status, said = unitkit("serve", "--max-seconds", 0)
    assert status == 2 and "--max-seconds 0" in said
    monkeypatch.setattr(server_module, "find_spec", lambda name: None)
    status, said = unitkit("serve")
    assert status == 2 and 'pip install "unitkit[serve]"' in said


# ---------------------------------------------------------------------------------------------- in a browser


@contextmanager
def served(work: Work, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The page on a free port, as `unitkit serve` serves it: its address."""
    import uvicorn

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(folder))
    bound = hold_port("127.0.0.1", 0)
    bound.listen()
    server = uvicorn.Server(uvicorn.Config(application(work), log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        bound.close()


@pytest.fixture(scope="module")
def visit(made: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, str, list[str]]]:
    """The page in a browser, with a vocoder and a converter and nothing else; its address; what it asked for."""
    pytest.importorskip("gradio", reason="the page needs gradio: pip install 'unitkit[serve]'")
    sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright here: pip install 'unitkit[dev]'")
    if BROWSER is None:
        pytest.skip("no chromium or google-chrome here; apt-get install chromium (make browser)")
    models = load_models(tokenizer=NAME, vocoder=made["vocoder"], converter=made["converter"], device="cpu")
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
             "--disable-sync", "--no-first-run", "--mute-audio"]  # fmt: skip
    asked: list[str] = []
    with (
        pytest.MonkeyPatch.context() as patch,
        served(Work(models, Limits(seconds=6)), tmp_path_factory.mktemp("gradio"), patch) as url,
        sync_api.sync_playwright() as play,
    ):
        browser = play.chromium.launch(executable_path=BROWSER, args=quiet)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.on("request", lambda request: asked.append(request.url))
        page.set_default_timeout(60_000)
        page.goto(url)
        page.get_by_role("tab", name="Encode").wait_for()
        yield page, url, asked
        browser.close()


def shown_tab(page: Any, name: str) -> Any:
    """Go to a tab: what is in it."""
    page.get_by_role("tab", name=name, exact=True).click()
    panel = page.get_by_role("tabpanel").locator("visible=true")
    panel.wait_for()
    return panel


def upload(panel: Any, *paths: str | Path) -> None:
    """Fill the places for recordings, from the first."""
    for path in paths:  # a place that is filled has no input any more
        left = panel.locator("input[type=file][accept^='audio']").count()
        panel.locator("input[type=file][accept^='audio']").first.set_input_files(path)
        deadline = time.monotonic() + 60
        while panel.locator("input[type=file][accept^='audio']").count() >= left and time.monotonic() < deadline:
            panel.page.wait_for_timeout(50)


def test_units_of_an_upload_are_shown(visit: tuple[Any, str, list[str]], tok: Tokenizer, tmp_path: Path) -> None:
    page, _, _ = visit
    panel, units = shown_tab(page, "Encode"), tok.encode(SOUND)
    upload(panel, SOUND)
    panel.get_by_role("button", name="Encode", exact=True).click()
    panel.locator(".uk-facts").wait_for()
    numbers = panel.locator(".uk-facts").inner_text()
    assert tok.fingerprint in numbers and f"{len(units)} at {units.rate_hz:g} Hz" in numbers
    short = units.dedup()[0].ids.tolist()
    blocks = panel.locator(".uk-block")
    assert blocks.count() == len(short) and f"{len(short)} units" in numbers
    assert [int(one.split(":")[1]) for one in blocks.evaluate_all("all => all.map(x => x.dataset.unit)")] == short
    assert panel.locator("textarea").nth(0).input_value() == " ".join(map(str, short))
    with page.expect_download() as download:
        panel.locator("a[download$=jsonl]").click()
    download.value.save_as(tmp_path / "units.jsonl")
    header, row = map(json.loads, (tmp_path / "units.jsonl").read_text().splitlines())
    assert header["tokenizer"] == tok.fingerprint and row["units"] == units.ids.tolist()
    assert tok.fingerprint in download.value.suggested_filename
    player = panel.locator(".uk-bar audio")
    panel.locator(".uk-block").nth(2).click()  # to hear from there
    page.wait_for_function("x => x.currentTime > 0", arg=player.element_handle())
    assert player.evaluate("x => x.duration") == pytest.approx(audio.info(SOUND).duration, abs=0.02)


def test_an_upload_is_converted_and_heard(visit: tuple[Any, str, list[str]], work: Work, tmp_path: Path) -> None:
    page, _, _ = visit
    panel = shown_tab(page, "Convert")
    upload(panel, SOUND, OTHER)
    panel.get_by_role("button", name="Convert", exact=True).click()
    panel.locator(".uk-facts").wait_for()
    with page.expect_download() as download:
        panel.locator("a.uk-sound").click()
    download.value.save_as(tmp_path / "made.wav")
    assert work.models.tokenizer.fingerprint in download.value.suggested_filename
    heard = panel.locator(".uk-bar audio").evaluate(
        "x => fetch(x.src).then(r => r.arrayBuffer()).then(b => b.byteLength)"
    )
    assert heard == (tmp_path / "made.wav").stat().st_size
    wanted = work.convert(SOUND, OTHER).wav
    assert wanted is not None and audio.info(tmp_path / "made.wav").n_samples == len(wanted)
    assert np.abs(audio.read(tmp_path / "made.wav", 16000) - wanted.clip(-1, 1)).max() < 1e-3


def test_a_tab_without_a_model_says_what_it_takes(visit: tuple[Any, str, list[str]]) -> None:
    page, _, _ = visit
    panel = shown_tab(page, "Translate")  # nothing of it is bundled
    said = panel.inner_text()
    assert "unitkit serve --translator DIR" in said and "egs/prompts/s2st/run.sh" in said
    assert panel.get_by_role("button").count() == 0


def test_every_tab_says_what_it_takes() -> None:
    alone = Work(Models(Tokenizer.load("mini-100", device="cpu")))
    texts = [str(one.get("props", {}).get("value")) for one in blocks(alone).get_config_file()["components"]]
    for what, option, recipe, _ in MISSING.values():
        (said,) = [text for text in texts if f"unitkit serve {option} DIR" in text]
        assert what in said and recipe in said and (ROOT / recipe).is_file()


def test_a_recording_that_is_too_long_is_refused_gently(visit: tuple[Any, str, list[str]], tmp_path: Path) -> None:
    page, _, _ = visit
    panel = shown_tab(page, "Resynthesise")
    upload(panel, write(tmp_path / "<i>long.wav", 7.5))
    panel.get_by_role("button", name="Resynthesise", exact=True).click()
    toast = page.get_by_test_id("toast-body")
    toast.wait_for()
    said = toast.inner_text()
    assert "7.5 s long; this page takes 6 s at most" in said and "/" not in said.split(" long;")[0]
    assert toast.locator("i").count() == 0  # the name of a file is no markup
    assert panel.locator(".uk-facts").count() == 0 or not panel.locator(".uk-facts").is_visible()


def test_nothing_is_asked_of_others(visit: tuple[Any, str, list[str]]) -> None:
    """The last of those that use the page: what it asked for since it was opened; and that this would be seen."""
    page, url, asked = visit
    assert len(asked) > 10
    assert page.request.get(url).headers["content-security-policy"].startswith("default-src 'self'; ")
    assert not [one for one in asked if not one.startswith((f"{url}/", "data:", "blob:"))]
    page.evaluate("fetch('http://a.invalid/x').catch(() => 0)")
    assert "http://a.invalid/x" not in asked  # the policy lets it not even begin
    free, seen = page.context.browser.new_page(), []
    free.on("request", lambda request: seen.append(request.url))
    free.evaluate("fetch('http://127.0.0.1:9/x', {mode: 'no-cors'}).catch(() => 0)")
    free.close()
    assert seen == ["http://127.0.0.1:9/x"]
