"""The report page: built from tiny inputs, opened in a real browser that plays nothing, checked in its rendered DOM."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from unitkit import audio
from unitkit.manifest import Utterance, read_manifest, write_manifest
from unitkit.metrics.rows import markdown, read_scores
from unitkit.report import ReportError, report_experiment, write_report
from unitkit.timeline import unit_colour
from unitkit.units import FingerprintError, Units, UnitsHeader, write_units

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
HEADER = UnitsHeader("3f9c2a1b77d0", 50.0, 20)
RATE = 16000
TEXTS = (
    "Please enter <b>your</b> password & press pound.",
    "Thank you.",
    "</script><script>alert(1)</script>",
    "Goodbye.",
)
SYSTEMS = ("frames", "dedup", "shuffled")


def tone(seconds: float, seed: int) -> np.ndarray:
    generator, t = np.random.default_rng(seed), np.arange(round(seconds * RATE)) / RATE
    swell = 0.5 + 0.5 * np.sin(2 * np.pi * (1 + seed % 3) * t)
    return (0.5 * swell * np.sin(2 * np.pi * (160 + 40 * seed) * t) + 0.02 * generator.normal(size=len(t))).astype(
        np.float32
    )


def some_units(seconds: float, seed: int, key: str, *, header: UnitsHeader = HEADER) -> Units:
    generator = np.random.default_rng(seed)
    frames = round(seconds * header.rate_hz)
    shape = (frames,) if header.codebooks == 1 else (frames, header.codebooks)
    return header.units(np.repeat(generator.integers(0, header.n_units, shape), 3, axis=0)[:frames], key)


def make_set(folder: Path, seconds: list[float], *, seed: int, header: UnitsHeader = HEADER) -> Path:
    rows, units = [], []
    for i, length in enumerate(seconds):
        path = folder / "wav" / f"{i}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        audio.write(path, tone(length, seed + i), RATE)
        rows.append(Utterance(f"en/u{i}", str(path), duration=length, speaker="allison", lang="en", text=TEXTS[i]))
        units.append(some_units(length, seed + i, f"en/u{i}", header=header))
    write_manifest(folder / "manifest.jsonl", rows)
    write_units(folder / "units.jsonl", header, units)
    return folder / "manifest.jsonl"


def make_experiment(root: Path, *, header: UnitsHeader = HEADER) -> Path:
    """An experiment directory as a recipe leaves it: four utterances, three systems, a training log, scores."""
    seconds = [2.0, 1.2, 1.6, 0.4]
    make_set(root / "data", seconds, seed=0, header=header)
    (root / "units").mkdir()
    (root / "data" / "units.jsonl").rename(root / "units" / "test.jsonl")
    for seed, name in enumerate(SYSTEMS, 10):
        make_set(
            root / "synth" / name, [s * (1.15 if name == "dedup" else 1) for s in seconds], seed=seed, header=header
        )
    (root / "vocoder").mkdir()
    log = []
    for step in range(50, 3001, 50):
        decay = float(np.exp(-step / 700))
        values = {"mel": 0.9 + 2 * decay, "loss": 45 + 90 * decay, "lr": 1e-3, "norm_model": 3.0}
        log.append({"step": step, "split": "train", "seconds": step * 0.1} | values)
        if step % 500 == 0:
            values = {"mel": 1 + 2 * decay, "mel_shuffled": 1.9 + decay, "durations": 0.3 + decay}
            log.append({"step": step, "split": "dev", "seconds": step * 0.1} | values)
    (root / "vocoder" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
    scores = []
    for name, shift in (("frames", 0.0), ("dedup", 4.5)):
        row = {"system": name, "split": "test", "n": 84, "low": 20.1 + shift, "high": 29.7 + shift}
        scores.append(row | {"metric": "wer", "value": 24.6 + shift, "reference": 8.61, "control": 98.25,
                             "signature": "wer|lang:en|norm:whisper|asr:whisper-base|v:0.1"})  # fmt: skip
        scores.append(row | {"metric": "mcd", "value": 6.12 + shift / 9, "low": 5.9, "high": 6.3, "control": 11.25,
                             "signature": "mcd|rate:16000|unit:dB|align:dtw|v:0.1"})  # fmt: skip
    (root / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in scores))
    return root


def make_page(root: Path, *, header: UnitsHeader = HEADER, notes: str = "") -> Path:
    exp = make_experiment(root, header=header)
    return report_experiment(
        exp, exp / "data" / "manifest.jsonl", root / "report.html", title="Units & speech", notes=notes
    )


class Elements(HTMLParser):
    """Collects start tags with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {key: value or "" for key, value in attrs}))

    def all(self, tag: str, **wanted: str) -> list[dict[str, str]]:
        keys = {key.rstrip("_"): value for key, value in wanted.items()}
        return [a for t, a in self.found if t == tag and all(v in a.get(k, "").split() for k, v in keys.items())]


def browse(page: Path, scratch: Path, *flags: str) -> tuple[str, str]:
    """Opens a page in headless Chromium and returns the DOM after loading, and the browser's log."""
    if BROWSER is None:
        pytest.skip("no chromium or google-chrome here; apt-get install chromium (make browser)")
    quiet = ["--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
             "--disable-default-apps", "--disable-extensions", "--mute-audio", "--hide-scrollbars"]  # fmt: skip
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", *quiet, f"--user-data-dir={scratch / 'profile'}",
               "--enable-logging=stderr", "--virtual-time-budget=6000",
               "--host-resolver-rules=MAP * ~NOTFOUND", *flags, page.as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True)
    return done.stdout, done.stderr


def requests(net_log: Path) -> set[str]:
    """Addresses that the page asked the network for (not the browser itself, whose calls have no origin)."""
    found = set()
    for line in net_log.read_text().splitlines():
        if '"initiator"' in line and '"url":"' in line:
            asked = json.loads(line.rstrip(","))["params"]
            if asked["initiator"] != "not an origin" and not asked["url"].startswith(("file:", "data:")):
                found.add(asked["url"])
    return found


# A copy of the page gets this script (and its hash in the policy): sizes of what was really drawn, as attributes.
PROBE = """for (const one of document.querySelectorAll("svg, rect, path, polyline, audio")) {
  const box = one.getBoundingClientRect();
  one.dataset.box = [box.width, box.height].map((x) => x.toFixed(2)).join(" "); }
document.body.dataset.overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;"""


def probed(page: Path) -> Path:
    from unitkit.report import _csp_hash

    text = page.read_text().replace("script-src ", f"script-src {_csp_hash(PROBE)} ", 1)
    copy = page.with_name("probed.html")
    copy.write_text(text.replace("</body>", f"<script>{PROBE}</script></body>"))
    return copy


@pytest.mark.parametrize("width", [1280, 500])  # 500 is the narrowest window that Chromium opens
def test_the_page_in_a_browser(tmp_path: Path, width: int) -> None:
    page = make_page(tmp_path / "exp")
    log = tmp_path / "net.json"
    dom, errors = browse(probed(page), tmp_path, "--dump-dom", f"--window-size={width},900", f"--log-net-log={log}")
    assert "CONSOLE" not in errors, [line for line in errors.splitlines() if "CONSOLE" in line]
    seen = Elements(dom)
    players = seen.all("audio")
    assert len(players) == 3 * 4  # three utterances of at least a second; the original and three systems each
    assert all("controls" in one and one["aria-label"] for one in players)
    durations = [float(one["data-duration"]) for one in players]  # only there once the browser has decoded the header
    assert durations[:4] == pytest.approx([2.0, 2.0, 2.3, 2.0], abs=0.01)
    figures = seen.all("svg", class_="figure")
    assert len(figures) == len(players)
    assert len(seen.all("path", class_="wave")) == len(players)
    assert len(seen.all("polyline")) == 3 + 1 + 1  # mel: train, dev, control; durations: dev; loss: train
    for one in figures + seen.all("path") + seen.all("polyline") + seen.all("rect", class_="block"):
        across, down = map(float, one["data-box"].split())
        assert across > 0.5 and down > 0.5, one
    assert float(figures[0]["data-box"].split()[0]) > (700 if width > 1000 else 250)
    assert int(seen.all("body")[0]["data-overflow"]) <= 0, "the page scrolls sideways"
    assert not requests(log), "the page asked the network for something"


@pytest.mark.parametrize("policy", [True, False])
def test_what_is_not_of_the_page_is_refused_and_seen(tmp_path: Path, policy: bool) -> None:
    """The control of the test above: the policy makes the console complain, and without it the network log tells."""
    page, log = make_page(tmp_path / "exp"), tmp_path / "net.json"
    foreign = "<script>document.title = 'taken'</script><img src='http://a.invalid/x'></body>"
    text = page.read_text().replace("</body>", foreign)
    page.write_text(text if policy else re.sub(r"<meta http-equiv[^>]+>", "", text))
    dom, errors = browse(page, tmp_path, "--dump-dom", f"--log-net-log={log}")
    assert ("<title>taken" in dom) is not policy
    complaints = [line for line in errors.splitlines() if "CONSOLE" in line and "Content Security Policy" in line]
    assert len(complaints) == (2 if policy else 0)
    assert requests(log) == (set() if policy else {"http://a.invalid/x"})


def test_the_page_holds_everything_itself(tmp_path: Path) -> None:
    text = make_page(tmp_path / "exp", notes="First <i>note</i>.\n\nSecond.").read_text()
    seen = Elements(text)
    addresses = [a[key] for _, a in seen.found for key in ("src", "href", "data", "srcset", "action") if key in a]
    assert addresses and all(one.startswith("data:") for one in addresses)
    assert not re.search(r"@import|url\(|https?://", text)
    assert len(text) < 3_000_000
    assert "First &lt;i&gt;note&lt;/i&gt;." in text and "<p>Second.</p>" in text


def test_text_is_escaped_and_shown(tmp_path: Path) -> None:
    text = make_page(tmp_path / "exp").read_text()
    assert "Units &amp; speech" in text
    assert "<b>your</b>" not in text and "</script><script>alert" not in text
    shown = unescape(text)
    assert all(one in shown for one in TEXTS[:3])
    assert TEXTS[3] not in shown  # 0.4 s: too short to be picked


def test_blocks_are_the_units(tmp_path: Path) -> None:
    """The first timeline spells the units of the longest utterance, run by run, and covers it without gaps."""
    seen = Elements(make_page(tmp_path / "exp").read_text())
    runs, durations = some_units(2.0, 0, "en/u0").dedup()
    blocks = seen.all("rect", class_="block")[: len(runs)]
    assert [int(one["data-unit"].split(":")[1]) for one in blocks] == runs.ids.tolist()
    # 2 s of 2.3 s, the length of the longest lane; edges are printed with two decimals
    expected = np.r_[0, np.cumsum(durations)[:-1]] / 50 / 2.3 * 100
    assert [float(one["x"].rstrip("%")) for one in blocks] == pytest.approx(expected, abs=0.02)
    assert [one["fill"] for one in blocks] == [unit_colour(int(unit)) for unit in runs.ids]


def test_colours_are_stable_and_differ() -> None:
    assert unit_colour(57) == unit_colour(57)
    assert len({unit_colour(unit) for unit in range(200)}) > 190
    assert unit_colour(5, 0) != unit_colour(5, 1)


def test_several_codebooks_have_a_strip_each(tmp_path: Path) -> None:
    header = UnitsHeader("3f9c2a1b77d0", 50.0, 20, codebooks=3)
    seen = Elements(make_page(tmp_path / "exp", header=header).read_text())
    assert {one["data-unit"].split(":")[0] for one in seen.all("rect", class_="block")} == {"0", "1", "2"}
    assert len({one["y"] for one in seen.all("rect", class_="block")}) == 3


def test_scores_show_reference_control_and_signature(tmp_path: Path) -> None:
    text = make_page(tmp_path / "exp").read_text()
    table = re.sub(r"<[^>]+>", " ", text[text.index("<tbody>") : text.index("</tbody>")]).split()
    wer = table[: table.index("MCD")]
    assert wer[-7:] == ["8.6", "24.6", "20.1–29.7", "29.1", "24.6–34.2", "98.2", "84"]
    assert "–" in table[table.index("MCD") :]  # MCD has no reference value
    assert "wer|lang:en|norm:whisper|asr:whisper-base|v:0.1" in text


def test_a_small_negative_score_is_not_minus_zero(tmp_path: Path) -> None:
    exp = make_experiment(tmp_path / "exp")
    row = {"system": "frames", "split": "test", "metric": "f0_mean_moved", "value": -0.3, "n": 4, "signature": "a"}
    (exp / "scores.jsonl").write_text(json.dumps(row) + "\n")
    page = report_experiment(exp, exp / "data" / "manifest.jsonl", exp / "report.html", title="x").read_text()
    assert ">0<" in page and "-0<" not in page
    assert "| 0 |" in markdown(read_scores(exp / "scores.jsonl"))


def test_units_may_lie_elsewhere(tmp_path: Path) -> None:
    exp = make_experiment(tmp_path / "exp")
    manifest, title = exp / "data" / "manifest.jsonl", "x"
    before = report_experiment(exp, manifest, tmp_path / "a.html", title=title).read_text()
    moved = (exp / "units" / "test.jsonl").rename(tmp_path / "other.jsonl")
    assert report_experiment(exp, manifest, tmp_path / "b.html", title=title, units=moved).read_text() == before
    with pytest.raises(FileNotFoundError):
        report_experiment(exp, manifest, tmp_path / "c.html", title=title)


def test_metrics_left_out_say_why(tmp_path: Path) -> None:
    exp = make_experiment(tmp_path / "exp")
    row = {"system": "frames", "split": "test", "metric": "dnsmos", "value": None, "n": 0, "signature": ""}
    with (exp / "scores.jsonl").open("a") as file:
        file.write(json.dumps(row | {"note": "speechmos is not installed; pip install speechmos"}) + "\n")
    text = report_experiment(exp, exp / "data" / "manifest.jsonl", exp / "report.html", title="x").read_text()
    assert "frames dnsmos: speechmos is not installed" in text and text[text.index("<tbody>") :].count("<tr>") == 2


def test_rows_with_different_signatures_are_not_merged(tmp_path: Path) -> None:
    exp = make_experiment(tmp_path / "exp")
    row = {"split": "test", "metric": "wer", "n": 4}
    rows = [
        row | {"system": "frames", "value": 1.0, "signature": "a"},
        row | {"system": "dedup", "value": 2.0, "signature": "b"},
    ]
    (exp / "scores.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    text = report_experiment(exp, exp / "data" / "manifest.jsonl", exp / "report.html", title="x").read_text()
    assert text[text.index("<tbody>") :].count("<tr>") == 2


def test_a_page_without_training_and_scores(tmp_path: Path) -> None:
    exp = make_experiment(tmp_path / "exp")
    (exp / "scores.jsonl").unlink()
    shutil.rmtree(exp / "vocoder")
    (exp / "synth" / "dedup" / "units.jsonl").unlink()
    text = report_experiment(exp, exp / "data" / "manifest.jsonl", exp / "report.html", title="x").read_text()
    assert text.count("<audio") == 12 and 'id="training"' not in text and 'id="scores"' not in text
    assert text.count("no units beside it") == 3


def test_translations_begin_with_what_was_said_and_show_what_was_written(tmp_path: Path) -> None:
    exp = make_experiment(tmp_path / "exp")
    originals = list(read_manifest(exp / "data" / "manifest.jsonl"))
    write_manifest(tmp_path / "said.jsonl", [replace(row, text="¿qué?", lang="es") for row in originals])
    (exp / "synth" / "dedup").rename(exp / "synth" / "mine")
    made = exp / "synth" / "mine" / "manifest.jsonl"
    write_manifest(made, [replace(row, text="what & why") for row in read_manifest(made)])
    (exp / "units" / "test.jsonl").rename(exp / "units" / "test.target.jsonl")  # as the recipes of translation name it
    page = report_experiment(
        exp, exp / "data" / "manifest.jsonl", exp / "r.html", title="x", source=tmp_path / "said.jsonl"
    )
    first = [one["data-name"] for one in Elements(page.read_text()).all("div") if "data-name" in one][:3]
    assert first == ["source", "original", "frames"]
    assert "“¿qué?”" in page.read_text() and "“what &amp; why”" in page.read_text()


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    exp = make_experiment(tmp_path / "exp")
    other = UnitsHeader("000000000000", 50.0, 20)
    make_set(exp / "synth" / "dedup", [2.0, 1.2, 1.6, 0.4], seed=3, header=other)
    with pytest.raises(FingerprintError, match="000000000000"):
        report_experiment(exp, exp / "data" / "manifest.jsonl", exp / "report.html", title="x")
    assert not (exp / "report.html").exists()


def test_nothing_in_common_is_an_error(tmp_path: Path) -> None:
    exp = make_experiment(tmp_path / "exp")
    write_manifest(tmp_path / "other.jsonl", [Utterance("elsewhere", str(exp / "data" / "wav" / "0.wav"))])
    with pytest.raises(ReportError, match="frames, dedup, shuffled"):
        report_experiment(exp, tmp_path / "other.jsonl", exp / "report.html", title="x")


def test_max_items_spreads_over_lengths(tmp_path: Path) -> None:
    exp = make_experiment(tmp_path / "exp")
    systems = [("frames", exp / "synth" / "frames" / "manifest.jsonl")]
    page = write_report(exp / "one.html", title="x", systems=systems, reference=exp / "data" / "manifest.jsonl",
                        units=exp / "units" / "test.jsonl", max_items=1)  # fmt: skip
    articles = Elements(page.read_text()).all("article")
    assert [one["aria-label"] for one in articles] == ["utterance en/u2"]  # 1.6 s: the middle of 2.0, 1.6 and 1.2


def test_what_recognisers_wrote_stands_under_the_recording(tmp_path: Path) -> None:
    """Without any synthesis; what is written is text, whatever it looks like, and comes in the order of the scores."""
    exp = make_experiment(tmp_path / "exp")
    shutil.rmtree(exp / "synth")
    (exp / "scores.jsonl").write_text(
        "".join(
            json.dumps(
                {"system": name, "split": "test", "metric": "text_cer", "value": 9.0, "n": 2, "signature": "cer"}
            )
            + "\n"
            for name in ("logmel", "k500")
        )
    )
    rows = list(read_manifest(exp / "data" / "manifest.jsonl"))
    for name, said in (("k500", "<i>thank you"), ("logmel", "")):
        write_manifest(exp / "text" / "manifest" / f"{name}.jsonl", [replace(row, text=said) for row in rows[:2]])
    text = report_experiment(exp, originals(exp), tmp_path / "page.html", title="Heard").read_text()
    for row in rows[:2]:
        article = text.split(f'aria-label="utterance {row.id}"')[1].split("</article>")[0]
        assert re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", article) == [
            ("logmel", "(nothing)"),
            ("k500", "&lt;i&gt;thank you"),
        ]
    assert "Heard and written" in text and rows[2].id not in text
    assert "under a synthesis" not in text
    shutil.rmtree(exp / "text")
    with pytest.raises(ReportError, match="no system"):
        report_experiment(exp, originals(exp), tmp_path / "page.html", title="Heard")


def originals(exp: Path) -> Path:
    """The manifest of the originals."""
    return exp / "data" / "manifest.jsonl"
