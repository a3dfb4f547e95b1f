"""deploy/kubernetes*.yaml: valid for Kubernetes, and its parts fit each other and what replicator does."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from replicator.config import settings
from tests.cli.command_line import World
from tests.deploy.test_container import last

DEPLOY = Path(__file__).parents[2] / "deploy"
FILES = {
    name: list(yaml.safe_load_all((DEPLOY / name).read_text())) for name in ("kubernetes.yaml", "kubernetes-job.yaml")
}
OBJECTS = [made for objects in FILES.values() for made in objects]
VERSIONS = ("1.30", "1.37")


def one(kind: str) -> Any:
    (found,) = [made for made in OBJECTS if made["kind"] == kind]
    return found


def pod(kind: str) -> Any:
    return one(kind)["spec"]["template"]["spec"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("made", OBJECTS, ids=lambda made: made["kind"])
def test_it_is_valid_against_the_published_schemas(made: Any, version: str) -> None:
    kubernetes_validate.validate(made, version, strict=True)


def test_a_key_that_kubernetes_does_not_know_is_found() -> None:
    deployment = one("Deployment")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**deployment, "spec": {**deployment["spec"], "replica": 1}}, "1.37", strict=True)


def test_one_run_at_a_time_and_the_old_one_ends_first() -> None:
    spec = one("Deployment")["spec"]

    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})


@pytest.mark.parametrize("kind", ["Deployment", "Job"])
def test_a_pod_has_what_the_image_needs_and_nothing_more(kind: str) -> None:
    (container,) = pod(kind)["containers"]
    user, _, group = last("USER").partition(":")
    volume, secrets = pod(kind)["volumes"]
    mount, mounted = container["volumeMounts"]

    assert (pod(kind)["securityContext"]["runAsUser"], pod(kind)["securityContext"]["runAsGroup"]) == (
        int(user),
        int(group),
    )
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert volume["configMap"]["name"] == one("ConfigMap")["metadata"]["name"]
    assert container["args"][1] == f"{mount['mountPath']}/{next(iter(one('ConfigMap')['data']))}"
    assert secrets == {"name": mounted["name"], "secret": {"secretName": "replicator-orders"}}
    assert f"password_file: {mounted['mountPath']}/password" in one("ConfigMap")["data"]["orders.yaml"]


def test_the_jobs_pod_does_not_belong_to_the_deployment() -> None:
    selected = one("Deployment")["spec"]["selector"]["matchLabels"]

    assert selected.items() <= one("Deployment")["spec"]["template"]["metadata"]["labels"].items()
    assert not selected.items() <= one("Job")["spec"]["template"]["metadata"]["labels"].items()
    assert one("Service")["spec"]["selector"] == one("NetworkPolicy")["spec"]["podSelector"]["matchLabels"] == selected


def test_the_probes_ask_where_the_config_listens(tmp_path: Path) -> None:
    for name, text in one("ConfigMap")["data"].items():
        (tmp_path / name).write_text(text)
    config = settings.load(tmp_path / "orders.yaml", {})
    (container,) = pod("Deployment")["containers"]
    (port,) = container["ports"]

    assert config.monitoring is not None
    assert config.monitoring.address.port == port["containerPort"]
    assert not config.monitoring.address.loopback, "the kubelet asks from outside of the pod"
    assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": port["name"]}
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": port["name"]}
    waits = container["livenessProbe"]
    assert waits["failureThreshold"] * waits["periodSeconds"] >= 600


def mounted(folder: Path, generation: str, files: dict[str, str]) -> None:
    """Files as Kubernetes mounts a ConfigMap: links to links into a folder whose name changes with every update."""
    (folder / generation).mkdir()
    for name, text in files.items():
        (folder / generation / name).write_text(text)
    (folder / "..data_tmp").symlink_to(generation)
    os.replace(folder / "..data_tmp", folder / "..data")
    for name in files:
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(f"..data/{name}")


def test_a_config_map_that_is_mounted_anew_is_no_changed_hook(world: World, tmp_path: Path) -> None:
    world.change("  region: us-east-1", "  region: us-east-1\n  poll_interval: 50ms")
    world.db.create_table("orders")
    world.db.put("orders", {"id": "1", "total": 5})
    world.hook("def hook(item):\n    return {'total': item['total']}\n")
    files = {name: (world.folder / name).read_text() for name in ("orders.yaml", "hooks.py")}
    folder = tmp_path / "mounted"
    folder.mkdir()
    mounted(folder, "..2026_01_01", files)
    first = world.call("run", str(folder / "orders.yaml"), "--until", "caught-up")
    mounted(folder, "..2026_01_02", {**files, "orders.yaml": files["orders.yaml"] + "parked_limit: 5\n"})
    world.db.put("orders", {"id": "2", "total": 6})
    second = world.call("run", str(folder / "orders.yaml"), "--until", "caught-up")

    assert (first[0], second[0]) == (0, 0), (first, second)
    assert '"resuming"' in second[1]
    assert world.rows("SELECT id FROM orders ORDER BY id") == [("1",), ("2",)]
