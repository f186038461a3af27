"""A real Docker Engine: images are built from deploy/Dockerfile, projects started by Compose.

No image is pulled: the base is made by debootstrap. Images stay, as Docker's cache; containers,
networks and volumes do not.
"""

from __future__ import annotations

import shutil

import pytest

from tests.support.containers import BASE, IMAGES, Project, make_images, ran


@pytest.fixture(scope="session")
def images():
    make_images()
    return IMAGES


@pytest.fixture(scope="session")
def prometheus_image(images, tmp_path_factory):
    """The Prometheus that is installed here, in a container: no image can be pulled."""
    context = tmp_path_factory.mktemp("prometheus")
    shutil.copy(shutil.which("prometheus"), context / "prometheus")
    (context / "Dockerfile").write_text(
        f"FROM {BASE}\nCOPY prometheus /bin/prometheus\nRUN mkdir /prometheus\n"
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
