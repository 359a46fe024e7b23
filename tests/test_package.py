"""What is installed, and what the README says."""

import ast
import email
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import yaml

import lrp_jax

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_wheel_holds_the_library_alone_and_not_the_book(wheel):
    names = wheel.namelist()
    assert [name for name in names if "lrp_book" in name] == []
    assert "lrp_jax/py.typed" in names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"lrp_jax"}
    assert {Path(name).suffix for name in names if name.startswith("lrp_jax/")} == {".py", ".typed"}


def test_editable_installation_finds_the_library_and_the_book(tmp_path):
    command = "import sys; from hatchling.build import build_editable; build_editable(sys.argv[1])"
    subprocess.run([sys.executable, "-c", command, str(tmp_path)], check=True, capture_output=True, cwd=ROOT)
    (path,) = tmp_path.glob("*.whl")
    editable = zipfile.ZipFile(path)
    (paths,) = (editable.read(name).decode().split() for name in editable.namelist() if name.endswith(".pth"))
    assert {Path(folder).resolve() for folder in paths} == {ROOT, ROOT / "book"}


def test_wheel_needs_jax_alone(wheel):
    (name,) = (name for name in wheel.namelist() if name.endswith("METADATA"))
    written = wheel.read(name).decode()
    required = re.findall(r"^Requires-Dist: (\w+)[^;\n]*$", written, re.MULTILINE)
    assert required == ["jax"]
    assert "License-Expression: MIT" in written


def test_importing_the_library_imports_neither_flax_nor_extras():
    others = ("flax", "optax", "matplotlib", "tensorflow_datasets", "tqdm")
    code = f"import sys, lrp_jax; print([name for name in {others} if name in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert printed.strip() == "[]"


def names_reached(tree):
    """The dotted names that a module imports, or reaches through what it has imported."""
    imported = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.asname or alias.name.split(".")[0]: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    attributes = [ast.unparse(node).split(".") for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    return {*imported.values(), *(".".join([imported.get(first, first), *rest]) for first, *rest in attributes)}


OF_A_PRIMITIVE = {
    *("jax.interpreters." + module for module in ("ad", "batching", "mlir")),
    "jax.interpreters.ad.primitive_jvps",
    "jax.interpreters.ad.primitive_transposes",
    "jax.interpreters.batching.defvectorized",
    "jax.interpreters.mlir.register_lowering",
}


@pytest.mark.parametrize("path", sorted((ROOT / "lrp_jax").rglob("*.py")), ids=str)
def test_library_imports_neither_flax_nor_the_book(path):
    imported = {name.split(".")[0] for name in names_reached(ast.parse(path.read_text()))}
    assert imported.isdisjoint({"flax", "optax", "lrp_book"})


@pytest.mark.parametrize("path", sorted((ROOT / "lrp_jax").rglob("*.py")), ids=str)
def test_jax_and_flax_are_reached_through_their_public_modules(path):
    names = [name.split(".") for name in names_reached(ast.parse(path.read_text()))]
    ours = [name for name in names if name[0] in {"jax", "jaxlib", "flax"}]
    assert [name for name in ours if name[0] == "jaxlib" or any(re.match(r"_[^_]", part) for part in name)] == []
    # Of the modules whose contents change without notice, only what JAX documents: an array being traced, and what a
    # primitive of one's own is made of ("JAX Internals: primitives").
    unstable = {".".join(name) for name in ours if name[:2] in (["jax", "core"], ["jax", "interpreters"])}
    assert unstable <= {"jax.core", "jax.core.Tracer"} | (OF_A_PRIMITIVE if path.stem == "forms" else set())


def test_code_of_the_readme_runs_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL))
    names = {}
    exec(code, names)
    np.testing.assert_allclose(names["explained"](names["x"]), names["model"](names["x"]), rtol=1e-6)
    assert names["explanation"].relevance.shape == names["x"].shape
    assert (tmp_path / "explained.png").stat().st_size > 1000


def test_readme_names_the_oldest_versions():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = {"Python": project["requires-python"]}
    for requirement in [*project["dependencies"], *project["optional-dependencies"]["book"]]:
        name, *oldest = re.split(r"(?=>=)", requirement)
        required[name] = oldest[0] if oldest else ""
    rows = re.findall(
        r"^\| (Python|jax|flax)\b[^|]*\| (\S+) or newer \|", (ROOT / "README.md").read_text(), re.MULTILINE
    )
    assert {name: f">={oldest}" for name, oldest in rows} == {
        name: required[name] for name in ("Python", "jax", "flax")
    }


def test_sharded_input_gives_the_same_maps():
    code = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from lrp_jax import composites, lrp, relevance
kernel = jax.random.normal(jax.random.key(0), (3, 3, 1, 4))
head = jax.random.normal(jax.random.key(1), (4, 3))
def network(x):
    x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jax.nn.relu(x).mean((1, 2)) @ head
x = jax.random.normal(jax.random.key(2), (8, 6, 6, 1))
sharding = NamedSharding(Mesh(np.array(jax.devices()), "batch"), PartitionSpec("batch"))
explain = jax.jit(jax.grad(lambda x: lrp(network, composites.EpsilonPlusFlat())(x)[:, 1].sum()))
maps = explain(jax.device_put(x, sharding))
assert len(maps.sharding.device_set) == 4, maps.sharding
np.testing.assert_allclose(maps, explain(x), rtol=1e-5, atol=1e-6)
np.testing.assert_allclose(relevance(network, jax.device_put(x, sharding), 1).relevance,
                           relevance(network, x, 1).relevance, rtol=1e-5, atol=1e-6)
"""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    environment = {"XLA_FLAGS": flags, "PATH": "", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", sorted((ROOT / ".github" / "workflows").glob("*.yml")), ids=lambda path: path.stem)
def test_workflow_reads_by_default_and_runs_actions_by_their_commit(path):
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    used = [step["uses"] for job in workflow["jobs"].values() for step in job["steps"] if "uses" in step]
    assert [action for action in used if not re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action)] == []


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-dev.txt", "constraints-doors.txt"])
def test_every_dependency_is_pinned_with_hashes_and_names_no_index(name):
    text = (ROOT / name).read_text()
    for requirement in text.replace("\\\n", "").splitlines():
        assert re.match(r"[a-z0-9._-]+==\S+ ", requirement), requirement
        assert re.search(r" --hash=sha256:[0-9a-f]{64}", requirement), requirement
    assert "://" not in text


def test_every_dependency_that_pyproject_names_is_pinned_for_the_book_and_for_development():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = {"constraints.txt": extras["book"], "constraints-dev.txt": [*extras["book"], *extras["dev"]]}
    for name, requirements in wanted.items():
        pinned = set(re.findall(r"^([a-z0-9._-]+)==", (ROOT / name).read_text(), re.MULTILINE))
        named = {re.match(r"[\w.-]+", requirement).group().lower() for requirement in requirements}
        assert named | {"jax"} <= pinned, f"{name} is out of date: run make constraints"


def test_both_files_of_constraints_agree():
    book, dev = (
        dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", (ROOT / name).read_text(), re.MULTILINE))
        for name in ("constraints.txt", "constraints-dev.txt")
    )
    assert {name: dev.get(name) for name in book} == book


def test_version_and_date_are_the_same_wherever_they_stand():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    newest, date = re.search(r"^## \[([^\]]+)\] - (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE).groups()
    assert (newest, date) == (version, citation["date-released"].isoformat())
    assert citation["version"] == version == lrp_jax.__version__ == metadata.version("lrp-jax")


def test_other_attributes_of_the_package_are_missing():
    with pytest.raises(AttributeError, match="module 'lrp_jax' has no attribute 'version'"):
        lrp_jax.version  # noqa: B018


def built_metadata(folder, monkeypatch, address):
    """The metadata of a wheel that is built with an address of the repository, or without."""
    monkeypatch.setenv("LRP_JAX_URL", address)
    code = (
        "import sys; from hatchling.build import prepare_metadata_for_build_wheel as write; print(write(sys.argv[1]))"
    )
    command = [sys.executable, "-c", code, str(folder)]
    name = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout.split()[-1]
    return email.message_from_string((folder / name / "METADATA").read_text())


def test_published_package_links_to_its_repository_and_shows_its_pictures(tmp_path, monkeypatch):
    built = built_metadata(tmp_path, monkeypatch, "https://git.example/someone/lrp_jax/")
    assert "Repository, https://git.example/someone/lrp_jax" in built.get_all("Project-URL")
    assert "](https://git.example/someone/lrp_jax/raw/HEAD/book/images/five-digits.png)" in built.get_payload()
    assert "](https://git.example/someone/lrp_jax/blob/HEAD/CONTRIBUTING.md)" in built.get_payload()
    assert [path for path in re.findall(r"\]\(([^)]*)\)", built.get_payload()) if "://" not in path] == []


def test_package_without_an_address_has_a_readme_without_links_that_lead_nowhere(tmp_path, monkeypatch):
    built = built_metadata(tmp_path, monkeypatch, "")
    assert built.get_all("Project-URL") is None
    assert [path for path in re.findall(r"\]\(([^)]*)\)", built.get_payload()) if "://" not in path] == []
    assert "CONTRIBUTING.md has the map of the repository" in built.get_payload()
    assert "five-digits" not in built.get_payload()


def test_every_link_of_the_readme_into_the_repository_leads_to_a_file():
    paths = re.findall(r"\]\(([^):]+)\)", (ROOT / "README.md").read_text())
    assert len(paths) > 2
    assert [path for path in paths if not (ROOT / path).exists()] == []
