"""The core's tests with the oldest and with the newest versions that `pyproject.toml` allows: `make versions`."""

from pathlib import Path

import nox

nox.options.default_venv_backend = "venv"
nox.options.reuse_existing_virtualenvs = True

CORE = ["by_hand", "rules", "treatments", "transform", "networks", "attention", "attribution", "composites"]
CORE += ["control", "conventions", "factors", "primitives", "tokens"]
TOOLS = ("pytest>", "pytest-xdist>", "tqdm>", "equinox>")
PROJECT = nox.project.load_toml("pyproject.toml")["project"]
EXTRAS = PROJECT["optional-dependencies"]
REQUIRED = [*PROJECT["dependencies"], *(name for name in EXTRAS["book"] if name.startswith("flax>"))]


@nox.session
def oldest(session: nox.Session) -> None:
    """The lower bounds of `pyproject.toml`, exactly."""
    check(session, *(requirement.replace(">=", "==") for requirement in REQUIRED))


@nox.session
def newest(session: nox.Session) -> None:
    """Whatever is newest today, without the pinned versions."""
    check(session, *REQUIRED)


def check(session: nox.Session, *dependencies: str) -> None:
    """Runs the core's tests with these dependencies."""
    tools = [tool for tool in [*EXTRAS["dev"], *EXTRAS["book"]] if tool.startswith(TOOLS)]
    session.install("--upgrade", "--upgrade-strategy", "eager", *dependencies, *tools)
    session.install("--no-deps", "--editable", ".")
    session.run("python", "-c", "import flax, jax, numpy; print(jax.__version__, flax.__version__, numpy.__version__)")
    files = [next(Path("tests").rglob(f"test_{name}.py")).as_posix() for name in CORE]
    as_usual = {"XLA_FLAGS": ""}  # a version may not know the flags of the default run
    session.run("pytest", "--numprocesses", "auto", *files, *session.posargs, env=as_usual)
