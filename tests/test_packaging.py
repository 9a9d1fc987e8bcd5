"""The package as its users get it: the wheel alone, the set-up scripts, a quick command, and commands as documented."""

from __future__ import annotations

import importlib
import json
import re
import resource
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import typer.main
from packaging.requirements import Requirement
from places import ROOT

from harness.cli import misuse
from harness.cli.app import app
from harness.config import overrides
from harness.errors import HarnessError
from harness.workload.library import read_workload

HEAVY = {"torch", "transformers", "vllm", "altair", "scipy.stats"}
importlib.import_module("harness.cli.verbs")
VERBS = typer.main.get_command(app).commands  # type: ignore[attr-defined]  # typer hides click's type of a group


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the source distribution: what a package index would serve."""
    out = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "--directory", str(out)]
    subprocess.run([*build, "--target", "sdist"], cwd=ROOT, check=True, capture_output=True)
    shutil.unpack_archive(next(out.glob("*.tar.gz")), out, filter="data")
    source = next(path for path in out.iterdir() if path.is_dir())
    subprocess.run([*build, "--target", "wheel"], cwd=source, check=True, capture_output=True)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel and what its metadata asks for without extras; nothing else can be imported.

    The dependencies are links to those installed here, which spares the download and leaves out the same packages.
    """
    home = tmp_path_factory.mktemp("bare")
    venv.create(home, symlinks=True)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(home), "platbase": str(home)}))
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(home / "bin/python"),
        "install",
        "-q",
        "--no-deps",
        "--no-index",
    ]
    subprocess.run([*install, str(wheel)], check=True)
    asked = next(iter(metadata.distributions(path=[str(site)]))).requires or []
    seen: set[str] = set()
    while asked:
        requirement = Requirement(asked.pop())
        if requirement.name in seen or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        seen.add(requirement.name)
        distribution = metadata.distribution(requirement.name)
        asked += distribution.requires or []
        for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(str(distribution.locate_file(top)))
    return home


def call(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a command with an environment of its own: nothing of the caller's settings or packages."""
    clean = {"PATH": "/usr/bin:/bin", "HOME": str(cwd), "LC_ALL": "C.UTF-8", **environment}
    return subprocess.run(command, cwd=cwd, env=clean, capture_output=True, text=True, check=False)


def test_every_shipped_file_is_in_the_wheel(wheel: Path) -> None:
    tracked = subprocess.run(["git", "ls-files", "harness", "workloads"], cwd=ROOT, capture_output=True, text=True)
    expected = {re.sub("^workloads/", "harness/data/workloads/", name) for name in tracked.stdout.split()}
    assert "harness/data/workloads/smoke.yaml" in expected
    assert expected <= set(zipfile.ZipFile(wheel).namelist())


def test_the_steps_of_the_containerfile_run_on_a_plain_python_and_its_command_measures(
    wheel: Path, tmp_path: Path
) -> None:
    """Its steps as they stand, under a folder that stands for `/`; what pip would download is there already."""
    steps, image, settings = (ROOT / "Containerfile").read_text(), tmp_path / "image", {"PIP_NO_INDEX": "1"}
    settings |= {"PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0"} | dict(re.findall(r"^ARG (\w+)=(.*)$", steps, re.M))
    venv.create(tmp_path / "python", symlinks=True)
    site = Path(sysconfig.get_path("purelib", "venv", dict.fromkeys(("base", "platbase"), str(tmp_path / "python"))))
    (site / "packages.pth").write_text(sysconfig.get_path("purelib"))
    place, programs = image, tmp_path / "python/bin"
    for step, words in re.findall(r"^(WORKDIR|COPY|RUN) (.*)$", steps, re.M):
        if step == "WORKDIR":
            place = image / words.strip("/")
            place.mkdir(parents=True)
        elif step == "COPY":
            *sources, into = words.split()
            for each in sources:
                to = place / into / (each if into == "./" else "")
                (shutil.copytree if (ROOT / each).is_dir() else shutil.copy)(ROOT / each, to)
        else:
            line = words.replace(" /", f" {image}/")
            done = call("sh", "-c", line, cwd=place, **settings | {"PATH": f"{programs}:/usr/bin:/bin"})
            assert done.returncode == 0, done.stderr
    installed = {str(path.relative_to(site)) for path in site.rglob("*") if path.is_file()}
    assert {name for name in zipfile.ZipFile(wheel).namelist() if "dist-info" not in name} <= installed
    assert not [*(image / "src").iterdir()]
    (entry,) = re.findall(r"^ENTRYPOINT (.*)$", steps, re.M)
    ran = call(programs / json.loads(entry)[0], "run", "smoke", "--engine", "simulated", cwd=place)
    assert ran.returncode == 0, ran.stderr
    assert (place / "results/latest/requests.parquet").is_file()
    extras = {name for names in re.findall(r"EXTRAS=([\w,]+)", steps) for name in names.split(",")}
    assert extras <= tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"].keys()


def test_the_wheel_measures_and_reports_with_its_core_dependencies_alone(bare: Path, tmp_path: Path) -> None:
    harness = bare / "bin/harness"
    assert call(bare / "bin/python", "-c", "import torch", cwd=tmp_path).returncode == 1
    run = call(harness, "run", "smoke", "--engine", "simulated", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "results/latest/requests.parquet").is_file()
    assert call(harness, "report", "latest", cwd=tmp_path).stdout in run.stdout
    listed = call(harness, "list", "workloads", cwd=tmp_path)
    assert all(path.stem in listed.stdout for path in (ROOT / "workloads").glob("*.yaml"))


def test_an_engine_that_is_not_installed_names_what_to_install(bare: Path, tmp_path: Path) -> None:
    refused = call(bare / "bin/harness", "run", "smoke", cwd=tmp_path)
    assert refused.returncode == 2
    needs = "'accelerate>=1' 'altair>=6' 'gguf>=0.10' 'torch>=2.6' 'transformers>=5.17' 'vl-convert-python>=1.7'"
    assert f"-m pip install {needs}" in refused.stderr
    assert "Traceback" not in refused.stderr


def _documented(*pages: Path) -> list[tuple[str, str]]:
    """(command, error shown under it, if any) for each harness command in a fenced block of these pages."""
    found = []
    for block in re.findall(r"^```\w*\n(.*?)^```", "\n".join(page.read_text() for page in pages), re.M | re.S):
        command = r"^(?:\$ )?(?:scripts/)?harness (.*)\n((?:error: .*\n  fix: .*\n)?)"
        found += re.findall(command, block.replace("\\\n", " "), re.M)
    return found


def _readme_without_measuring() -> list[str]:
    commands = [shlex.join(shlex.split(command, comments=True)) for command, _ in _documented(ROOT / "README.md")]
    return [command for command in commands if not command.startswith(("run ", "ab ", "diff ", "sweep ", "import "))]


COMMANDS = [
    f"import {ROOT}/tests/data/imported/vllm_serve.json",
    "run smoke --engine simulated --set requests.count=4 --out before",
    "run smoke --engine simulated --set requests.count=4",
    "ab seed=1 seed=2 --workload smoke --repeat 1 --set engine.name=simulated --set requests.count=4",
    "rerun latest",
    "report latest --format json",
    "compare latest --table all",
    "facts",
    "diff before/latest latest",
    "list runs --where users>=1",
    "schema workload",
    "export figures.csv",
    f"sweep {ROOT}/tests/data/sweep.yaml --dry-run",
    *(f"list {what}" for what in ("runs", "engines", "models", "scenarios")),
    *_readme_without_measuring(),
]
"""Every verb, called for real; a new one needs its line. No engine but the real ones may load their packages."""

CALLS = """
import json, shlex, sys
from harness.cli import main
for command in sys.argv[1:]:
    sys.argv = ["harness", *shlex.split(command)]
    try:
        main()
    except SystemExit as end:
        print("done:", json.dumps([command, end.code or 0, sorted(sys.modules)]), file=sys.stderr)
"""


def test_no_verb_loads_an_engine_that_it_does_not_use_or_a_slow_package(tmp_path: Path) -> None:
    assert {command.split()[0] for command in COMMANDS} == VERBS.keys()
    done = call(sys.executable, "-c", CALLS, *COMMANDS, cwd=tmp_path, PYTHONPATH=str(ROOT))
    ends = [json.loads(line.removeprefix("done:")) for line in done.stderr.splitlines() if line.startswith("done:")]
    most = {"check": 1}  # a machine at work gives serious findings
    assert [
        (command, code > most.get(command.split()[0], 0), set(modules) & HEAVY) for command, code, modules in ends
    ] == [(c, False, set()) for c in COMMANDS]


def test_a_schema_loads_no_meter_and_a_list_no_page(tmp_path: Path) -> None:
    done = call(sys.executable, "-c", CALLS, "schema run", "list runs --root .", cwd=tmp_path, PYTHONPATH=str(ROOT))
    schema, runs = (json.loads(line.removeprefix("done:"))[2] for line in done.stderr.splitlines())
    assert "harness.meters.nvml" not in schema
    assert not {"harness.report.page", "harness.report.answer", "harness.report.charts"} & {*runs}


def test_help_takes_under_0_4_s_of_cpu(tmp_path: Path) -> None:
    def cpu_s() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        call(sys.executable, "-m", "harness", "--help", cwd=tmp_path, PYTHONPATH=str(ROOT))
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(cpu_s() for _ in range(3)) < 0.4


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose environment is in place, with a `harness` that says so."""
    root = tmp_path / "a clone"
    shutil.copytree(ROOT / "scripts", root / "scripts")
    (root / "pyproject.toml").write_text("[project]\n")
    (root / ".venv-cpu/bin").mkdir(parents=True)
    (root / ".venv-cpu/bin/python").symlink_to(sys.executable)
    (root / ".venv-cpu/bin/harness").write_text('#!/bin/sh\necho "harness $*"\n')
    (root / ".venv-cpu/bin/harness").chmod(0o755)
    (root / ".venv-cpu/installed").mkdir()
    (root / ".venv-cpu/installed/cpu").write_text("[project]\n")
    (root / ".venv-cpu/installed/root").symlink_to(root)
    return root


def _start(checkout: Path) -> subprocess.CompletedProcess[str]:
    """scripts/harness where no Python can be found: a set-up that is tried fails, one that is not needed does not."""
    return call(checkout / "scripts/harness", "list", "runs", cwd=checkout, HARNESS_EXTRA="cpu", PYTHON="/no/python")


def test_a_complete_environment_is_used_without_set_up(checkout: Path) -> None:
    assert _start(checkout).stdout == "harness list runs\n"


@pytest.mark.parametrize(
    "damage",
    [
        "echo x >> pyproject.toml",  # what it asks for has changed
        "rm -r .venv-cpu/installed",  # interrupted half way
        "rm .venv-cpu/installed/cpu",  # made for something else
        "mv .venv-cpu/installed/root x; ln -s /tmp .venv-cpu/installed/root",  # the checkout was moved
        "ln -sf /no/python .venv-cpu/bin/python",  # the system's Python is gone
    ],
)
def test_an_environment_that_does_not_fit_is_set_up_again(checkout: Path, damage: str) -> None:
    subprocess.run(damage, shell=True, cwd=checkout, check=True)
    tried = _start(checkout)
    assert tried.returncode == 2
    assert "no Python 3.11, 3.12 or 3.13" in tried.stderr
    assert "PYTHON=" in tried.stderr


@pytest.mark.parametrize(("command", "error"), _documented(ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))))
def test_a_documented_command_can_be_given(command: str, error: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    verb, *arguments = shlex.split(command, comments=True)
    context = VERBS[verb].make_context(verb, arguments)
    misuse.check(context)
    given = context.params
    if error:
        with pytest.raises(HarnessError) as raised:
            read_workload(given["workload"], overrides(given["set_"]))
        assert f"error: {raised.value}\n" == error
    elif verb == "run":
        assert read_workload(given["workload"], overrides(given["set_"] or []))


@pytest.mark.parametrize(
    "script",
    sorted({p.name for p in (ROOT / "scripts").iterdir() if p.is_file()} - {"environment.sh", "install.py", "harness"}),
)
def test_a_script_prints_its_help_and_writes_nothing(script: str) -> None:
    before = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, check=True).stdout
    command = [str(ROOT / "scripts" / script), "--help"]
    first = (ROOT / "scripts" / script).read_text().partition("\n")[0]
    shown = call(*([sys.executable] if "python" in first else []), *command, cwd=ROOT, PYTHONPATH=str(ROOT))
    assert (shown.returncode, shown.stderr) == (0, "")
    assert f"scripts/{script}" in shown.stdout or "usage" in shown.stdout
    assert subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, check=True).stdout == before


def test_the_readme_starts_with_the_two_commands() -> None:
    first = re.search(r"^```\w*\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    assert first
    assert [line.split("#")[0].strip() for line in first[1].splitlines() if line] == [
        "scripts/harness run workloads/smoke.yaml",
        "scripts/test",
    ]


def test_the_architecture_page_has_every_part_and_the_layers_of_the_import_contract() -> None:
    page = (ROOT / "docs/architecture.md").read_text()
    layers = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]["layers"]
    assert "\n".join(layer.replace("harness.", "").replace(" | ", ", ") for layer in layers) in page
    parts = [path for path in (ROOT / "harness").iterdir() if path.name.strip("_") == path.name]
    assert [path.name for path in parts if f"`{path.name}{'/' * path.is_dir()}`" not in page] == []
