"""The project's commands, each in an environment of its own: `nox -s unit`, `nox -l` for all."""

from __future__ import annotations

import nox

nox.options.sessions = ["lint", "unit"]


@nox.session
def unit(session: nox.Session) -> None:
    """The unit tier; arguments after -- go to pytest."""
    session.install("-e", ".[test]")
    session.run("pytest", *session.posargs)


@nox.session
def process(session: nox.Session) -> None:
    """Real processes, loopback and network namespaces."""
    session.install("-e", ".[test]")
    folders = ("tests/process", "tests/faults")
    session.run("pytest", "-m", "not alone", *folders, *session.posargs)
    session.run("pytest", "-n0", "-m", "alone", *folders, *session.posargs)


@nox.session
def deploy(session: nox.Session) -> None:
    """Containers, Kubernetes manifests, Slurm."""
    session.install("-e", ".[test]")
    session.run("pytest", "-n0", "tests/deploy", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Lint, format and types."""
    session.install("-e", ".[lint]")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")


@nox.session
def docs(session: nox.Session) -> None:
    """The site, in site/; `nox -s docs -- serve` shows it while you write."""
    session.install("-e", ".[docs]")
    session.run("mkdocs", *(session.posargs or ["build", "--strict"]))
