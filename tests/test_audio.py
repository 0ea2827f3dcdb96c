"""audio.py on real files: formats, rates, channels, segments, and every way a file can be bad."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unitkit import audio
from unitkit.audio import AudioError


def tone(frequency: float, seconds: float, rate: int) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def peak_hz(wav: np.ndarray, rate: int) -> float:
    return float(np.argmax(np.abs(np.fft.rfft(wav * np.hanning(len(wav))))) * rate / len(wav))


@pytest.mark.parametrize(
    ("suffix", "subtype", "rate", "channels"),
    [
        ("wav", "PCM_16", 16000, 1),
        ("wav", "PCM_24", 44100, 2),
        ("wav", "FLOAT", 48000, 2),
        ("wav", "ULAW", 8000, 1),
        ("flac", "PCM_16", 22050, 1),
        ("ogg", "VORBIS", 16000, 2),
        ("mp3", "MPEG_LAYER_III", 8000, 2),
    ],
)
def test_formats(tmp_path: Path, suffix: str, subtype: str, rate: int, channels: int) -> None:
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, np.stack([tone(440, 1.0, rate)] * channels, axis=1), rate, subtype=subtype)
    wav = audio.read(path, 16000)
    assert wav.dtype == np.float32 and wav.ndim == 1
    assert len(wav) == pytest.approx(16000, abs=2500 if suffix == "mp3" else 1)  # mp3 pads to whole frames
    assert peak_hz(wav[2000:-3000], 16000) == pytest.approx(440, abs=3)
    assert np.abs(wav).max() == pytest.approx(0.5, abs=0.06)
    found = audio.info(path)
    assert (found.rate, found.channels) == (rate, channels)
    assert found.duration == pytest.approx(found.n_samples / rate)
    assert round(found.n_samples * 16000 / rate) == pytest.approx(len(wav), abs=1)


@pytest.mark.parametrize(("suffix", "codec", "rate"), [("m4a", "aac", 44100), ("webm", "libopus", 48000)])
def test_containers_through_pyav(tmp_path: Path, suffix: str, codec: str, rate: int) -> None:
    av = pytest.importorskip("av")
    path = tmp_path / f"a.{suffix}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout="stereo")
        samples = np.stack([tone(440, 1.0, rate), np.zeros(rate, np.float32)])
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="stereo")
        frame.rate = rate
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)
    left, mixed = audio.read(path, 16000, channel=0), audio.read(path, 16000)
    assert len(left) == pytest.approx(16000, abs=1600)
    assert peak_hz(left[2000:-2000], 16000) == pytest.approx(440, abs=3)
    assert np.abs(mixed[4000:-4000]).max() == pytest.approx(np.abs(left[4000:-4000]).max() / 2, rel=0.15)
    part = audio.read(path, 16000, start=0.25, duration=0.5)
    assert len(part) == 8000
    assert np.abs(part - left[4000:12000] / 2)[200:-200].max() < 0.05
    assert audio.info(path).channels == 2


def test_raw_g722(tmp_path: Path) -> None:
    codec = pytest.importorskip("G722").G722(16000, 64000)
    pytest.importorskip("av")
    path = tmp_path / "a.g722"
    path.write_bytes(codec.encode((tone(440, 1.0, 16000) * 32767).astype(np.int16).tolist()))
    wav = audio.read(path, 16000)
    assert len(wav) == pytest.approx(16000, abs=400)
    assert peak_hz(wav[1000:-1000], 16000) == pytest.approx(440, abs=3)


def test_channels_are_averaged_or_chosen_never_interleaved(tmp_path: Path) -> None:
    path = tmp_path / "stereo.wav"
    left, right = tone(300, 0.5, 16000), tone(1000, 0.5, 16000)
    soundfile.write(path, np.stack([left, right], axis=1), 16000, subtype="FLOAT")
    np.testing.assert_array_equal(audio.read(path, 16000, channel=1), right)
    np.testing.assert_allclose(audio.read(path, 16000), (left + right) / 2, atol=1e-7)
    with pytest.raises(AudioError, match=r"no channel 2; known: 0\.\.1"):
        audio.read(path, 16000, channel=2)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_segment_equals_the_cut_of_the_whole(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    rng = np.random.default_rng(0)
    soundfile.write(path, rng.uniform(-0.5, 0.5, 40000).astype(np.float32), 16000)
    whole = audio.read(path, 16000)
    np.testing.assert_allclose(audio.read(path, 16000, start=0.5, duration=1.0), whole[8000:24000], atol=1e-6)
    np.testing.assert_allclose(audio.read(path, 16000, start=2.0, duration=60), whole[32000:], atol=1e-6)


def test_segment_does_not_read_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "long.wav"
    soundfile.write(path, np.zeros(16000 * 100, np.int16), 16000)
    frames_read: list[int] = []
    original = soundfile.SoundFile.read

    def counting(file: soundfile.SoundFile, frames: int, dtype: str, always_2d: bool) -> np.ndarray:
        block = original(file, frames, dtype, always_2d=always_2d)
        frames_read.append(len(block))
        return block

    monkeypatch.setattr(soundfile.SoundFile, "read", counting)
    audio.read(path, 16000, start=50, duration=2)
    assert sum(frames_read) == 32000


def test_streamed_resampling_equals_one_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit: units must not depend on how a file was read."""
    monkeypatch.setattr(audio, "BLOCK", 1000)
    path = tmp_path / "a.wav"
    for rate in (8000, 11025, 22050, 44100, 48000, 96000):
        wav = np.random.default_rng(1).uniform(-0.5, 0.5, rate).astype(np.float32)
        soundfile.write(path, wav, rate, subtype="FLOAT")
        np.testing.assert_array_equal(audio.read(path, 16000), soxr.resample(wav, rate, 16000))
        np.testing.assert_array_equal(audio.read(path, 16000), audio.resample(wav, rate, 16000))


@pytest.fixture(scope="module")
def readable(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One file of every way in: soundfile at the wanted rate and others, inexact seeking, and PyAV."""
    root = tmp_path_factory.mktemp("readable")
    rng = np.random.default_rng(3)
    for name, rate, channels in (("a.wav", 16000, 1), ("b.flac", 44100, 2), ("c.ogg", 8000, 1), ("d.mp3", 22050, 2)):
        soundfile.write(root / name, rng.uniform(-0.5, 0.5, (rate * 2, channels)), rate)
    paths = [root / name for name in ("a.wav", "b.flac", "c.ogg", "d.mp3")]
    try:
        import av
    except ImportError:
        return paths
    with av.open(str(root / "e.m4a"), "w") as container:
        stream = container.add_stream("aac", rate=44100, layout="stereo")
        samples = rng.uniform(-0.5, 0.5, (2, 88200)).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="stereo")
        frame.rate = 44100
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)
    return [*paths, root / "e.m4a"]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seconds=st.floats(1e-5, 3.0), size=st.integers(1, 60000), start=st.sampled_from([0.0, 0.37]), data=st.data())
def test_block_sizes_change_no_sample(
    readable: list[Path], seconds: float, size: int, start: float, data: st.DataObject
) -> None:
    path = data.draw(st.sampled_from(readable))
    seconds, size = max(seconds, 0.002), max(size, 100)
    whole = audio.read(path, 16000, start=start)
    before = audio.BLOCK
    audio.BLOCK = before if path.suffix == ".mp3" else size  # libsndfile rounds mp3 by how it is read: see BLOCK
    try:
        blocks = list(audio.blocks(path, 16000, start=start, seconds=seconds))
    finally:
        audio.BLOCK = before
    np.testing.assert_array_equal(np.concatenate(blocks), whole)
    assert {len(block) for block in blocks[:-1]} <= {max(1, round(seconds * 16000))} and len(blocks[-1]) > 0
    assert all(block.dtype == np.float32 for block in blocks)


def test_a_bad_end_is_met_when_it_is_reached(tmp_path: Path) -> None:
    path = tmp_path / "late.wav"
    wav = np.zeros(160000, np.float32)
    wav[150000] = np.nan
    soundfile.write(path, wav, 16000, subtype="FLOAT")
    blocks = audio.blocks(path, 16000, seconds=1)  # nothing is read before the first block is asked for
    with pytest.raises(AudioError, match=r"late\.wav: holds NaN or infinite samples \(1 in one block\)"):
        next(blocks)
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 16000 * 60)
    soundfile.write(tmp_path / "cut.flac", noise, 16000)
    (tmp_path / "cut.flac").write_bytes((tmp_path / "cut.flac").read_bytes()[:-50000])
    blocks = audio.blocks(tmp_path / "cut.flac", 16000, seconds=10)
    assert len(next(blocks)) == 160000
    with pytest.raises(AudioError, match=r"cut\.flac: is (corrupt|truncated)"):
        list(blocks)


def bad_files(folder: Path) -> dict[str, str]:
    """File name -> what the error must say."""
    (folder / "empty.wav").write_bytes(b"")
    (folder / "text.wav").write_text("this is no sound\n" * 50)
    (folder / "noise.flac").write_bytes(np.random.default_rng(0).bytes(5000))
    (folder / "folder.wav").mkdir()
    soundfile.write(folder / "zero.wav", np.zeros(0), 16000)
    soundfile.write(folder / "nan.wav", np.array([0.0, np.nan, 0.1]), 16000, subtype="FLOAT")
    soundfile.write(folder / "inf.wav", np.array([0.0, np.inf, 0.1]), 16000, subtype="FLOAT")
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 160000)
    soundfile.write(folder / "cut.flac", noise, 16000)
    (folder / "cut.flac").write_bytes((folder / "cut.flac").read_bytes()[:100000])
    return {
        "missing.wav": "no such file",
        "empty.wav": "is empty",
        "text.wav": "not audio",
        "noise.flac": "not audio",
        "folder.wav": "is a directory",
        "zero.wav": "no samples",
        "nan.wav": "NaN",
        "inf.wav": "infinite",
        "cut.flac": "corrupt|truncated",
    }


def test_bad_files_are_named_with_the_reason(tmp_path: Path) -> None:
    for name, reason in bad_files(tmp_path).items():
        with pytest.raises(AudioError, match=reason) as caught:
            audio.read(tmp_path / name, 16000)
        assert caught.value.path == str(tmp_path / name)
        assert str(caught.value) == f"{caught.value.path}: {caught.value.reason}"
    for name in ("missing.wav", "empty.wav", "text.wav", "zero.wav", "folder.wav"):
        with pytest.raises(AudioError):
            audio.info(tmp_path / name)


def test_bad_requests_are_errors(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(16000, np.int16), 16000)
    for start, duration in ((2.0, None), (-1.0, None), (0.0, 0.0), (0.0, -1.0), (float("nan"), None)):
        with pytest.raises(AudioError):
            audio.read(path, 16000, start=start, duration=duration)
    with pytest.raises(AudioError, match="0 Hz"):
        audio.read(path, 0)


def test_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(AudioError("a.wav", "is empty (0 bytes)")))
    assert (error.path, error.reason) == ("a.wav", "is empty (0 bytes)")


def test_write_round_trip_clip_and_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pcm = np.random.default_rng(0).integers(-32768, 32768, 5000).astype(np.float32) / 32768
    for name in ("deep/a.wav", "a.flac"):
        audio.write(tmp_path / name, pcm, 22050)
        np.testing.assert_array_equal(audio.read(tmp_path / name, 22050), pcm)
        assert soundfile.info(tmp_path / name).subtype == "PCM_16"
    audio.write(tmp_path / "loud.wav", np.array([2.0, -2.0], np.float32), 16000)
    np.testing.assert_allclose(audio.read(tmp_path / "loud.wav", 16000), [32767 / 32768, -1.0])
    for name, wav in (("a.mp3", pcm), ("b.wav", np.array([np.nan])), ("c.wav", np.zeros((2, 2)))):
        with pytest.raises(AudioError):
            audio.write(tmp_path / name, wav, 16000)

    def broken(path: Path, *_: object, **__: object) -> None:
        Path(path).write_bytes(b"half")
        raise RuntimeError("disk full")

    monkeypatch.setattr(soundfile, "write", broken)
    with pytest.raises(RuntimeError):
        audio.write(tmp_path / "a.flac", pcm * 0, 22050)
    np.testing.assert_array_equal(audio.read(tmp_path / "a.flac", 22050), pcm)
    assert not list(tmp_path.glob(".*.tmp"))


def test_mel_filters_match_librosa_convention() -> None:
    filters = audio.mel_filters(16000, n_fft=400, n_mels=80)
    assert filters.shape == (80, 201)
    transformers_audio = pytest.importorskip("transformers.audio_utils")
    expected = transformers_audio.mel_filter_bank(201, 80, 0.0, 8000.0, 16000, norm="slaney", mel_scale="slaney")
    np.testing.assert_allclose(filters, expected.T, atol=1e-6)
    with pytest.raises(ValueError, match="9000"):
        audio.mel_filters(16000, n_fft=400, n_mels=80, fmax=9000)


@pytest.mark.parametrize(("hop", "samples"), [(200, 5000), (256, 5119), (200, 199)])
def test_spectra_are_centred_on_their_hops(hop: int, samples: int) -> None:
    mel = audio.Mel(hop=hop, n_mels=24)
    wav = np.random.default_rng(0).standard_normal(samples).astype(np.float32) * 0.1
    mels, lengths = audio.spectra(wav, mel)
    assert mels.shape == (samples // hop, 24) and lengths.shape == (samples // hop,)
    window, padded = np.hanning(1025)[:-1], np.pad(wav, (1024, 2048))
    filters = audio.mel_filters(16000, n_fft=1024, n_mels=24)
    for k in range(len(mels)):  # one frame after the other, cut around its centre
        middle = 1024 + k * hop + hop // 2
        spectrum = np.abs(np.fft.rfft(padded[middle - 512 : middle + 512] * window))
        assert np.allclose(mels[k], np.log(np.maximum(filters @ spectrum, 1e-5)), atol=1e-3)
        assert lengths[k] == pytest.approx(np.sqrt(np.sum(spectrum**2)), rel=1e-4)
    again = audio.spectra(wav, mel, block=3)
    assert np.allclose(again[0], mels, atol=1e-5) and np.allclose(again[1], lengths, rtol=1e-5)


def test_mels_have_names() -> None:
    names = {audio.Mel(**{field: value}).fingerprint for field, value in
             (("hop", 200), ("hop", 160), ("n_mels", 40), ("n_fft", 512), ("sample_rate", 22050))}  # fmt: skip
    assert len(names) == 5 and all(len(name) == 12 for name in names) and audio.Mel().fingerprint in names
    assert audio.Mel(hop=256, sample_rate=22050).rate_hz == pytest.approx(86.13, abs=0.01)
    for hop in (0, 1025, 201):
        with pytest.raises(ValueError, match=f"mel.hop={hop}: frames of n_fft=1024 samples are centred on hops"):
            audio.Mel(hop=hop)


def test_energy_and_f0_share_frames() -> None:
    wav = np.concatenate([np.zeros(8000, np.float32), voiced(150, 16000)])
    power = audio.energy(wav, hop_samples=320)
    assert len(power) == len(wav) // 320
    assert power[:20].max() == 0 and power[30:].min() > 0.01
    pytest.importorskip("swift_f0")
    pitch = audio.f0(wav, 16000, hop_samples=320)
    assert pitch.dtype == np.float32 and len(pitch) == len(power)
    assert (pitch[:20] == 0).all()
    np.testing.assert_allclose(pitch[35:65], 150, rtol=0.02)
    assert len(audio.f0(wav[:100], 16000, hop_samples=320)) == 0


def voiced(frequency: float, n_samples: int) -> np.ndarray:
    time = np.arange(n_samples) / 16000
    return (0.1 * sum(np.sin(2 * np.pi * frequency * k * time) / k for k in range(1, 12))).astype(np.float32)


def test_f0_names_the_extra_when_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    audio._pitch_detector.cache_clear()
    monkeypatch.setitem(sys.modules, "swift_f0", None)
    with pytest.raises(ImportError, match=r"unitkit\[eval\]"):
        audio.f0(np.zeros(16000, np.float32), 16000, hop_samples=320)


def test_pyav_is_optional(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "text.wav").write_text("hello " * 100)
    with pytest.raises(AudioError, match=r"unitkit\[video\]"):
        audio.read(tmp_path / "text.wav", 16000)


def test_import_is_light() -> None:
    code = "import sys, unitkit.audio; print([m for m in ('torch', 'av', 'soxr', 'swift_f0') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=60), st.floats(0.5, 4.0))
def test_cuts_leave_parts_that_are_neither_too_long_nor_too_short(loud: list[float], longest: float) -> None:
    rate = 1000
    wav = np.repeat(np.array(loud, np.float32), rate // 3)
    cuts = audio.quiet_cuts(wav, rate, longest)
    lengths = np.diff([0, *cuts, len(wav)]) / rate
    assert lengths.sum() * rate == pytest.approx(len(wav)) and (lengths <= longest + 0.021).all()
    if cuts:
        assert (lengths[:-1] >= longest / 2 - 0.021).all() and lengths[-1] >= longest / 4 - 0.041
    else:
        assert len(wav) <= longest * rate
