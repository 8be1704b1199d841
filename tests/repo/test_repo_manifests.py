"""What runs elsewhere: Serve configuration, the launcher file, the Kubernetes base."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[2]
SERVE_CONFIG = yaml.safe_load((ROOT / "serve_apps" / "openledger.yaml").read_text())
RAY_VERSION = re.findall(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[0]
RAY_SERVICE = yaml.safe_load((ROOT / "k8s" / "base" / "rayservice.yaml").read_text())
RAY_CLUSTER = RAY_SERVICE["spec"]["rayClusterConfig"]
POD_TEMPLATES = [group["template"] for group in (RAY_CLUSTER["headGroupSpec"], *RAY_CLUSTER["workerGroupSpecs"])]


def test_serve_accepts_its_configuration() -> None:
    from ray.serve.schema import ServeDeploySchema

    parsed = ServeDeploySchema.model_validate(SERVE_CONFIG)
    assert [application.name for application in parsed.applications] == ["openledger"]


def test_serve_refuses_a_misspelled_setting() -> None:
    """Negative control."""
    from ray.serve.schema import ServeDeploySchema

    with pytest.raises(ValueError, match="import_pth"):
        ServeDeploySchema.model_validate({"applications": [{"name": "openledger", "import_pth": "a:b"}]})


def test_the_service_serves_what_serve_deploy_does() -> None:
    """But for where it listens: on a cluster the gateway's own port is open."""

    def told(config: dict[str, Any]) -> dict[str, Any]:
        (application,) = config["applications"]
        args = {name: value for name, value in application["args"].items() if not name.startswith("http_")}
        return {**config, "http_options": None, "applications": [{**application, "args": args}]}

    assert told(yaml.safe_load(RAY_SERVICE["spec"]["serveConfigV2"])) == told(SERVE_CONFIG)


def test_the_gateways_own_port_is_open_on_the_pod_where_it_stays() -> None:
    args = yaml.safe_load(RAY_SERVICE["spec"]["serveConfigV2"])["applications"][0]["args"]
    name, _, value = args["http_node"].partition("=")
    head = RAY_CLUSTER["headGroupSpec"]
    ports = {port["name"]: port["containerPort"] for port in head["template"]["spec"]["containers"][0]["ports"]}
    service = yaml.safe_load((ROOT / "k8s" / "base" / "gateway.yaml").read_text())["spec"]
    assert (head["labels"], args["http_host"]) == ({name: value}, "0.0.0.0")
    assert ports[service["ports"][0]["targetPort"]] == args["http_port"] > 0
    assert service["selector"].items() <= head["template"]["metadata"]["labels"].items()


def test_the_builder_exists_and_takes_the_arguments_of_the_configuration() -> None:
    from openledger.console import deployment

    application = SERVE_CONFIG["applications"][0]
    assert application["import_path"] == f"{deployment.__name__}:{deployment.build.__name__}"
    assert set(application["args"]) == set(deployment.GatewayArguments.model_fields)


def launcher_schema() -> Any:
    import ray.autoscaler

    return json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())


@pytest.mark.parametrize("path", sorted((ROOT / "cluster").glob("*.yaml")), ids=lambda path: path.name)
def test_rays_launcher_accepts_the_cluster_file(path: Path) -> None:
    jsonschema.validate(yaml.safe_load(path.read_text()), launcher_schema())


def test_rays_launcher_refuses_an_unknown_key() -> None:
    """Negative control."""
    config = yaml.safe_load((ROOT / "cluster" / "local.yaml").read_text())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**config, "worker_nodse": 1}, launcher_schema())


@pytest.mark.parametrize("path", sorted((ROOT / "cluster").glob("*.yaml")), ids=lambda path: path.name)
def test_no_launcher_file_stops_every_ray_of_the_machine(path: Path) -> None:
    config = yaml.safe_load(path.read_text())
    commands = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    assert not any("ray stop" in command for command in commands)


def test_the_cluster_runs_the_pinned_ray() -> None:
    dockerfile = (ROOT / "k8s" / "Dockerfile").read_text()
    assert RAY_CLUSTER["rayVersion"] == RAY_VERSION
    assert f"FROM rayproject/ray:{RAY_VERSION}-py311\n" in dockerfile


def test_the_head_takes_no_tasks_and_every_process_needs_the_token() -> None:
    assert RAY_CLUSTER["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert RAY_CLUSTER["authOptions"] == {"mode": "token"}


def test_there_is_never_a_second_writer_of_the_ledger() -> None:
    assert RAY_SERVICE["spec"]["upgradeStrategy"] == {"type": "None"}


@pytest.mark.parametrize("template", POD_TEMPLATES)
def test_containers_get_what_they_ask_for_and_no_privileges(template: dict[str, Any]) -> None:
    for container in template["spec"]["containers"]:
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert template["spec"]["securityContext"]["runAsNonRoot"] is True
    assert template["spec"]["automountServiceAccountToken"] is False


@pytest.mark.parametrize("template", POD_TEMPLATES)
def test_every_mount_is_the_claim_that_the_base_makes(template: dict[str, Any]) -> None:
    claim = yaml.safe_load((ROOT / "k8s" / "base" / "storage.yaml").read_text())["metadata"]["name"]
    volumes = {volume["name"]: volume["persistentVolumeClaim"]["claimName"] for volume in template["spec"]["volumes"]}
    mounts = {mount["name"] for container in template["spec"]["containers"] for mount in container["volumeMounts"]}
    assert {volumes[name] for name in mounts} == {claim}


def test_kubectl_renders_the_base() -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed: the kustomize base was not rendered")
    result = subprocess.run(
        ["kubectl", "kustomize", ROOT / "k8s" / "base"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    rendered = {item["kind"]: item for item in yaml.safe_load_all(result.stdout)}
    assert set(rendered) == {"Namespace", "PersistentVolumeClaim", "RayService", "Service"}
    assert rendered["RayService"]["metadata"]["namespace"] == "openledger"
