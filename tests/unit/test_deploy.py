"""What stands in deploy/: each file against its format's own schema, and what the files say of each other and of us."""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from shared_engine import EngineSettings
from shared_engine.cli.machine_checks import MIN_SHM_BYTES
from shared_engine.errors import SettingsError
from shared_engine.runtime.directory import ROOT_VARIABLE
from shared_engine.runtime.log_level import FORMAT_VARIABLE, LEVEL_VARIABLE
from shared_engine.settings import ENVIRONMENT
from shared_engine.vllm_versions import INSTALLED
from tests.support.paths import REPOSITORY

yaml = pytest.importorskip("yaml")  # not in the environment of the oldest releases, nor are the schemas
kubernetes_validate = pytest.importorskip("kubernetes_validate")

DEPLOY = REPOSITORY / "deploy"
MANIFESTS = sorted(path for path in (DEPLOY / "kubernetes").glob("*.yaml") if not path.name.endswith("-values.yaml"))
VALUES = DEPLOY / "kubernetes" / "production-stack-values.yaml"
KUBERNETES_VERSIONS = ("1.32", "1.34", "1.37")
PODS_OF = {"Deployment", "StatefulSet"}
FINISH_S = 60
"""How long the app, and vLLM after SIGTERM, may take for what is under way."""

DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
APP = (DEPLOY / "app.py").read_text()
TOOLS = Path(sys.executable).parent
each_manifest = pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)


class _NoDuplicates(yaml.SafeLoader):  # type: ignore[misc,name-defined]
    """A key that stands twice is an error, as it is for kubectl and compose, and not for PyYAML."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        names = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        assert len(names) == len(set(names)), f"{node.start_mark}: a key stands twice: {names}"
        return super().construct_mapping(node, deep)


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.load_all(path.read_text(), _NoDuplicates))


def text_of(value: object) -> str:
    """As a container gets it."""
    assert isinstance(value, str), f"{value!r} must be a text"
    return value


COMPOSE = documents(DEPLOY / "compose.yaml")[0]
SERVERS = {name: service for name, service in COMPOSE["services"].items() if name != "app"}


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pod's specification, by file and name."""
    for path in MANIFESTS:
        for document in documents(path):
            if document["kind"] in PODS_OF:
                yield f"{path.stem}/{document['metadata']['name']}", document["spec"]["template"]["spec"]


def containers() -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Every container, with its pod."""
    for name, pod in pods():
        for container in pod["containers"]:
            yield name, container, pod


each_container = pytest.mark.parametrize(
    ("container", "pod"), [pytest.param(each, pod, id=name) for name, each, pod in containers()]
)


def is_ours(container: Mapping[str, Any]) -> bool:
    return str(container["image"]).startswith("vllm-app:")


def variables(container: Mapping[str, Any]) -> dict[str, str]:
    """As the container has them; a secret's value is ``secret``."""
    return {each["name"]: text_of(each["value"]) if "value" in each else "secret" for each in container["env"]}


def seconds(text: str) -> int:
    number, unit = text[:-1], text[-1]
    return int(number) * {"s": 1, "m": 60}[unit]


# ---- each file against its format


@pytest.mark.slow
def test_the_dockerfile_has_nothing_that_hadolint_finds() -> None:
    done = subprocess.run([TOOLS / "hadolint", DEPLOY / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["compose.yaml", "gateway/compose.yaml"])
def test_compose_keeps_to_the_compose_specification(name: str) -> None:
    command = [str(TOOLS / "check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(DEPLOY / name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
@each_manifest
def test_manifests_keep_to_kubernetes_own_schemas(path: Path, version: str) -> None:
    found = documents(path)
    assert found
    for document in found:
        kubernetes_validate.validate(document, version, strict=True)


def test_the_schemas_do_refuse_something() -> None:
    document = documents(MANIFESTS[0])[0]
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**document, "specification": {}}, KUBERNETES_VERSIONS[0], strict=True)


# Of helm/values.schema.json of vllm-project/production-stack, chart vllm-stack 0.1.12, what is used here: the chart
# takes any other key without a word, and does nothing with it.
CHART = {
    "servingEngineSpec.vllmApiKey.secretName": str,
    "servingEngineSpec.vllmApiKey.secretKey": str,
    "servingEngineSpec.modelSpec.name": str,
    "servingEngineSpec.modelSpec.repository": str,
    "servingEngineSpec.modelSpec.tag": str,
    "servingEngineSpec.modelSpec.modelURL": str,
    "servingEngineSpec.modelSpec.replicaCount": int,
    "servingEngineSpec.modelSpec.requestCPU": int,
    "servingEngineSpec.modelSpec.requestMemory": str,
    "servingEngineSpec.modelSpec.requestGPU": int,
    "servingEngineSpec.modelSpec.shmSize": str,
    "servingEngineSpec.modelSpec.vllmConfig.enablePrefixCaching": bool,
    "servingEngineSpec.modelSpec.vllmConfig.extraArgs": str,
    "routerSpec.routingLogic": str,
    "routerSpec.extraArgs": str,
    "routerSpec.resources.requests.cpu": str,
    "routerSpec.resources.requests.memory": str,
    "routerSpec.resources.limits.memory": str,
}
ROUTING = {"roundrobin", "session", "prefixaware", "kvaware", "disaggregated_prefill"}


def leaves(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        for name, below in value.items():
            yield from leaves(below, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        for below in value:
            yield from leaves(below, path)
    else:
        yield path, value


def test_production_stacks_values_are_keys_of_its_chart() -> None:
    (values,) = documents(VALUES)
    found = list(leaves(values))
    assert {path for path, _ in found} == CHART.keys()
    assert [(path, value) for path, value in found if type(value) is not CHART[path]] == []
    assert values["routerSpec"]["routingLogic"] in ROUTING


# ---- the images


def instructions(name: str) -> list[str]:
    text = re.sub(r"\\\n\s*", "", DOCKERFILE)
    return [line.removeprefix(f"{name} ") for line in text.splitlines() if line.startswith(f"{name} ")]


def is_sent(path: str) -> bool:
    """Whether a path is in the context of a build, by .dockerignore: the last line that fits decides."""
    sent = True
    for line in (REPOSITORY / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!").removeprefix("**/")
        if line.startswith("#") or not line:
            continue
        parts = path.split("/")
        above = ["/".join(parts[: count + 1]) for count in range(len(parts))]
        if any(fnmatch.fnmatchcase(each, pattern) for each in (parts if line.startswith("**/") else above)):
            sent = line.startswith("!")
    return sent


def test_what_the_images_copy_is_there_and_is_sent() -> None:
    copied = [word for line in instructions("COPY") if "--from" not in line for word in line.split()[:-1]]
    assert [path for path in copied if not (REPOSITORY / path).exists() or not is_sent(path)] == []
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    needed = {*project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"], "README.md", "LICENSE"}
    assert needed <= set(copied)


@pytest.mark.slow
def test_nothing_else_is_sent_to_a_build() -> None:
    done = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    sent = [name for name in done.stdout.splitlines() if is_sent(name)]
    assert {name.split("/")[0] for name in sent} == {
        "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "deploy",
        "shared_engine", "langchain_vllm_local", "llama_index_vllm_local",
    }  # fmt: skip
    assert sum((REPOSITORY / name).stat().st_size for name in sent) < 5 << 20
    assert not any(map(is_sent, (".git/config", ".env", "deploy/.env", "shared_engine/__pycache__/a.pyc")))


def test_the_images_run_as_a_user_by_number_and_stop_as_the_app_does() -> None:
    assert instructions("USER")[-1] == instructions("USER")[0] == "1000:0"
    assert instructions("ENTRYPOINT") == ['["tini", "--"]']
    app, gateway = map(json.loads, instructions("CMD"))  # a list: not by way of a shell, which passes no signals on
    assert app == ["python", "/opt/app/app.py"]
    assert gateway[:2] == ["vllm-local", "serve"]
    assert gateway[-2:] == ["--drain", str(FINISH_S)]


def test_the_images_python_is_one_that_is_claimed() -> None:
    (version,) = re.findall(r"^ARG PYTHON=(.*)$", DOCKERFILE, re.MULTILINE)
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert f"Programming Language :: Python :: {version}" in project["classifiers"]


def test_the_engine_is_where_its_variable_says() -> None:
    (install,) = [line for line in instructions("RUN") if "vllm-local install" in line]
    path = install.split("--path ")[1]
    assert f"VLLM_PYTHON={path}/bin/python" in " ".join(instructions("ENV")).split()


def test_images_are_named_plainly_and_vllm_in_the_version_that_is_tested() -> None:
    named = [service["image"] for service in SERVERS.values()]
    named += [container["image"] for _, container, _ in containers()]
    model = documents(VALUES)[0]["servingEngineSpec"]["modelSpec"][0]
    named.append(f"{model['repository']}:{model['tag']}")
    bases = [line.split()[0] for line in instructions("FROM")]
    assert {*named} == {f"vllm/vllm-openai:v{INSTALLED}", "vllm-app:engine", "vllm-app:slim"}
    assert {*bases} == {"python:${PYTHON}-slim", "slim", "engine"}


# ---- variables and secrets


KNOWN = {*ENVIRONMENT.values(), ROOT_VARIABLE, LEVEL_VARIABLE, FORMAT_VARIABLE}
OF_THE_APP = set(re.findall(r'"(APP_\w+)"', APP))


def apps() -> Iterator[tuple[str, dict[str, str]]]:
    """The environment of each app, by the file that describes it."""
    yield (
        "compose",
        {
            name: re.sub(r"\$\{\w+:-(.*)\}", r"\1", text_of(value))
            for name, value in COMPOSE["services"]["app"]["environment"].items()
        },
    )
    for name, container, _ in containers():
        if is_ours(container):
            yield name, variables(container)


@pytest.mark.parametrize(("environment"), [pytest.param(each, id=name) for name, each in apps()])
def test_every_variable_of_an_app_exists_and_its_value_is_accepted(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set(environment) <= KNOWN | OF_THE_APP
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings = EngineSettings()
    assert settings.is_remote is ("VLLM_API_URL" in environment)
    assert "APP_KEY" in environment


def test_the_images_variables_exist() -> None:
    of_others = {"PATH", "HOME", "PYTHONUNBUFFERED", "NVIDIA_DRIVER_CAPABILITIES"}
    names = {word.partition("=")[0] for line in instructions("ENV") for word in line.split()}
    assert names <= KNOWN | OF_THE_APP | of_others


def test_compose_takes_every_key_from_its_env_file_and_refuses_to_start_without() -> None:
    for name, service in COMPOSE["services"].items():
        for variable, value in service["environment"].items():
            if "KEY" in variable:
                assert re.fullmatch(rf"\$\{{{variable}:\?.+\}}", value), (name, variable)
    asked_for = set(re.findall(r"\$\{(\w+)", (DEPLOY / "compose.yaml").read_text()))
    offered = dict(re.findall(r"^(?:# )?(\w+)=(.*)$", (DEPLOY / "env.example").read_text(), re.MULTILINE))
    assert asked_for == set(offered)
    assert offered["APP_KEY"] == offered["VLLM_API_KEY"] == ""
    assert ".env" in (REPOSITORY / ".gitignore").read_text().splitlines(), "keys are not committed"


def test_kubernetes_takes_every_key_from_a_secret_that_its_file_says_how_to_make() -> None:
    for path in MANIFESTS:
        made = {
            (words[4], key.partition("=")[2].partition("=")[0])
            for line in re.sub(r" \\\n# +", " ", path.read_text()).splitlines()
            if line.startswith("#   kubectl create secret generic") and (words := shlex.split(line, comments=False)[1:])
            for key in words[5:]
        }
        assert made, path
        assert all(document["kind"] != "Secret" for document in documents(path))
        for name, container, _ in containers():
            for each in container["env"] if name.startswith(f"{path.stem}/") else ():
                reference = each.get("valueFrom", {}).get("secretKeyRef")
                assert ("KEY" in each["name"]) is (reference is not None), each
                assert reference is None or (reference["name"], reference["key"]) in made, each


def test_whoever_sends_a_key_and_whoever_asks_for_it_have_the_same() -> None:
    references = [
        each["valueFrom"]["secretKeyRef"]
        for name, container, _ in containers()
        for each in container["env"]
        if name.startswith("fleet/") and each["name"] == "VLLM_API_KEY"
    ]
    assert len(references) == 2
    assert references[0] == references[1]
    composed = [service["environment"]["VLLM_API_KEY"] for service in COMPOSE["services"].values()]
    assert len(set(composed)) == 1


# ---- compose


def test_compose_publishes_the_app_on_this_machine_only_and_no_server() -> None:
    assert COMPOSE["services"]["app"]["ports"] == ["127.0.0.1:8080:8080"]
    assert [name for name, server in SERVERS.items() if "ports" in server] == []


def test_the_fleets_servers_are_services_with_a_gpu_each() -> None:
    (listed,) = re.findall(r"^# VLLM_API_URL=(.*)$", (DEPLOY / "env.example").read_text(), re.MULTILINE)
    fleet = EngineSettings(base_url=listed.split(","))
    assert [urlsplit(str(url)).hostname for url in fleet.base_url or ()] == list(SERVERS)
    assert all(
        server["expose"] == [str(urlsplit(url).port)]
        for server, url in zip(SERVERS.values(), listed.split(","), strict=True)
    )
    devices = [server["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"] for server in SERVERS.values()]
    assert devices == [[str(number)] for number in range(len(SERVERS))]
    assert [name for name, server in SERVERS.items() if "profiles" not in server] == ["server-1"]
    assert list(COMPOSE["services"]["app"]["depends_on"]) == ["server-1"], "the others are there with the profile only"


def test_compose_lets_everybody_finish() -> None:
    for name, service in COMPOSE["services"].items():
        assert seconds(service["stop_grace_period"]) > FINISH_S, name


@pytest.mark.slow
def test_the_gateways_container_is_one_that_its_image_and_its_file_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    from shared_engine.gateway.config import read_config  # which needs yaml
    from shared_engine.gateway.listening import Listening

    (compose,) = documents(DEPLOY / "gateway" / "compose.yaml")
    (service,) = compose["services"].values()
    assert service["build"]["target"] == "gateway"
    assert f"FROM engine AS {service['build']['target']}\n" in DOCKERFILE
    _, command = map(json.loads, instructions("CMD"))
    file = command[command.index("--config") + 1]
    assert f"./models.yaml:{file}:ro" in service["volumes"]
    assert service["ports"] == [f"127.0.0.1:{port}:{port}" for port in instructions("EXPOSE")[-1:]]
    assert service["cap_drop"] == ["ALL"]
    assert service["read_only"] is True
    assert int(service["shm_size"].removesuffix("gb")) << 30 >= MIN_SHM_BYTES
    assert seconds(service["stop_grace_period"]) > FINISH_S
    (variable,) = service["environment"]
    monkeypatch.setenv(variable, "a-key-for-this-test")
    config = read_config(DEPLOY / "gateway" / "models.yaml")
    assert [key.secret for key in config.keys] == ["a-key-for-this-test"]
    Listening(host=command[command.index("--host") + 1]).check(config)  # who has no key is refused
    monkeypatch.delenv(variable)
    with pytest.raises(SettingsError, match=variable):
        read_config(DEPLOY / "gateway" / "models.yaml")


# ---- Kubernetes


@each_container
def test_a_container_may_do_no_more_than_it_needs(container: dict[str, Any], pod: dict[str, Any]) -> None:
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


@each_container
def test_a_services_variables_are_not_taken_for_vllms_own(container: dict[str, Any], pod: dict[str, Any]) -> None:
    assert pod["enableServiceLinks"] is False


@each_container
def test_what_is_written_to_is_mounted(container: dict[str, Any], pod: dict[str, Any]) -> None:
    mounts = {each["mountPath"]: each["name"] for each in container["volumeMounts"]}
    volumes = {each["name"]: each for each in pod["volumes"]}
    assert sorted(mounts.values()) == sorted(volumes)
    home = variables(container).get("HOME", "/home/app")
    assert {"/tmp", home} <= mounts.keys()
    if "nvidia.com/gpu" in container["resources"]["limits"]:
        shared = volumes[mounts["/dev/shm"]]["emptyDir"]
        assert shared["medium"] == "Memory"
        assert int(shared["sizeLimit"].removesuffix("Gi")) << 30 >= MIN_SHM_BYTES


@each_container
def test_probes_ask_for_routes_that_there_are(container: dict[str, Any], pod: dict[str, Any]) -> None:
    routes = set(re.findall(r'web\.get\("(/\w+)"', APP)) if is_ours(container) else {"/health"}
    ports = {each["name"] for each in container["ports"]}
    probes = {
        name: container[name]["httpGet"]
        for name in ("startupProbe", "readinessProbe", "livenessProbe")
        if name in container
    }
    assert {"readinessProbe", "livenessProbe"} <= probes.keys()
    assert all(each["path"] in routes and each["port"] in ports for each in probes.values())
    assert "engine" not in probes["livenessProbe"]["path"]
    if is_ours(container):
        assert probes["livenessProbe"]["path"] == "/healthz", (
            "an engine that is gone comes back: no reason to end the app"
        )


@each_container
def test_a_pod_is_given_the_time_that_it_takes_to_finish(container: dict[str, Any], pod: dict[str, Any]) -> None:
    pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] > pause + FINISH_S


def test_the_app_and_vllm_end_when_they_are_expected_to() -> None:
    assert re.findall(r"^FINISH_S = (\d+)", APP, re.MULTILINE) == [str(FINISH_S)]
    flags = [*COMPOSE["x-server"]["command"], *servers_container()["args"]]
    flags += documents(VALUES)[0]["servingEngineSpec"]["modelSpec"][0]["vllmConfig"]["extraArgs"]
    assert [flag for flag in flags if "shutdown" in flag] == [f"--shutdown-timeout={FINISH_S}"] * 3


def servers_container() -> dict[str, Any]:
    (found,) = [container for _, container, _ in containers() if not is_ours(container)]
    return found


@each_manifest
def test_services_lead_to_pods_and_selectors_to_their_labels(path: Path) -> None:
    found = documents(path)
    labels = [each["spec"]["template"]["metadata"]["labels"] for each in found if each["kind"] in PODS_OF]
    for document in found:
        spec = document["spec"]
        if document["kind"] in PODS_OF:
            assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]
        elif document["kind"] == "Service":
            assert spec["selector"] in labels
            assert spec.get("type", "ClusterIP") == "ClusterIP", "reachable in the cluster only"
        elif document["kind"] == "NetworkPolicy":
            assert spec["podSelector"]["matchLabels"] in labels
    claimed = {
        volume["persistentVolumeClaim"]["claimName"]
        for name, pod in pods()
        for volume in pod["volumes"]
        if name.startswith(f"{path.stem}/") and "persistentVolumeClaim" in volume
    }
    assert claimed == {each["metadata"]["name"] for each in found if each["kind"] == "PersistentVolumeClaim"}


@pytest.mark.slow
def test_the_fleets_name_is_a_headless_service() -> None:
    (url,) = [variables(container)["VLLM_API_URL"] for name, container, _ in containers() if name == "fleet/vllm-app"]
    parts = urlsplit(url)
    services = {
        each["metadata"]["name"]: each["spec"]
        for each in documents(DEPLOY / "kubernetes" / "fleet.yaml")
        if each["kind"] == "Service"
    }
    service = services[str(parts.hostname)]
    assert parts.scheme == "dns+http"
    assert service["clusterIP"] == "None"
    # A headless service translates no ports: the app connects to the pods themselves.
    (port,) = [each["containerPort"] for each in servers_container()["ports"]]
    assert parts.port == port == service["ports"][0]["port"]


def test_a_drained_server_gets_nothing_before_it_stops() -> None:
    """A name is looked up every ``look_s``, and CoreDNS keeps an answer for 30 s unless told otherwise."""
    from shared_engine.request.fleet_sources import DnsSource

    assert servers_container()["lifecycle"]["preStop"]["sleep"]["seconds"] >= DnsSource.look_s + 30


def test_one_gpu_is_never_asked_for_twice() -> None:
    (deployment,) = [each for each in documents(DEPLOY / "kubernetes" / "one-gpu.yaml") if each["kind"] == "Deployment"]
    assert deployment["spec"]["replicas"] == 1
    assert deployment["spec"]["strategy"]["type"] == "Recreate"
