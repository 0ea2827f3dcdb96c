"""The page: tabs of Gradio components over the functions of `Work`.  Only this file and server.py know Gradio."""

import sys
import traceback
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from unitkit.audio import AudioError
from unitkit.models.frame import MODES
from unitkit.serve.picture import CSS, SCRIPT, facts, timeline, unit_list
from unitkit.serve.work import Work, unit_text

FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")  # of the system
MONO = ("ui-monospace", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace")
KEPT = (600, 1800)  # seconds: how often files of visitors are looked through, how old they may be
MISSING = {  # what a tab takes, the option that names it, the recipe that trains one, what that leaves
    "Resynthesise": ("a vocoder", "--vocoder", "egs/prompts/resynth/run.sh", "exp/…/vocoder"),
    "Convert": ("a voice converter", "--converter", "egs/prompts/vc/run.sh", "exp/…/converter"),
    "Speak": ("a model of text to speech", "--tts", "egs/prompts/tts/run.sh", "exp/characters"),
    "Translate": ("a translator", "--translator", "egs/prompts/s2st/run.sh", "exp/es-en/pretrained"),
    "Transcribe": ("a recogniser", "--recognizer", "egs/prompts/asr/run.sh", "exp/…/k500"),
}
MODE_INFO = {
    "rhythm": "rhythm: how long its sounds are",
    "pitch-energy": "pitch-energy: how its pitch and loudness move",
    "prosody": "prosody: both of these",
    "speaker": "speaker: the voice",
    "all": "all: voice and prosody",
    "copy": "copy: nothing; the source as the model says it",
}


def blocks(work: Work, *, queue: int = 8) -> gr.Blocks:
    """The page, ready to be mounted; one visitor is served at a time and `queue` wait."""
    tok = work.models.tokenizer
    books = f" × {tok.codebooks} codebooks" if tok.codebooks > 1 else ""
    limits = work.limits
    with gr.Blocks(title="unitkit", analytics_enabled=False, delete_cache=KEPT) as page:
        gr.HTML(
            "<h1>unitkit</h1><p class='uk-quiet'>Speech to discrete units, and back. "
            f"Tokenizer <code>{escape(tok.fingerprint)}</code>: {tok.n_units}{books} units at {tok.rate_hz:g} Hz. "
            f"Recordings of up to {limits.seconds:g} s and {limits.megabytes:g} MB, texts of up to "
            f"{limits.characters} characters; nothing leaves the machine that serves this page.</p>"
        )
        with gr.Tabs():
            for name, there, tab in (
                ("Encode", tok, _encode),
                ("Resynthesise", work.models.vocoder, _resynthesise),
                ("Convert", work.models.converter, _convert),
                ("Speak", work.models.tts, _speak),
                ("Translate", work.models.translator, _translate),
                ("Transcribe", work.models.recognizer, _transcribe),
            ):
                with gr.Tab(name, id=name):
                    tab(work) if there is not None else _missing(name)
    page.queue(max_size=queue, default_concurrency_limit=1, api_open=False)
    return page


def looks() -> dict[str, Any]:
    """Theme and style sheet of the page, for whoever mounts it; all fonts are the visitor's own."""
    return {"theme": gr.themes.Default(primary_hue="blue", font=FONTS, font_mono=MONO), "css": CSS}


def _missing(tab: str) -> None:
    """One line on what makes the model that a tab needs, and which option takes it."""
    what, option, recipe, left = MISSING[tab]
    gr.HTML(
        f"<p class='uk-missing'>This tab needs {what}, and the page was started without one. "
        f"<code>{escape(recipe)}</code> trains it (and leaves it in <code>{escape(left)}</code>); then start the page "
        f"with <code>unitkit serve {escape(option)} DIR</code>.</p>"
    )


# ------------------------------------------------------------------------------------------------------ the tabs


def _encode(work: Work) -> None:
    recording, button = _sound("Recording"), gr.Button("Encode", variant="primary")

    def run(path: str | None) -> tuple[Any, ...]:
        made = work.encode(path)
        assert made.units is not None
        return facts(made, rates=True), timeline(made), unit_list(made), unit_text(made.units)

    with gr.Column(visible=False) as results:
        numbers, figure = gr.HTML(), _figure()
        short = _text("Deduplicated units", lines=2)
        file = _text("Unit file: a header with the fingerprint, then the units of every frame", lines=3)
    _on(button, run, [recording], [numbers, figure, short, file], results=results)


def _resynthesise(work: Work) -> None:
    assert work.models.vocoder is not None
    vocoder = work.models.vocoder
    c = vocoder.config
    alone = not (c.f0 or c.energy)  # units are enough
    recording = _sound("Recording")
    with gr.Accordion("… or a unit file", open=False, visible=alone):
        gr.HTML("<p class='uk-quiet'>Taken where there is no recording; its first utterance is spoken.</p>")
        with gr.Row():
            upload = gr.File(label="Unit file", file_types=[".jsonl"], height=140, min_width=280)
            pasted = gr.Textbox(
                label="… or its text", lines=4, max_lines=4, placeholder='{"unitkit":1,"tokenizer":…', min_width=280
            )
    voice = _sound("Whose voice; left empty, the recording's own", visible=c.speaker_vector_dim > 0)
    with gr.Row(visible=max(len(c.speakers), len(c.langs)) > 1):
        speaker, lang = _choice("Speaker", c.speakers), _choice("Language", c.langs)
    predicted = gr.Checkbox(
        label="Merge runs of units, and predict how long each is", visible=alone and vocoder.predicts_durations
    )
    button = gr.Button("Resynthesise", variant="primary")

    def run(path: str | None, file: str | None, text: str, who: str, tongue: str, short: bool, like: str) -> Any:
        made = work.resynthesise(
            path, unit_file=file, pasted=text, speaker=who, lang=tongue, predicted=short, voice=like
        )
        return facts(made), timeline(made)

    with gr.Column(visible=False) as results:
        numbers, figure = gr.HTML(), _figure()
    given = [recording, upload, pasted, speaker, lang, predicted, voice]
    _on(button, run, given, [numbers, figure], results=results)


def _convert(work: Work) -> None:
    with gr.Row():
        with gr.Column(min_width=320):
            source = _sound("Source: what is said")
        with gr.Column(min_width=320):
            reference = _sound("Reference: whose voice, melody or rhythm")
    mode = gr.Radio([(MODE_INFO[name], name) for name in MODE_INFO if name in MODES], value="speaker", label="Take")
    exact = gr.Checkbox(label="Exact pitch: keep the source's pitch and loudness (with speaker and copy)")
    button = gr.Button("Convert", variant="primary")

    def fits(name: str) -> Any:
        return gr.Checkbox(interactive=True) if name in ("speaker", "copy") else gr.Checkbox(False, interactive=False)

    mode.input(fits, mode, exact, queue=False, show_progress="hidden", api_visibility="private")

    def run(said: str | None, like: str | None, name: str, keep: bool) -> Any:
        made = work.convert(said, like, mode=name, exact_pitch=keep)
        return facts(made), timeline(made)

    with gr.Column(visible=False) as results:
        numbers, figure = gr.HTML(), _figure()
    _on(button, run, [source, reference, mode, exact], [numbers, figure], results=results)


def _speak(work: Work) -> None:
    tts = work.models.tts
    assert tts is not None
    with gr.Row():
        with gr.Column(min_width=320):
            text = gr.Textbox(label=f"Text, up to {work.limits.characters} characters", lines=4, max_lines=8)
            with gr.Row():
                language = _choice("Language", tts.languages)
                speaker = _choice("Speaker", tts.speakers, first="the most heard one" * tts.takes_vectors)
            speed = gr.Slider(0.5, 2.0, 1.0, step=0.05, label="Speed")
        new = tts.encoder is not None and tts.takes_vectors
        with gr.Column(min_width=320, visible=new):
            voice = _sound("… or the voice of a recording")
    button = gr.Button("Speak", variant="primary")

    def run(words: str, tongue: str | None, who: str | None, like: str | None, fast: float) -> Any:
        made = work.speak(words, language=tongue or None, speaker=who or None, voice=like, speed=fast)
        return facts(made), timeline(made)

    with gr.Column(visible=False) as results:
        numbers, figure = gr.HTML(), _figure()
    _on(button, run, [text, language, speaker, voice, speed], [numbers, figure], results=results)


def _translate(work: Work) -> None:
    translator = work.models.translator
    assert translator is not None
    recording = _sound("Recording")
    speaker = _choice("Speaker", translator.vocoder.config.speakers)
    button = gr.Button("Translate", variant="primary")
    writes = "target_text" in translator.model.config.heads

    def run(path: str | None, who: str | None) -> Any:
        made = work.translate(path, speaker=who)
        return facts(made), made.text or "", timeline(made), unit_list(made)

    with gr.Column(visible=False) as results:
        numbers, text = gr.HTML(), _text("Text, as the model writes it", lines=1, visible=writes)
        figure, short = _figure(), _text("Deduplicated units", lines=2)
    _on(button, run, [recording, speaker], [numbers, text, figure, short], results=results)


def _transcribe(work: Work) -> None:
    recognizer = work.models.recognizer
    assert recognizer is not None
    recording = _sound("Recording")
    lang = _choice("Language", recognizer.langs, first="the model finds out")
    button = gr.Button("Transcribe", variant="primary")

    def run(path: str | None, tongue: str | None) -> Any:
        made = work.transcribe(path, lang=tongue or None)
        return facts(made), made.text or ""

    with gr.Column(visible=False) as results:
        numbers, text = gr.HTML(), _text("Text", lines=2)
    _on(button, run, [recording, lang], [numbers, text], results=results)


# ------------------------------------------------------------------------------------------------------ their parts


def _sound(label: str, *, visible: bool = True) -> gr.Audio:
    """Where a recording is uploaded or made; never played through other software than the browser."""
    return gr.Audio(
        label=label, sources=["upload", "microphone"], type="filepath", editable=False, visible=visible, buttons=[]
    )


def _figure() -> gr.HTML:
    return gr.HTML(js_on_load=SCRIPT, padding=False)


def _text(label: str, *, lines: int, visible: bool = True) -> gr.Textbox:
    return gr.Textbox(label=label, lines=lines, max_lines=6, interactive=False, buttons=["copy"], visible=visible)


def _choice(label: str, names: tuple[str, ...], *, first: str = "") -> gr.Dropdown:
    """A name of several, hidden where there is no choice; with `first`, a way to leave it to the model."""
    choices = [*([(first, "")] if first else []), *((name, name) for name in names)]
    value = choices[0][1] if choices else None
    return gr.Dropdown(choices, value=value, label=label, visible=len(choices) > 1, filterable=len(names) > 12)


def _on(
    button: gr.Button, run: Callable[..., Any], inputs: list[Any], outputs: list[Any], *, results: gr.Column
) -> None:
    """Press, and what was there before goes; the answer appears, or an error says why there is none."""

    def answer(*given: Any) -> tuple[Any, ...]:
        return (gr.Column(visible=True), *_gently(run, given))

    button.click(
        lambda: gr.Column(visible=False), None, results, queue=False, show_progress="hidden", api_visibility="private"
    ).then(
        answer,
        inputs,
        [results, *outputs],
        concurrency_limit=1,
        concurrency_id="models",
        show_progress="minimal",
        show_progress_on=[button],
        api_visibility="private",
    )


def _gently(run: Callable[..., Any], given: tuple[Any, ...]) -> tuple[Any, ...]:
    """The answer; errors that are meant for people are shown on the page, faults of ours are told in the terminal."""
    try:
        return tuple(run(*given))
    except (ValueError, OSError, ImportError) as error:
        raise gr.Error(escape(_said(error, given)), title="That did not work", print_exception=False) from None
    except Exception:
        traceback.print_exc(file=sys.stderr)
        text = "A fault of unitkit's own; the terminal in which the page was started says more."
        raise gr.Error(text, title="That did not work", print_exception=False) from None


def _said(error: Exception, given: tuple[Any, ...]) -> str:
    """What an error says, with the names of files instead of where the server keeps them."""
    text = f"{Path(error.path).name}: {error.reason}" if isinstance(error, AudioError) else str(error)
    for one in given:
        if isinstance(one, str) and one.startswith("/"):
            text = text.replace(one, Path(one).name)
    return text
