"""deploy/kuberay.yaml and deploy/ray-cluster.yaml: valid for KubeRay, Kubernetes and ``ray up``, and for replicator."""

from __future__ import annotations

import copy
import importlib.util
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import boto3
import jsonschema
import kubernetes_validate
import pytest
import yaml
from moto import mock_aws
from ray.autoscaler._private.aws.config import _configure_security_group, _configure_subnet

from replicator.config import settings
from replicator.config.engine import Ray

DEPLOY, HERE = Path(__file__).parents[2] / "deploy", Path(__file__).parent
CONFIG, CLUSTER, POLICY = yaml.safe_load_all((DEPLOY / "kuberay.yaml").read_text())
GROUPS = [CLUSTER["spec"]["headGroupSpec"], *CLUSTER["spec"]["workerGroupSpecs"]]
UP = yaml.safe_load((DEPLOY / "ray-cluster.yaml").read_text())


def strict(schema: Any) -> Any:
    """Kubernetes' own reading of a schema: what an object does not list is unknown."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: strict(inner) for name, inner in schema.items()}
    if "properties" in schema and schema.get("type") == "object" and schema["properties"].keys() != set():
        closed["additionalProperties"] = False
    return closed


def test_the_ray_cluster_is_valid_for_kuberay_and_a_wrong_key_is_found() -> None:
    schema = strict(json.loads((HERE / "raycluster.json").read_text()))
    schema["properties"]["metadata"] = {"type": "object"}
    jsonschema.validate(CLUSTER, schema)
    wrong: Mapping[str, object]
    for wrong in ({"headGroup": {}}, {"authOptions": {"mode": "password"}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**CLUSTER, "spec": {**CLUSTER["spec"], **wrong}}, schema)


@pytest.mark.parametrize("group", GROUPS, ids=["head", "workers"])
def test_its_pods_are_valid_for_kubernetes_and_each_has_config_and_secret(group: Any) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": group["template"]["spec"]}
    for made in (pod, CONFIG):
        kubernetes_validate.validate(made, "1.37", strict=True)
    volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
    (container,) = pod["spec"]["containers"]
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounted.keys() == volumes
    assert f"{mounted['secrets']}/password" in CONFIG["data"]["orders.yaml"]
    assert "$KUBERAY_GEN_RAY_START_CMD" in container["args"][0]


def test_the_config_is_valid_and_its_workers_fit_on_the_nodes_although_one_is_lost(tmp_path: Path) -> None:
    for name, text in CONFIG["data"].items():
        (tmp_path / name).write_text(text)
    config = settings.load(str(tmp_path / "orders.yaml"))
    assert isinstance(config.engine, Ray)
    (workers,) = CLUSTER["spec"]["workerGroupSpecs"]
    cpus = int(workers["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
    assert config.engine.workers <= (workers["replicas"] - 1) * cpus
    assert CLUSTER["spec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert (
        "exec replicator run /etc/replicator/orders.yaml" in GROUPS[0]["template"]["spec"]["containers"][0]["args"][0]
    )


def test_the_cluster_file_is_valid_for_ray_up_and_a_wrong_key_is_found() -> None:
    found = importlib.util.find_spec("ray")
    assert found is not None
    schema = json.loads((Path(str(found.origin)).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(UP, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**UP, "max_worker": 3}, schema)
    nodes = UP["available_node_types"]
    assert UP["head_node_type"] in nodes
    assert nodes["head"]["resources"]["CPU"] == 0
    assert (nodes["worker"]["min_workers"] - 1) * nodes["worker"]["resources"]["CPU"] >= 8, "as many as workers"


def test_ray_up_takes_a_private_subnet_and_opens_nothing_in_a_group_that_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ray's own preparation of the file, on a simulated EC2: so SSH needs a machine of the group."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "local")
    with mock_aws():
        ec2 = boto3.client("ec2", region_name=UP["provider"]["region"])
        vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
        subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.0.1.0/24")["Subnet"]["SubnetId"]
        group = ec2.create_security_group(GroupName="replicator", Description="its own members", VpcId=vpc)["GroupId"]
        prepared = copy.deepcopy(UP)
        for node in prepared["available_node_types"].values():
            node["node_config"] |= {"SubnetIds": [subnet], "SecurityGroupIds": [group]}
        prepared = _configure_security_group(_configure_subnet(prepared))
        (found,) = ec2.describe_security_groups(GroupIds=[group])["SecurityGroups"]
    assert all(n["node_config"]["SecurityGroupIds"] == [group] for n in prepared["available_node_types"].values())
    assert found["IpPermissions"] == []


def test_only_the_head_may_start_instances_and_each_node_type_has_a_profile() -> None:
    """Ray makes one for the head only where none is named."""
    profiles = {name: n["node_config"]["IamInstanceProfile"]["Arn"] for name, n in UP["available_node_types"].items()}
    assert {name: arn.rpartition("/")[2] for name, arn in profiles.items()} == {
        "head": "HEAD_PROFILE",
        "worker": "PROFILE",
    }


def test_the_commands_in_the_document_fit_the_files() -> None:
    """They need a cluster, so what they name is compared."""
    text = (DEPLOY.parent / "docs" / "scaling.md").read_text()
    commands = "".join(re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    for file in set(re.findall(r"deploy/\S+\.yaml", commands)):
        assert (DEPLOY.parent / file).is_file(), file
    assert "/srv/orders" in UP["file_mounts"]
    (secret,) = {v["secret"]["secretName"] for g in GROUPS for v in g["template"]["spec"]["volumes"] if "secret" in v}
    assert f"kubectl create secret generic {secret} --from-file=password" in commands
    assert f"ray.io/cluster={CLUSTER['metadata']['name']}`" in text


def reached(policies: list[Any], labels: Mapping[str, str]) -> list[Any]:
    """The rules by which pods with these labels are reached; they are not restricted if no policy selects them."""
    selecting = [p["spec"] for p in policies if p["spec"]["podSelector"]["matchLabels"].items() <= labels.items()]
    assert selecting, "no policy selects the pods"
    return [rule for spec in selecting for rule in spec["ingress"]]


@pytest.mark.parametrize("group", GROUPS, ids=["head", "workers"])
def test_policies_let_the_nodes_of_the_cluster_reach_each_other_and_prometheus_the_head(group: Any) -> None:
    kubernetes_validate.validate(POLICY, "1.37", strict=True)
    of_one_process = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))[-1]
    assert of_one_process["kind"] == POLICY["kind"] == "NetworkPolicy"
    assert of_one_process["metadata"]["name"] != POLICY["metadata"]["name"], "one would replace the other"
    ray = {"ray.io/cluster": CLUSTER["metadata"]["name"]}  # the label that KubeRay gives to all pods
    labels = {**group["template"]["metadata"]["labels"], **ray}
    for policies in ([POLICY], [POLICY, of_one_process]):
        rules = reached(policies, labels)
        peers = [peer for rule in rules if "ports" not in rule for peer in rule["from"]]
        assert {"podSelector": {"matchLabels": ray}} in peers
        assert all(peer.keys() <= {"podSelector", "namespaceSelector"} and all(peer.values()) for peer in peers)
        assert [{"port": 9464}] in [rule.get("ports") for rule in rules]


def test_the_image_has_what_the_config_needs() -> None:
    """The extras of Ray, of the target, and of the page that monitors the run."""
    config = yaml.safe_load(CONFIG["data"]["orders.yaml"])
    extras = f".[{config['engine']['type']},{config['target']['type']},web]"
    assert "monitoring" in config
    for file in ("deploy/kuberay.yaml", "deploy/ray-cluster.yaml"):
        assert f"pip install '{extras}'" in (DEPLOY.parent / file).read_text()
    assert f"`{extras}`" in (DEPLOY.parent / "docs" / "scaling.md").read_text()
