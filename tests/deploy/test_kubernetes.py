"""The manifests, offline: rendered by kustomize, then held against schemas from packages.

Kubernetes' own kinds against the JSON schemas in `kubernetes-validate`, strictly (no field that is
not in the schema); JobSet against the models of Kubeflow's trainer, made from JobSet's OpenAPI,
which must give back all that they were given (they drop fields they do not know).
"""

from __future__ import annotations

import shutil
import subprocess

import kubernetes_validate
import pytest
import yaml
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet

from coordinator.__main__ import main as coordinate
from tests.support.containers import DEPLOY
from washp2p.sockets import keys
from workers.__main__ import main as work

VERSIONS = ("1.30", "1.33")
VARIANTS = ("job", "jobset")


@pytest.fixture(params=VARIANTS)
def manifests(request, tmp_path):
    """What a variant is rendered to, with keys made as its README says."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed (its kustomize renders the manifests)")
    folder = tmp_path / "kubernetes"
    shutil.copytree(DEPLOY / "kubernetes", folder)
    keys.make(folder / "common" / "keys")
    rendered = subprocess.run(
        ["kubectl", "kustomize", str(folder / request.param)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (rendered.returncode, rendered.stderr) == (0, "")
    return list(yaml.safe_load_all(rendered.stdout))


def of_kind(manifests, kind):
    return [each for each in manifests if each["kind"] == kind]


def jobs(manifests):
    """Deployment, Jobs, and the Jobs that a JobSet would make, by component."""
    templates = of_kind(manifests, "Deployment") + of_kind(manifests, "Job")
    for jobset in of_kind(manifests, "JobSet"):
        templates += [each["template"] for each in jobset["spec"]["replicatedJobs"]]
    labels = [each["spec"]["template"]["metadata"]["labels"] for each in templates]
    return {
        label["app.kubernetes.io/component"]: each
        for label, each in zip(labels, templates, strict=True)
    }


def within(given, back):
    """Whether all that was given has come back, perhaps with defaults beside it."""
    if isinstance(given, dict):
        return all(key in back and within(value, back[key]) for key, value in given.items())
    if isinstance(given, list):
        return len(given) == len(back) and all(map(within, given, back))
    return given == back


def test_they_fit_the_schemas(manifests):
    assert {"Namespace", "Secret", "PersistentVolumeClaim"} < {each["kind"] for each in manifests}
    for each in manifests:
        if each["kind"] == "JobSet":
            for template in each["spec"]["replicatedJobs"]:
                job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}}
                for version in VERSIONS:
                    kubernetes_validate.validate(job | template["template"], version, strict=True)
            assert within(each, JobsetV1alpha2JobSet.from_dict(each).to_dict())
        else:
            for version in VERSIONS:
                kubernetes_validate.validate(each, version, strict=True)


def test_a_mistake_is_found(manifests):
    for each in manifests:
        if each["kind"] == "JobSet":
            each["spec"]["replicatedJob"] = each["spec"]["replicatedJobs"]
            assert not within(each, JobsetV1alpha2JobSet.from_dict(each).to_dict())
        else:
            each["spek"] = {}
            with pytest.raises(kubernetes_validate.ValidationError):
                kubernetes_validate.validate(each, VERSIONS[-1], strict=True)


def test_the_parts_fit_together(manifests):
    """Names, ports, secrets and numbers are what the other part says, too."""
    parts = jobs(manifests)
    assert set(parts) == {"coordinator", "worker"}
    secrets = {each["metadata"]["name"]: set(each["data"]) for each in of_kind(manifests, "Secret")}
    claims = {each["metadata"]["name"] for each in of_kind(manifests, "PersistentVolumeClaim")}
    flags, ports = {}, {}
    for name, part in parts.items():
        pod = part["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert container["image"] == f"washp2p-{name}:latest"
        flags[name] = dict(flag.lstrip("-").partition("=")[::2] for flag in container["args"])
        ports[name] = {port["name"]: port["containerPort"] for port in container["ports"]}
        places = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        for volume in pod["volumes"]:
            assert volume["name"] in places
            if "secret" in volume:
                (file,) = secrets[volume["secret"]["secretName"]]
                assert flags[name]["keys"] == f"{places[volume['name']]}/{file}"
            elif "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in claims
        assert pod["securityContext"]["runAsNonRoot"]
        assert container["securityContext"]["readOnlyRootFilesystem"]
    spec = parts["worker"]["spec"]
    assert int(flags["coordinator"]["n"]) == spec["completions"] == spec["parallelism"]
    assert spec["completionMode"] == "Indexed"
    host, port = flags["worker"]["coordinator"].removeprefix("tcp://").split(":")
    assert int(port) == ports["coordinator"]["control"]
    services = {each["metadata"]["name"]: each for each in of_kind(manifests, "Service")}
    if services:
        assert host in services
        assert services[parts["worker"]["spec"]["template"]["spec"]["subdomain"]]
        assert services["washp2p-worker"]["spec"]["clusterIP"] == "None"
    else:
        (jobset,) = of_kind(manifests, "JobSet")
        network = jobset["spec"]["network"]["subdomain"]
        assert host == f"{jobset['metadata']['name']}-coordinator-0-0.{network}"


@pytest.mark.parametrize(("name", "program"), [("coordinator", coordinate), ("worker", work)])
def test_the_flags_are_the_programs(manifests, name, program, capsys):
    """One more that does not exist is the only thing wrong with them."""
    (container,) = jobs(manifests)[name]["spec"]["template"]["spec"]["containers"]
    with pytest.raises(SystemExit, match="2"):
        program([*container["args"], "--nonsense"])
    assert "unrecognized arguments: --nonsense" in capsys.readouterr().err
