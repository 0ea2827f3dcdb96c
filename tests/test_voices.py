"""Speaker vectors by name: there and back, means, and what does not belong together."""

from pathlib import Path

import numpy as np
import pytest

from unitkit.voices import Voices, VoicesError


def some(encoder: str = "cafecafecafe") -> Voices:
    return Voices.of(
        {"a/1": np.array([3.0, 4.0]), "a/2": np.array([0.0, 2.0]), "b": np.array([-1.0, 0.0])}, encoder=encoder
    )


def test_they_have_length_one_and_come_back(tmp_path: Path) -> None:
    voices = some()
    assert np.allclose(voices["a/1"], [0.6, 0.8]) and voices["a/1"].dtype == np.float32 and voices.dim == 2
    assert "b" in voices and "c" not in voices and len(voices) == 3
    voices.save(tmp_path / "deep" / "v.safetensors")
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["v.safetensors"]
    again = Voices.load(tmp_path / "deep" / "v.safetensors")
    assert again.names == voices.names and np.array_equal(again.vectors, voices.vectors)
    assert again.encoder == "cafecafecafe" and again.checksum() == voices.checksum() != some("other").checksum()


def test_means_of_groups() -> None:
    found = some().means({"ann": ["a/1", "a/2"], "bob": ["b"]})
    assert found.names == ("ann", "bob") and np.allclose(found["bob"], [-1, 0])
    assert np.allclose(found["ann"], np.array([0.6, 1.8]) / np.hypot(0.6, 1.8)) and found.encoder == "cafecafecafe"


def test_more_voices_replace_those_of_the_same_name() -> None:
    both = some().with_more(Voices.of({"b": np.array([0, 1.0]), "c": np.array([1.0, 0])}, encoder="cafecafecafe"))
    assert both.names == ("a/1", "a/2", "b", "c") and np.allclose(both["b"], [0, 1])
    with pytest.raises(VoicesError, match="'0ther'.*'cafecafecafe'"):
        some().with_more(some("0ther"))


def test_errors_name_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(VoicesError, match="'c' has no speaker vector; known are a/1, a/2, b"):
        some()["c"]
    with pytest.raises(VoicesError, match="3 numbers|2 numbers.*but 3"):
        some().check("cafecafecafe", 3, what="x")
    with pytest.raises(VoicesError, match="finite"):
        Voices(("a",), np.array([[np.nan, 1.0]], np.float32))
    with pytest.raises(VoicesError, match="twice"):
        Voices(("a", "a"), np.ones((2, 2), np.float32))
    with pytest.raises(VoicesError, match="no voices"):
        Voices.of({})
    with pytest.raises(VoicesError, match=r"speaker_vectors\.py"):
        Voices.load(tmp_path / "none")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(VoicesError, match="holds no voices"):
        Voices.load(tmp_path / "text")
