"""The rules of the house that a reader of one file cannot see: who may import whom, and that nothing lacks a test."""

import ast
from pathlib import Path

import pytest

from supervisor.lifecycle import diagram

ROOT = Path(__file__).parents[1]
PACKAGES = ("supervisor", "gateway")
PURE = {
    "supervisor": {
        "change",
        "config",
        "config_load",
        "config_text",
        "config_values",
        "domains",
        "errors",
        "lifecycle",
        "restart",
        "health",
        "placed",
        "placement",
        "proof",
        "command",
        "rotation",
        "doctor",
        "doctor_machine",
        "doctor_service",
        "memory",
        "unit_files",
        "words",
        "xid",
        "gpu_reading",
        "gpu_health",
        "gpu_state",
    },
    "gateway": {
        "errors",
        "ollama",
        "openapi",
        "openapi_admin",
        "openapi_ollama",
        "openapi_schemas",
        "dispatch",
        "affinity",
        "breaker",
        "fair",
        "forwarded",
        "headers",
        "hosts",
        "head",
        "chunks",
        "framing",
        "wire",
        "keys",
        "limits",
        "lethal",
        "line",
        "load_options",
        "pace",
        "retry",
        "slots",
        "relayed",
        "response",
        "stamps",
        "access",
        "admin_asks",
        "ending",
        "labels",
        "phases",
        "traceparent",
        "traefik",
        "tables",
    },
}
# What a pure module must not know: tasks, the network, the machine, the clock, chance.
IMPURE = {"trio", "httpx", "os", "subprocess", "time", "random", "socket", "psutil", "secrets", "threading", "asyncio"}
# The root introduces the packages to each other: `__main__` says in which order, `root_refusals` has what is tried
# before that, `root_gateway` what each setting is to the gateway.
ROOT_MODULES = {"supervisor/__main__.py", "supervisor/root_refusals.py", "supervisor/root_gateway.py"}
UNTESTED = {"__init__", "__main__"}

MODULES = sorted(path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).glob("*.py"))


def imports(module: Path) -> set[str]:
    """The full names of what a module imports, wherever in it; `from a import b` is both a and a.b."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def packages_of(module: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(module)}


def test_there_are_modules_to_look_at() -> None:
    assert {str(module) for module in MODULES} >= ROOT_MODULES
    assert {module.parts[0] for module in MODULES} == set(PACKAGES)


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_the_packages_never_import_each_other(module: Path) -> None:
    (other,) = set(PACKAGES) - {module.parts[0]}
    assert (other in packages_of(module)) == (str(module) in ROOT_MODULES)


# The commands import it when they run, since it takes a while; nobody else has a reason to.
BELOW_THE_ROOT = [m for m in MODULES if str(m) not in ROOT_MODULES and not m.name.startswith("cli")]


@pytest.mark.parametrize("module", BELOW_THE_ROOT, ids=str)
def test_only_the_commands_know_the_root(module: Path) -> None:
    assert imports(module) & {root.removesuffix(".py").replace("/", ".") for root in ROOT_MODULES} == set()


PURE_MODULES = [Path(package) / f"{name}.py" for package, names in PURE.items() for name in sorted(names)]


@pytest.mark.parametrize("module", PURE_MODULES, ids=str)
def test_a_pure_module_imports_nothing_that_acts(module: Path) -> None:
    assert packages_of(module) & IMPURE == set()


@pytest.mark.parametrize("module", PURE_MODULES, ids=str)
def test_a_pure_module_imports_pure_modules_only(module: Path) -> None:
    package = module.parts[0]
    own = {name.split(".")[1] for name in imports(module) if name.startswith(f"{package}.")}
    assert own <= PURE[package]


@pytest.mark.parametrize("module", PURE_MODULES, ids=str)
def test_a_pure_module_opens_no_file_and_awaits_nothing(module: Path) -> None:
    tree = ast.parse((ROOT / module).read_text(encoding="utf-8"))
    awaits = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Await | ast.AsyncFunctionDef)]
    touching = {"open", "read_text", "write_text", "read_bytes", "write_bytes", "exists", "stat", "mkdir", "unlink"}
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    names = {f.attr if isinstance(f, ast.Attribute) else f.id for f in calls if isinstance(f, ast.Attribute | ast.Name)}
    assert (awaits, names & touching) == ([], set())


@pytest.mark.parametrize("module", [m for m in MODULES if m.stem not in UNTESTED], ids=str)
def test_each_module_has_its_tests(module: Path) -> None:
    assert (ROOT / "tests" / module.parts[0] / f"test_{module.name}").is_file()


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_each_module_begins_by_saying_what_it_is_for(module: Path) -> None:
    assert ast.get_docstring(ast.parse((ROOT / module).read_text(encoding="utf-8")))


def test_the_readme_shows_the_table_of_states_as_it_is() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = text.split("<!-- lifecycle -->")[1].split("<!-- /lifecycle -->")[0]
    assert shown.strip() == f"```mermaid\n{diagram()}\n```"
