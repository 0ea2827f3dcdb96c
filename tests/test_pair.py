"""Pairing recordings of two languages: who is whose partner, under which id, and what is left out."""

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recipe_files import recipe as recipe_file

from unitkit.manifest import ManifestError, Utterance, read_manifest, write_manifest

ROOT = Path(__file__).resolve().parents[1]


recipe = recipe_file("pair")
VOICES = {"es": "allison-mx", "en": "allison"}


def real(lang: str, name: str, *, text: str = "four words are here", seconds: float = 2.0) -> Utterance:
    """A studio prompt, whose id names no voice."""
    return Utterance(f"{lang}/{name}", f"/a/{lang}/{name}.flac", seconds, None, VOICES[lang], lang, text)


def made(lang: str, voice: str, name: str, *, text: str = "four words are here", seconds: float = 2.0) -> Utterance:
    """A manufactured sentence."""
    return Utterance(f"{lang}/{voice}/{name}", f"/m/{lang}/{voice}/{name}.flac", seconds, None, voice, lang, text)


def paired(sources: list[Utterance], targets: list[Utterance], *, first: bool = False, **wanted: object) -> list:
    """(id, source's audio, target's audio) of each pair."""
    found = recipe.pair(sources, targets, recipe.Wanted(**wanted), first=first)
    assert all(source.id == target.id for source, target in found.pairs)
    return [(source.id, source.audio, target.audio) for source, target in found.pairs]


@pytest.mark.parametrize(
    ("row", "name"),
    [
        (real("es", "agent-alreadyon"), "agent-alreadyon"),
        (real("es", "digits/1"), "digits.1"),
        (made("en", "af_heart", "digits.1"), "digits.1"),
        (made("es", "ef_dora", "127dbef13a"), "127dbef13a"),
        (Utterance("common_voice_fr_17", "a.mp3", speaker="7f0", lang="fr"), "common_voice_fr_17"),
        (Utterance("20050908_182943_22_fsp-7_8", "a.flac", speaker="20050908_182943_22_fsp-A", lang="es"),
         "20050908_182943_22_fsp-7_8"),
        (Utterance("es/x", "a.wav"), "es.x"),  # nobody says that this is a language
        (Utterance("en", "a.wav", lang="en"), "en"),
    ],
)  # fmt: skip
def test_what_a_recording_says_by_name(row: Utterance, name: str) -> None:
    assert recipe.name_of(row) == name


def test_a_source_pairs_with_every_target_of_its_name() -> None:
    targets = [real("en", "digits/1"), made("en", "af_heart", "digits.1"), real("en", "hello")]
    sources = [made("es", "em_alex", "digits.1"), real("es", "digits/1"), real("es", "bye")]
    assert paired(sources, targets) == [
        ("es/em_alex/digits.1@allison", "/m/es/em_alex/digits.1.flac", "/a/en/digits/1.flac"),
        ("es/em_alex/digits.1@af_heart", "/m/es/em_alex/digits.1.flac", "/m/en/af_heart/digits.1.flac"),
        ("es/digits/1@allison", "/a/es/digits/1.flac", "/a/en/digits/1.flac"),
        ("es/digits/1@af_heart", "/a/es/digits/1.flac", "/m/en/af_heart/digits.1.flac"),
    ]
    assert [pair[0] for pair in paired(sources, targets, first=True)] == ["es/em_alex/digits.1", "es/digits/1"]
    found = recipe.pair(sources, targets, recipe.Wanted())
    assert (found.lonely_sources, found.lonely_targets) == (["es/bye"], ["en/hello"])


def test_what_is_left_out_and_why() -> None:
    texts = {"a": "Hola.", "b": "Prèss ONE, now!", "c": "press one now please", "d": "press two"}
    sources = [real("es", name, text=f"uno {name}", seconds=9.0 if name == "c" else 1.0) for name in texts]
    targets = [real("en", name, text=text) for name, text in texts.items()]
    found = recipe.pair(
        sources, targets, recipe.Wanted(min_words=2, max_seconds=5, forbidden=frozenset({"press one now", "uno d"}))
    )
    assert [source.id for source, _ in found.pairs] == []
    assert found.left_out == {"says a forbidden text": 2, "longer than 5 s": 1, "under 2 words": 1}
    assert not found.lonely_sources and not found.lonely_targets  # they have partners
    assert len(paired(sources, targets, forbidden=frozenset({"press"}))) == 4  # whole texts, not parts
    nameless = [Utterance("es/a", "a.flac", 1.0, lang="es")], [Utterance("en/a", "a.flac", 1.0, lang="en")]
    assert len(paired(*nameless, forbidden=frozenset({""}))) == 1  # nothing written is no forbidden text


def test_ambiguous_and_unusable_manifests_are_refused() -> None:
    twice = [made("en", "af_heart", "a.b"), made("en", "af_heart", "a/b")]
    with pytest.raises(
        ManifestError, match="es/a/b has several partners of voice af_heart: en/af_heart/a.b, .*--first"
    ):
        recipe.pair([real("es", "a/b")], twice, recipe.Wanted())
    assert len(paired([real("es", "a/b")], twice, first=True)) == 1
    endless = Utterance("en/a", "a.flac", lang="en", text="a")
    with pytest.raises(ManifestError, match="a.flac has no duration"):
        recipe.pair([real("es", "a")], [endless], recipe.Wanted(max_seconds=5))


names = st.lists(st.sampled_from("abcdefgh"), max_size=8, unique=True)


@settings(deadline=None, max_examples=50)
@given(spanish=names, voices=st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from(["x", "y"])), unique=True))
def test_pairs_are_the_join_by_name(spanish: list[str], voices: list[tuple[str, str]]) -> None:
    """Against the obvious double loop: each pair once, in the order of the sources, ids unique, nobody lost."""
    sources = [real("es", name) for name in spanish]
    targets = [made("en", voice, name) for name, voice in voices]
    found = recipe.pair(sources, targets, recipe.Wanted())
    expected = [
        (s.audio, t.audio)
        for s in sources
        for t in targets
        if s.id.removeprefix("es/") == t.id.rpartition("/")[2]
    ]  # fmt: skip
    assert [(s.audio, t.audio) for s, t in found.pairs] == expected
    assert len({s.id for s, _ in found.pairs}) == len(expected)
    partners = Counter(s for s, _ in expected)
    assert set(found.lonely_sources) == {s.id for s in sources if not partners[s.audio]}
    assert set(found.lonely_targets) == {t.id for t in targets if t.id.rpartition("/")[2] not in spanish}


def test_the_program(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_manifest(tmp_path / "es.jsonl", [real("es", "a"), real("es", "b", text="no me digas"), real("es", "c")])
    write_manifest(
        tmp_path / "en.jsonl", [real("en", "b"), real("en", "a", text="one two three four"), real("en", "d")]
    )
    write_manifest(tmp_path / "test.jsonl", [real("es", "z", text="¡No me digas!")])
    words = ["--source", str(tmp_path / "es.jsonl"), "--target", str(tmp_path / "en.jsonl")]
    out = tmp_path / "deep" / "train"
    assert recipe.main(["-o", str(out), *words, "--forbid", str(tmp_path / "test.jsonl")]) == 0
    sides = [list(read_manifest(f"{out}.{side}.jsonl")) for side in ("source", "target")]
    assert [[row.id for row in rows] for rows in sides] == [["es/a"], ["es/a"]]
    assert [rows[0].lang for rows in sides] == ["es", "en"] and sides[1][0].audio == "/a/en/a.flac"
    said = capsys.readouterr().err
    for part in (
        "1 pairs",
        "forbidden text: 1",
        "source without a partner: 1 (es/c)",
        "target without a partner: 1 (en/d)",
    ):
        assert part in said
    assert recipe.main(["-o", str(out), *words, "--min-words", "9"]) == 1
    assert recipe.main(["-o", str(out), "--source", str(tmp_path / "none.jsonl"), *words[2:]]) == 2
    assert "none.jsonl" in capsys.readouterr().err
    assert json.loads((tmp_path / "en.jsonl").read_text().splitlines()[0])["id"] == "en/b"  # inputs are as they were
