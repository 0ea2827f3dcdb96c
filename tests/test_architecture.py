"""The architecture as tests: imports point down, recipes stand alone, files and functions stay short, help is light."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROWS = [  # top to bottom: a module imports from rows below its own, never from its own row or above
    {"cli"},
    {"serve"},
    {"pipeline", "report", "sweep", "verify"},
    {"encode", "shards", "workers", "train", "data", "kmeans_files", "features", "pairs"},
    {"tokenizer", "models", "analysis"},
    {"stream", "recording"},
    {"encoders", "quantizers", "metrics", "frontends", "timeline"},
    {"units", "formats", "manifest", "audio", "augment", "config", "pickled", "bpe", "segments", "text", "axis"}
    | {"soft", "pieces", "voices"},
]
ROW = {name: number for number, row in enumerate(ROWS) for name in row}
EXEMPT = {"__init__", "doctor"}  # the lazy names of the package; doctor tries to import everything, by design
# Inside a row: formats read and write what units and manifest define; bpe, segments and soft are of units; pieces of
# text are merged as units are; workers take shards, and a shard is encoded as a file is.
ALLOWED = {("formats", "units"), ("formats", "manifest"), ("bpe", "units"), ("segments", "units"), ("soft", "units")}
ALLOWED |= {("pieces", "bpe"), ("shards", "encode"), ("workers", "shards"), ("workers", "encode")}
LONG = {"fit", "forward"}  # the two functions that may pass MAX_LINES
MAX_FILE, MAX_LINES, MAX_RUN = 500, 60, 50
TESTED = sorted(path for top in ("unitkit", "recipes", "tools") for path in (ROOT / top).rglob("*.py"))
LIBRARY = [path for path in TESTED if path.is_relative_to(ROOT / "unitkit")]
RECIPES = [path for path in TESTED if path.is_relative_to(ROOT / "recipes")]

Function = ast.FunctionDef | ast.AsyncFunctionDef


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def unit_of(path: Path) -> str:
    """The name in ROWS that a file of the library belongs to: a module, or the package it lies in."""
    return path.relative_to(ROOT / "unitkit").parts[0].removesuffix(".py")


def checked_only(node: ast.If) -> bool:
    """Whether this is `if TYPE_CHECKING:`, whose imports never run."""
    return ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def imports(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Import statements at any depth, but not those for type checkers only."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif isinstance(child, ast.If) and checked_only(child):
            continue
        else:
            yield from imports(child)


def imported(path: Path) -> set[str]:
    """Dotted names of what a file imports, at any depth; `from a import b` counts as a.b."""
    names = set()
    for node in imports(tree(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        else:
            assert node.level == 0, f"{shown(path)}:{node.lineno}: relative import; write `from unitkit.x import y`"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def library_imports(path: Path) -> set[str]:
    """The names in ROWS (or EXEMPT) that a file imports from the library."""
    names = set()
    for name in imported(path):
        head, *rest = name.split(".")
        if head == "unitkit" and rest:
            names.add(rest[0])
    return names


def complaint(importer: str, target: str) -> str | None:
    """Why `importer` may not import `target`, or None."""
    if importer == target or importer in EXEMPT or (importer, target) in ALLOWED:
        return None
    for name in (importer, target):
        if name not in ROW and name not in EXEMPT:
            return f"unitkit.{name} is in no row of tests/test_architecture.py: say where it belongs"
    if target in EXEMPT:
        return None if ROW[importer] == 0 else f"{target} is for cli only"
    if ROW[target] > ROW[importer]:
        return None
    where = "its own row" if ROW[target] == ROW[importer] else "a row above"
    return f"{importer} imports {target} from {where}; move what they share down, or the caller up"


@pytest.mark.parametrize(
    ("importer", "target", "fine"),
    [
        ("cli", "units", True),
        ("tokenizer", "encoders", True),
        ("report", "data", True),
        ("data", "train", False),
        ("encode", "data", False),
        ("units", "manifest", False),
        ("formats", "units", True),
        ("units", "formats", False),
        ("metrics", "tokenizer", False),
        ("models", "models", True),
        ("nowhere", "units", False),
    ],
)
def test_the_rule_itself(importer: str, target: str, fine: bool) -> None:
    assert (complaint(importer, target) is None) is fine


@pytest.mark.parametrize("path", LIBRARY, ids=shown)
def test_imports_point_down(path: Path) -> None:
    assert not any(name.split(".")[0] in ("recipes", "tests") for name in imported(path)), (
        f"{shown(path)} imports a recipe"
    )
    wrong = [text for target in sorted(library_imports(path)) if (text := complaint(unit_of(path), target))]
    assert not wrong, f"{shown(path)}: {'; '.join(wrong)}"


def test_no_import_cycles() -> None:
    """Module by module, functions' own imports included: a cycle hidden in a function is still a cycle.

    A package counts as what its __init__ imports, so its modules import each other by their own names.
    """
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in LIBRARY
    }
    del modules["unitkit"]  # its names are loaded when they are used
    edges = {}
    for name, path in modules.items():
        found = imported(path)
        packages = {node.module or "" for node in imports(tree(path)) if isinstance(node, ast.ImportFrom)}
        wanted = packages | {target if target in modules else target.rpartition(".")[0] for target in found}
        edges[name] = {target for target in wanted if target in modules and target != name}
    cycle = find_cycle(edges)
    assert cycle is None, f"import cycle: {' -> '.join(cycle or [])}"


def find_cycle(edges: dict[str, set[str]]) -> list[str] | None:
    done: set[str] = set()

    def walk(name: str, trail: list[str]) -> list[str] | None:
        if name in trail:
            return [*trail[trail.index(name) :], name]
        if name in done:
            return None
        for target in sorted(edges.get(name, ())):
            if found := walk(target, [*trail, name]):
                return found
        done.add(name)
        return None

    return next((found for name in sorted(edges) if (found := walk(name, []))), None)


def test_the_cycle_finder_finds() -> None:
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert find_cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None


@pytest.mark.parametrize("path", RECIPES, ids=shown)
def test_recipes_do_not_import_each_other(path: Path) -> None:
    local = {one.stem for one in RECIPES} | {"recipes", "corpora"}
    # A recipe may bear the name of an installed package (datasets, ...), but never of one that it imports.
    met = {name.split(".")[0] for name in imported(path)} & local
    assert not met, f"{shown(path)} imports {', '.join(sorted(met))}: shared code moves down into unitkit"


@pytest.mark.parametrize("path", [p for p in RECIPES if p.parent.name == "corpora"], ids=shown)
def test_corpora_know_no_torch(path: Path) -> None:
    heads = {name.split(".")[0] for name in imported(path)}
    assert "torch" not in heads, f"{shown(path)} imports torch; a corpus yields utterances and nothing else"
    names = {node.name for node in tree(path).body if isinstance(node, ast.FunctionDef)}
    assert "utterances" in names, f"{shown(path)} has no function utterances(root)"


def test_run_scripts_are_tables_of_contents() -> None:
    scripts = sorted((ROOT / "egs").rglob("run.sh"))
    assert scripts, "no recipe found below egs/"
    long = {shown(path): n for path in scripts if (n := len(path.read_text().splitlines())) > MAX_RUN}
    assert not long, f"over {MAX_RUN} lines: {long}"


def test_no_symbolic_links() -> None:
    made = {"data", "exp", "downloads"}  # a recipe's own outputs are the user's business
    found = [
        path
        for top in ("unitkit", "recipes", "egs", "tools", "tests", "samples")
        for path in (ROOT / top).rglob("*")
        if path.is_symlink() and not made & set(path.relative_to(ROOT).parts)
    ]
    assert not found, f"symbolic links break on archives and Windows: {[shown(path) for path in found]}"


@pytest.mark.parametrize("path", TESTED, ids=shown)
def test_files_are_short(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_FILE, f"{shown(path)} has {lines} lines, over {MAX_FILE}: split it"


def functions(path: Path) -> list[Function]:
    return [node for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def length(node: Function) -> int:
    """Lines from `def` to the end, the docstring left out: it costs a reader nothing."""
    lines = (node.end_lineno or node.lineno) - node.lineno + 1
    first = node.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        lines -= (first.end_lineno or first.lineno) - first.lineno + 1
    return lines


@pytest.mark.parametrize("path", TESTED, ids=shown)
def test_functions_are_short(path: Path) -> None:
    long = [f"{node.name} ({n} lines, line {node.lineno})" for node in functions(path)
            if (n := length(node)) > MAX_LINES and node.name not in LONG]  # fmt: skip
    assert not long, f"{shown(path)}: over {MAX_LINES} lines: {', '.join(long)}"


def test_most_functions_are_small() -> None:
    sizes = sorted(length(node) for path in TESTED for node in functions(path))
    median, ninety = sizes[len(sizes) // 2], sizes[len(sizes) * 9 // 10]
    assert median <= 12, f"the median function has {median} lines, over 12"
    assert ninety <= 40, f"one function in ten has {ninety} lines or more, over 40"


def unannotated(node: Function) -> list[str]:
    """The parameters of a function that lack an annotation, and "return" if the result does."""
    a = node.args
    named = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
    missing = [one.arg for one in named if one.annotation is None and one.arg not in ("self", "cls")]
    return missing + (["return"] if node.returns is None else [])


@pytest.mark.parametrize("path", TESTED, ids=shown)
def test_every_function_is_annotated(path: Path) -> None:
    missing = [
        f"{node.name}: {', '.join(names)} (line {node.lineno})"
        for node in functions(path)
        if (names := unannotated(node))
    ]
    assert not missing, f"{shown(path)} lacks annotations: {'; '.join(missing)}"


def called(node: ast.Call) -> str:
    return ast.unparse(node.func)


def unsafe(node: ast.Call) -> str | None:
    """Why a call could run code from a file, or None."""
    name, keywords = called(node), {k.arg: k.value for k in node.keywords}

    def says(key: str, value: bool) -> bool:
        return isinstance(found := keywords.get(key), ast.Constant) and found.value is value

    if name.rpartition(".")[0] in ("pickle", "joblib", "dill", "cloudpickle") and name.endswith(
        (".load", ".loads", ".Unpickler")
    ):
        return f"{name} runs code from the file"
    if name == "torch.load" and not says("weights_only", True):
        return "torch.load without weights_only=True runs code from the file"
    if name in ("np.load", "numpy.load") and "allow_pickle" in keywords and not says("allow_pickle", False):
        return f"{name} with allow_pickle runs code from the file"
    if name in ("yaml.load", "yaml.unsafe_load", "eval", "exec"):
        return f"{name} runs code from its input"
    if "trust_remote_code" in keywords and not says("trust_remote_code", False):
        return f"{name} with trust_remote_code runs code from the hub"
    return None


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("pickle.load(f)", False),
        ("pickle.Unpickler(f)", False),
        ("joblib.load('km.bin')", False),
        ("torch.load(p)", False),
        ("torch.load(p, weights_only=False)", False),
        ("torch.load(p, map_location='cpu', weights_only=True)", True),
        ("np.load(p, allow_pickle=True)", False),
        ("np.load(p)", True),
        ("json.load(f)", True),
        ("model.eval()", True),
    ],
)
def test_the_safety_rule_itself(text: str, safe: bool) -> None:
    node = ast.parse(text, mode="eval").body
    assert isinstance(node, ast.Call) and (unsafe(node) is None) is safe


@pytest.mark.parametrize("path", TESTED, ids=shown)
def test_nothing_runs_code_from_a_file(path: Path) -> None:
    calls = [node for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]
    found = [f"line {node.lineno}: {why}" for node in calls if (why := unsafe(node))]
    assert not found, f"{shown(path)}: {'; '.join(found)}"
    renamed = [n for n in imported(path) if n.split(".")[0] in ("pickle", "joblib", "dill") and "." in n]
    assert not renamed, f"{shown(path)} imports {renamed} by name, which hides its use from this test"


def loaded_after(code: str) -> set[str]:
    """Top-level modules in memory after a piece of code, in a fresh interpreter."""
    tail = "\nimport sys; print('\\nLOADED', *sorted({name.split('.')[0] for name in sys.modules}))"
    run = subprocess.run([sys.executable, "-c", code + tail], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.rpartition("\nLOADED ")[2].split())


HEAVY = {"torch", "transformers", "faiss", "matplotlib", "lhotse", "ray", "gradio", "ctranslate2", "scipy", "pandas"}


def test_help_is_light() -> None:
    code = "import sys, runpy\nsys.argv = ['unitkit', '--help']\n"
    code += "try: runpy.run_module('unitkit.cli', run_name='__main__')\nexcept SystemExit as end: assert not end.code"
    assert not (met := loaded_after(code) & HEAVY), f"`unitkit --help` imports {met}"


@pytest.mark.parametrize("name", ["", *(f".{name}" for name in sorted(ROWS[-1]))])
def test_the_bottom_row_is_light(name: str) -> None:
    assert not (met := loaded_after(f"import unitkit{name}") & HEAVY), f"`import unitkit{name}` imports {met}"
