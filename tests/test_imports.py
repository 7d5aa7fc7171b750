"""The import rule, and the bars of style that a parser can see."""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from toxicity.training_queue import TRAINING_FUNCTION

ROOT = Path(__file__).parents[1]
PACKAGES = ("toxicity", "backend", "worker")
TENSORFLOW_PACKAGES = {"tensorflow", "tf_keras", "keras", "tensorflow_hub", "bert", "sentencepiece"}
TENSORFLOW_MODULES = {
    f"toxicity.{name}"
    for name in ("tokenizer", "bert", "encoder", "classifier", "serving", "fine_tuning", "optimizer", "devices")
}
STATISTICS_PACKAGES = {"sklearn", "scipy"}
PICKLING = {"pickle", "joblib", "dill", "cloudpickle", "shelve", "marshal"}
LONGEST_MODULE = 300
LONGEST_FUNCTION = 60


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}


def imported(tree: ast.AST) -> set[str]:
    """Every dotted name that a module imports anywhere, inside functions too; `from a import b` gives a and a.b."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not used here"
            names |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def packages_imported(module: str) -> set[str]:
    return {name.split(".")[0] for name in imported(TREES[module])}


def importers_of(packages: set[str]) -> set[str]:
    return {module for module in TREES if packages_imported(module) & packages}


def reads_environment(tree: ast.AST) -> bool:
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return bool({"environ", "environb", "getenv", "getenvb", "putenv"} & attributes) or bool(
        {"os.environ", "os.environb", "os.getenv", "os.putenv"} & imported(tree)
    )


def import_graph(trees: dict[str, ast.Module]) -> dict[str, set[str]]:
    return {module: imported(tree) & trees.keys() - {module} for module, tree in trees.items()}


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def test_the_sources_are_found() -> None:
    assert {"toxicity", "toxicity.settings", "backend.app", "worker.training"} <= TREES.keys()


def test_imports_inside_functions_and_of_submodules_are_seen() -> None:
    text = "import a.b as c\ndef f():\n    from d import e\n    if True:\n        import g\n"
    assert imported(ast.parse(text)) == {"a.b", "d", "d.e", "g"}


@pytest.mark.parametrize("text", ["import os\nos.environ['A']", "import os\nos.getenv('A')", "from os import environ, getenv"])
def test_every_way_to_read_the_environment_is_seen(text: str) -> None:
    assert reads_environment(ast.parse(text))


def test_a_cycle_through_a_lazy_import_is_seen() -> None:
    trees = {"a": ast.parse("import b"), "b": ast.parse("def f():\n    from a import c")}
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter(import_graph(trees)).prepare()


@pytest.mark.parametrize(
    ("package", "forbidden"), [("toxicity", {"backend", "worker"}), ("backend", {"worker"}), ("worker", {"backend"})]
)
def test_backend_and_worker_import_toxicity_and_nothing_imports_them(package: str, forbidden: set[str]) -> None:
    offenders = {module for module in importers_of(forbidden) if module.split(".")[0] == package}
    assert offenders == set()


def test_only_settings_reads_the_environment() -> None:
    assert {module for module, tree in TREES.items() if reads_environment(tree)} == {"toxicity.settings"}


def test_flask_stays_in_the_backend() -> None:
    assert {module.split(".")[0] for module in importers_of({"flask", "werkzeug", "gunicorn"})} == {"backend"}


def test_tensorflow_stays_in_a_few_modules() -> None:
    assert importers_of(TENSORFLOW_PACKAGES) == TENSORFLOW_MODULES


def test_scikit_learn_and_scipy_stay_where_versions_are_measured() -> None:
    assert importers_of(STATISTICS_PACKAGES) == {"toxicity.evaluation"}


def test_nothing_unpickles() -> None:
    assert importers_of(PICKLING) == set()


def test_no_module_takes_part_in_an_import_cycle_lazy_imports_counted() -> None:
    graphlib.TopologicalSorter(import_graph(TREES)).prepare()


def test_the_training_function_that_jobs_name_exists_in_the_worker() -> None:
    module, name = TRAINING_FUNCTION.rsplit(".", 1)
    assert name in {function.name for function in functions(TREES[module])}


@pytest.mark.parametrize("module", TREES)
def test_a_module_says_what_it_is(module: str) -> None:
    assert ast.get_docstring(TREES[module])


@pytest.mark.parametrize("module", TREES)
def test_no_module_and_no_function_is_too_long(module: str) -> None:
    assert len(FILES[module].read_text(encoding="utf-8").splitlines()) <= LONGEST_MODULE
    lengths = {function.name: (function.end_lineno or 0) - function.lineno + 1 for function in functions(TREES[module])}
    assert {name: length for name, length in lengths.items() if length > LONGEST_FUNCTION} == {}


@pytest.mark.parametrize(
    "module",
    [
        "toxicity.versions",
        "toxicity.settings",
        "toxicity.corpus",
        "toxicity.model_card",
        "backend.live_model",
        "backend.app",
        "worker.sweeper",
        "toxicity.__main__",
    ],
)
def test_a_module_that_must_be_quick_is_imported_without_tensorflow(module: str) -> None:
    slow = sorted(TENSORFLOW_PACKAGES | STATISTICS_PACKAGES)
    script = f"import sys, {module}; print('{module}' in sys.modules, [name for name in {slow} if name in sys.modules])"
    finished = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert finished.stdout == "True []\n"
