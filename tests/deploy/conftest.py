"""A real Docker Engine: images are built from deploy/Dockerfile, projects started by Compose.

No image is pulled: the base is made by debootstrap. Images stay, as Docker's cache; containers,
networks and volumes do not.
"""

from __future__ import annotations

import shutil

import pytest

from tests.support.containers import BASE, IMAGES, TRUST, Project, build, has, ran


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """An image with Python, which trusts whom this machine trusts."""
    if not has(BASE):
        root = tmp_path_factory.mktemp("base") / "root"
        include = "--include=python3,python3-venv,ca-certificates"
        ran("debootstrap", "--variant=minbase", include, "bookworm", str(root), timeout=600)
        for waste in ("var/cache/apt/archives", "var/lib/apt/lists"):
            shutil.rmtree(root / waste)
        shutil.copy(TRUST, root / TRUST.relative_to("/"))
        archive = root.with_suffix(".tar")
        ran("tar", "-C", str(root), "-cf", str(archive), ".")
        ran("docker", "import", "--change", f"ENV PIP_CERT={TRUST}", str(archive), BASE)
        shutil.rmtree(root.parent)
    return BASE


@pytest.fixture(scope="session")
def images(base):
    for target, image in IMAGES.items():
        build(target, image, "--build-arg", f"BASE={base}")
    return IMAGES


@pytest.fixture(scope="session")
def prometheus_image(base, tmp_path_factory):
    """The Prometheus that is installed here, in a container: no image can be pulled."""
    context = tmp_path_factory.mktemp("prometheus")
    shutil.copy(shutil.which("prometheus"), context / "prometheus")
    (context / "Dockerfile").write_text(
        f"FROM {base}\nCOPY prometheus /bin/prometheus\nRUN mkdir /prometheus\n"
        'ENTRYPOINT ["/bin/prometheus"]\n'
    )
    ran("docker", "build", "-t", "washp2p-test-prometheus", str(context))
    return "washp2p-test-prometheus"


@pytest.fixture
def project(images, tmp_path):
    """Makes a project, with keys; takes it down in the end."""
    made = []

    def make(*files, **variables):
        made.append(Project(files, tmp_path / "secrets", PORT="0", **variables))
        made[-1].compose("run", "--rm", "keys")
        return made[-1]

    yield make
    for each in made:
        each.compose("down", "-v", "--remove-orphans", "-t", "3")
