from dataclasses import dataclass, field

import pytest

from unitkit import config as configs


@dataclass(frozen=True)
class Inner:
    lr: float = 1e-3
    sizes: tuple[int, ...] = (1, 2)


@dataclass(frozen=True)
class Outer:
    name: str | None = None
    steps: int = 10
    inner: Inner = field(default_factory=Inner)
    table: dict[str, list[float]] = field(default_factory=dict)


def test_exponents_without_a_dot_are_floats(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("inner: {lr: 5e-4}\n")
    assert configs.load(Outer, path).inner.lr == 5e-4
    assert configs.load(Outer, path, ["inner.lr=2e-3"]).inner.lr == 2e-3


def test_later_layers_win_and_types_hold(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("steps: 5\nname: yaml\ntable: {a: [1, 2]}\n")
    loaded = configs.load(Outer, path, ["steps=7", "inner.sizes=[3,4,5]"])
    assert loaded == Outer(name="yaml", steps=7, inner=Inner(sizes=(3, 4, 5)), table={"a": [1.0, 2.0]})
    assert isinstance(loaded.inner, Inner) and isinstance(loaded.inner.sizes, tuple)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["stepz=3"], "unknown key 'stepz'; known keys: inner, name, steps, table"),
        (["inner.rate=3"], r"unknown key 'inner.rate'; known keys: inner.lr, inner.sizes"),
        (["steps=many"], "many"),
        (["steps"], "key=value"),
    ],
)
def test_errors_name_the_key_and_the_known_ones(words, says):
    with pytest.raises(configs.ConfigError, match=says):
        configs.load(Outer, None, words)


def test_unknown_key_in_yaml_names_the_file(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("inner: {speed: 1}\n")
    with pytest.raises(configs.ConfigError, match=r"c\.yaml: unknown key 'inner\.speed'"):
        configs.load(Outer, path)
    with pytest.raises(configs.ConfigError, match="no such"):
        configs.load(Outer, tmp_path / "other.yaml")
    path.write_text("- 1\n")
    with pytest.raises(configs.ConfigError, match="key: value"):
        configs.load(Outer, path)
    path.write_text("a: [1\n")
    with pytest.raises(configs.ConfigError, match=r"c\.yaml"):
        configs.load(Outer, path)


def test_saved_config_loads_as_it_was(tmp_path):
    config = Outer(name="x", inner=Inner(lr=3e-5, sizes=(9,)), table={"a": [0.5, 1.5]})
    configs.save(config, tmp_path / "c.yaml")
    assert configs.load(Outer, tmp_path / "c.yaml") == config
