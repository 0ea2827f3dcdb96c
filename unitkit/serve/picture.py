"""What the page shows of a result, as HTML that needs nothing but itself: the facts, and units over their recording."""

import base64
from html import escape
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from unitkit.axis import round_ticks
from unitkit.serve.work import Result, unit_text
from unitkit.timeline import envelope, strips, wav_base64
from unitkit.units import bitrate

COLUMNS = 900  # points of a waveform across the page
PIXELS = 120  # at least, of a second: a longer recording scrolls sideways
WIDE = 900  # pixels that a figure has on most screens

CSS = """
.uk-quiet, .uk-facts dt, .uk-readout, .uk-tick { color: color-mix(in srgb, var(--body-text-color) 68%, transparent); }
.uk-facts { display: flex; flex-wrap: wrap; gap: 10px 32px; margin: 4px 0; padding: 10px 0;
  border-style: solid; border-width: 1px 0; border-color: color-mix(in srgb, var(--body-text-color) 16%, transparent); }
.uk-facts div { min-width: 0; } .uk-facts dt { font-size: 13px; }
.uk-facts dd { margin: 0; font-weight: 550; overflow-wrap: anywhere; }
.uk-facts div:first-child dd, code { font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.uk-bar { display: flex; flex-wrap: wrap; gap: 8px 20px; align-items: center; margin-bottom: 10px; }
.uk-bar audio { height: 36px; flex: 1 1 260px; max-width: 480px; }
.uk-bar a { color: var(--link-text-color); text-decoration: underline; overflow-wrap: anywhere; margin: 0; padding: 0; }
.uk-bar a::before { content: "\\2193\\a0"; }
.uk-scroll { overflow-x: auto; } .uk-lane { display: block; width: 100%; cursor: pointer; }
.uk-wave { fill: #64748b; } .uk-grid { stroke: color-mix(in srgb, var(--body-text-color) 14%, transparent); }
.uk-head { stroke: #dc2626; stroke-width: 1.5; visibility: hidden; }
.uk-block { stroke: #fff; stroke-width: .5; } .uk-block.uk-same { stroke: #111; stroke-width: 2; }
.uk-number { font-size: 11px; fill: #111; text-anchor: middle; pointer-events: none; }
.uk-tick { font-size: 12px; fill: currentColor; }
.uk-readout { font-size: 13px; margin: 6px 0 0; min-height: 20px; }
.uk-missing { padding: 24px 0; max-width: 76ch; line-height: 1.6; } .uk-missing code { white-space: nowrap; }
@media (max-width: 640px) { .uk-number { display: none; }
  .tab-container button { padding-left: 4px; padding-right: 4px; font-size: 13px; } }
"""

# `element` is the component's; its content is replaced with every result, so that events are heard up here.
SCRIPT = """
const lane = () => element.querySelector('.uk-lane'), player = () => element.querySelector('audio');
const show = (block) => {
  for (const old of element.querySelectorAll('.uk-same')) old.classList.remove('uk-same');
  if (!block) return;
  for (const one of element.querySelectorAll(`.uk-block[data-unit="${block.dataset.unit}"]`))
    one.classList.add('uk-same');
  element.querySelector('.uk-readout').textContent = block.querySelector('title').textContent;
};
const follow = () => {
  if (!lane()) return;
  const at = (player().currentTime / lane().dataset.seconds * 100) + '%', head = element.querySelector('.uk-head');
  head.setAttribute('x1', at); head.setAttribute('x2', at); head.style.visibility = 'visible';
  if (!player().paused) requestAnimationFrame(follow);
};
element.addEventListener('play', follow, true);
element.addEventListener('seeked', follow, true);
element.addEventListener('pointerover', (event) => { if (event.target.closest('.uk-lane'))
  show(event.target.closest('.uk-block')); });
element.addEventListener('click', (event) => {
  const link = event.target.closest('.uk-sound');
  if (link) link.href = player().src;  // the sound is on the page once
  if (!event.target.closest('.uk-lane')) return;
  const box = lane().getBoundingClientRect();
  player().currentTime = Math.min((event.clientX - box.left) / box.width * lane().dataset.seconds, player().duration);
  show(event.target.closest('.uk-block'));
  player().play();
});
"""


def facts(result: Result, *, rates: bool = False) -> str:
    """The numbers of a result, its tokenizer's fingerprint first; with `rates`, the bitrate of its units."""
    found = {"tokenizer": result.tokenizer or "none: no units in between"}
    if result.wav is not None:
        found["speech"] = f"{len(result.wav) / result.rate:.2f} s at {result.rate} Hz"
    units = result.units
    if units is not None and units.n_frames:
        books = f" × {units.codebooks} codebooks" if units.codebooks > 1 else ""
        found["units"] = f"{units.n_frames} at {units.rate_hz:g} Hz{books}"
        found["deduplicated"] = f"{len(units.dedup()[0])} units"
    if rates and units is not None and units.n_frames:
        rate = bitrate([units])
        found["different units"] = f"{rate.n_units_used} of {units.n_units * units.codebooks}"
        found["bitrate"] = f"{rate.bits_per_second:.0f} bit/s"
        found["bitrate, deduplicated"] = f"{rate.dedup_bps:.0f} bit/s"
    found |= {name: value for name, value in result.notes.items() if value}
    rows = (f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in found.items())
    return f"<dl class='uk-facts'>{''.join(rows)}</dl>"


def timeline(result: Result) -> str:
    """Player, waveform and units on one time axis, with the files to download; their names have the fingerprint."""
    wav, units = result.wav, result.units
    if wav is None or units is None or not units.n_frames:
        return "<p class='uk-quiet'>The model found nothing to say.</p>"
    seconds = max(len(wav) / result.rate, units.duration)
    share = 100 * len(wav) / result.rate / seconds
    peak = max(1e-3, float(np.abs(wav).max())) if len(wav) else 1.0
    lanes, stem = strips(units, seconds), f"{result.name or 'units'}.{units.tokenizer}"
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).resolve().parents[1]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("timeline.html.jinja").render(
        what=result.name or "the recording",
        sound=wav_base64(wav, result.rate),
        sound_file=f"{stem}.wav" if result.spoken else "",
        units=base64.b64encode(unit_text(units).encode()).decode(),
        unit_file=f"{stem}.jsonl",
        seconds=seconds,
        share=share,
        columns=COLUMNS,
        wave=envelope(wav / peak, COLUMNS) if len(wav) else "",
        width=round(seconds * PIXELS),
        wide=max(WIDE, round(seconds * PIXELS)),
        height=78 + 28 * len(lanes),
        strips=lanes,
        ticks=[(100 * at / seconds, f"{at:g}") for at in round_ticks(0, seconds, max(4, round(seconds * 2)))],
    )


def unit_list(result: Result) -> str:
    """Deduplicated units in a line; of several codebooks, a frame is written 1/2/3."""
    if result.units is None:
        return ""
    short = result.units.dedup()[0].ids
    rows = short[:, None] if short.ndim == 1 else short  # (runs, codebooks)
    return " ".join("/".join(map(str, row)) for row in rows.tolist())
