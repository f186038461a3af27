"""Docker images and Compose projects, for tests.

`python -m tests.support.containers` makes the images.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from functools import cache
from pathlib import Path

from tests.support.polling import eventually
from tests.support.sources import ROOT

DEPLOY = ROOT / "deploy"
BASE = "washp2p-test-base"
IMAGES = {"coordinator": "washp2p-test-coordinator", "worker": "washp2p-test-worker"}
TRUST = Path("/etc/ssl/certs/ca-certificates.crt")


def ran(*command, timeout=120, check=True, **options):
    """What a command printed, on both channels."""
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
        **options,
    )
    assert done.returncode == 0 or not check, f"{command}: {done.stdout[-5000:]}"
    return done.stdout


@cache
def compose_command():
    """`docker compose`, or `docker-compose`."""
    if (
        shutil.which("docker")
        and subprocess.run(
            ["docker", "compose", "version"], capture_output=True, check=False
        ).returncode
        == 0
    ):
        return ("docker", "compose")
    return ("docker-compose",) if shutil.which("docker-compose") else ()


@cache
def missing():
    """Why no containers can be had here; empty if they can."""
    if shutil.which("docker") is None or not compose_command():
        return "Docker or its Compose is not installed"
    if subprocess.run(["docker", "info"], capture_output=True, check=False).returncode:
        return "no Docker Engine answers"
    if not has(BASE) and (os.getuid() or shutil.which("debootstrap") is None):
        return "needs root and debootstrap, to make a base image"
    return ""


def has(image):
    """Whether the engine has the image."""
    found = ["docker", "image", "inspect", image]
    return subprocess.run(found, capture_output=True, check=False).returncode == 0


def build(target, image, *arguments):
    """An image of deploy/Dockerfile; the one that had its name before goes."""
    before = ran("docker", "images", "-q", image).strip()
    context = ["-f", str(DEPLOY / "Dockerfile"), "--target", target, "-t", image, str(ROOT)]
    ran("docker", "build", *arguments, *context, timeout=1500)
    if before and before != ran("docker", "images", "-q", image).strip():
        ran("docker", "rmi", before, check=False)


def make_images():
    """Make the images of this tree, on a base with Python that trusts whom this machine trusts."""
    if not has(BASE):
        _make_base()
    for target, image in IMAGES.items():
        build(target, image, "--build-arg", f"BASE={BASE}")


def _make_base():
    include = "--include=python3,python3-venv,ca-certificates"
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "root"
        ran("debootstrap", "--variant=minbase", include, "bookworm", str(root), timeout=600)
        for waste in ("var/cache/apt/archives", "var/lib/apt/lists"):
            shutil.rmtree(root / waste)
        shutil.copy(TRUST, root / TRUST.relative_to("/"))
        archive = root.with_suffix(".tar")
        ran("tar", "-C", str(root), "-cf", str(archive), ".")
        ran("docker", "import", "--change", f"ENV PIP_CERT={TRUST}", str(archive), BASE)


class Project:
    """One Compose project: `files` below deploy/ or anywhere, variables as the README has them."""

    def __init__(self, files, secrets, **variables):
        self.name = f"washp2p-test-{os.getpid()}"
        self._files = [flag for file in files for flag in ("-f", str(DEPLOY / file))]
        self._environment = {
            **os.environ,
            "COORDINATOR_IMAGE": IMAGES["coordinator"],
            "WORKER_IMAGE": IMAGES["worker"],
            "WORKER_FLAGS": "--threads=1",
            "SECRETS": str(secrets),
            "BASE": BASE,
            **variables,
        }

    def compose(self, *arguments, timeout=180, check=True, **variables):
        command = [*compose_command(), "-p", self.name, *self._files, *arguments]
        return ran(*command, timeout=timeout, check=check, env={**self._environment, **variables})

    def containers(self, service):
        """Ids, of those that have ended, too."""
        labels = [f"label=com.docker.compose.project={self.name}"]
        labels.append(f"label=com.docker.compose.service={service}")
        filters = [flag for label in labels for flag in ("--filter", label)]
        return ran("docker", "ps", "-aq", *filters).split()

    def inspect(self, container):
        return json.loads(ran("docker", "inspect", container))[0]

    def exit_codes(self, service):
        """Of all its containers, once they have ended."""
        return [int(ran("docker", "wait", each, timeout=300)) for each in self.containers(service)]

    def logs(self, container):
        return ran("docker", "logs", container)

    @property
    def view(self):
        """The status page's; None if it does not answer."""
        try:
            return json.loads(self.ask("coordinator", 8080, "status.json"))
        except OSError:
            return None

    def ask(self, service, port, path):
        """What a service answers at its published port."""
        (container, *_) = self.containers(service)
        ports = self.inspect(container)["NetworkSettings"]["Ports"].get(f"{port}/tcp")
        if not ports:
            raise ConnectionError(f"{service} is not up")
        address = f"http://127.0.0.1:{ports[0]['HostPort']}/{path}"
        with urllib.request.urlopen(address, timeout=10) as answer:
            return answer.read().decode()

    def until(self, look, seconds=120):
        """What `look` makes of a view, as soon as that is something."""

        def seen():
            view = self.view
            return look(view) if view is not None else None

        return eventually(
            seen, seconds, lambda: f"{self.view}\n{self.compose('logs', '--tail=40')}"
        )

    def file(self, path):
        """A file of the volume with runs, as text."""
        return self.on_volume("cat", f"runs/{path}")

    def on_volume(self, *command):
        shell = ["run", "--rm", "--no-deps", "-T", "--entrypoint", command[0], "coordinator"]
        command = [*compose_command(), "-p", self.name, *self._files, *shell, *command[1:]]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=False, env=self._environment
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


if __name__ == "__main__":
    if why := missing():
        sys.exit(why)
    make_images()
