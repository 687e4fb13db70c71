"""The scripts for kind and for images, with programs that stand in for `kind` and `docker` and record their calls.

Each expected call is one of the documentation: kind's quick start, configuration and local registry, its known issue on
Docker's containerd image store (kubernetes-sigs/kind#3795), `docker build`, `docker save --platform`.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import clusters
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
KIND = ROOT / "hack" / "kind"
NODES = dict(line.split() for line in (KIND / "nodes.txt").read_text().splitlines() if not line.startswith("#"))
NEWEST, OLDEST = next(iter(NODES)), list(NODES)[-1]
VERSION = re.findall(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[0]
IMAGES = [f"ghcr.io/swarmgame/{name}:{VERSION}" for name in ("operator", "worker", "chain")]
DIGEST = "sha256:" + "0f" * 32

DOCKER = r"""
printf 'docker %s\n' "$*" >> "$LOG"
case "$*" in
  --version) echo "Docker version ${DOCKER_MAJOR:-29}.1.3, build abc" ;;
  "buildx version") [ "${BUILDX:-yes}" = yes ] ;;
  "info --format {{.CgroupVersion}}") echo "${CGROUP:-2}" ;;
  info) [ "${DAEMON:-yes}" = yes ] ;;
  "version --format {{.Server.Os}}/{{.Server.Arch}}") echo "linux/${ARCH:-amd64}" ;;
  "save --help") [ "${DOCKER_MAJOR:-29}" -lt 28 ] || echo "      --platform strings" ;;
  "image inspect --format {{.Id}} "*) echo "sha256:id-of-$5" ;;
  "image inspect --format {{range .RepoDigests}}"*) echo "ghcr.io/other@sha256:aa"; echo "${5%:*}@$DIGEST" ;;
  "inspect --format {{.Config.Image}} "*) cat "$STATE/image" ;;
  "exec "*" getent ahostsv4 host.docker.internal") [ -z "${DESKTOP:-}" ] || echo "$DESKTOP STREAM" ;;
  "exec "*" ip -4 route show default") echo "default via 172.18.0.1 dev eth0" ;;
  "exec --interactive "*" cmp "*) [ -e "$STATE/trusted" ] ;;
  "exec "*" update-ca-certificates") [ -z "${BROKEN:-}" ] ;;
  "exec "*" cp "*"/host.crt "*) : > "$STATE/trusted" ;;
  "exec --interactive "*) mkdir -p "$STATE/$3"; cat > "$STATE/$3/$(basename "$6")" ;;
  "exec "*" cat "*) cat "$STATE/$2/$(basename "$4")" ;;
  "buildx build "*)
    while [ "$1" != --metadata-file ]; do shift; done
    printf '{\n"containerimage.digest": "%s"\n}' "$DIGEST" > "$2"
    ;;
esac
"""
KIND_PROGRAM = r"""
printf 'kind %s\n' "$*" >> "$LOG"
case "$*" in
  version) echo "kind ${KIND_VERSION:-v0.33.0} go1.26.0 linux/amd64" ;;
  "get clusters") cat "$STATE/clusters" 2> /dev/null || echo "No kind clusters found." >&2 ;;
  "get nodes --name "*) echo "$4-control-plane" ;;
  "create cluster --name "*) echo "$4" >> "$STATE/clusters"; echo "$6" > "$STATE/image"; echo "Creating cluster ..." ;;
  "delete cluster --name "*) rm -f "$STATE/clusters" ;;
  "load image-archive "*) [ -e "${!#}" ] ;;
esac
"""


@dataclass(frozen=True)
class Host:
    """A host with recording programs, and the calls that they have recorded."""

    folder: Path

    def run(self, *command: str | Path, check: bool = True, **variables: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [str(part) for part in command],
            cwd=ROOT,
            env=self.variables | variables,
            capture_output=True,
            text=True,
            check=False,
        )
        assert not check or done.returncode == 0, done.stderr
        return done

    def calls(self, start: str) -> list[str]:
        """Return the recorded calls that begin with some words."""
        log = self.folder / "log"
        return [line for line in log.read_text().splitlines() if line.startswith(start)] if log.exists() else []

    def forget(self) -> None:
        (self.folder / "log").unlink(missing_ok=True)

    @property
    def variables(self) -> dict[str, str]:
        return {
            "PATH": str(self.folder / "bin"),
            "HOME": str(self.folder),
            "TMPDIR": str(self.folder),
            "LOG": str(self.folder / "log"),
            "STATE": str(self.folder / "state"),
            "DIGEST": DIGEST,
        }

    @property
    def kubeconfig(self) -> Path:
        return self.folder / ".cache/swarmgame/kind/swarmgame.kubeconfig"


@pytest.fixture
def host(tmp_path: Path) -> Host:
    for name in ("bin", "state"):
        (tmp_path / name).mkdir()
    tools = "bash env sh cat sed grep tr mkdir rm mv mktemp dirname basename make uname"
    for name in tools.split():
        found = shutil.which(name)
        assert found, name
        (tmp_path / "bin" / name).symlink_to(found)
    for name, body in (("docker", DOCKER), ("kind", KIND_PROGRAM)):
        program(tmp_path / "bin" / name, body)
    return Host(tmp_path)


def program(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(0o755)


def lines_of(builds: list[str]) -> list[str]:
    return [re.sub(r".*docker/(\w+)\.Dockerfile.*", r"\1", line) for line in builds]


def test_make_makes_a_cluster_with_the_pinned_node_image_and_prints_only_the_kubeconfig(host: Host) -> None:
    done = host.run("bash", "-c", 'KUBECONFIG=$(make -s kind-up) && printf %s "$KUBECONFIG"')
    assert done.stdout == str(host.kubeconfig)
    assert "Creating cluster" in done.stderr
    image = f"kindest/node:{NEWEST}@{NODES[NEWEST]}"
    config = KIND / "cluster.yaml"
    where = f"--config {config} --kubeconfig {host.kubeconfig} --wait 180s"
    assert host.calls("kind create") == [f"kind create cluster --name swarmgame --image {image} {where}"]


def test_the_readmes_commands_make_a_cluster_load_the_images_and_install_into_it(host: Host) -> None:
    for name in ("helm", "kubectl"):
        program(host.folder / "bin" / name, f'printf "{name} %s in %s\\n" "$*" "$KUBECONFIG" >> "$LOG"')
    section = (ROOT / "README.md").read_text().split("## On Kubernetes\n")[1].split("\n## ")[0]
    (commands,) = re.findall(r"^```sh\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    host.run("bash", "-euo", "pipefail", "-c", commands)
    assert len(host.calls("kind create")) == 1
    assert len(host.calls("kind load")) == 3
    assert len(host.calls("helm install")) == 2
    used = [line.rpartition(" in ")[2] for line in (*host.calls("helm"), *host.calls("kubectl"))]
    assert used == [str(host.kubeconfig)] * 4


@pytest.mark.parametrize("chosen", [OLDEST.removeprefix("v"), OLDEST.removeprefix("v").rpartition(".")[0]])
def test_another_version_of_kubernetes_is_chosen_by_its_number(host: Host, chosen: str) -> None:
    host.run("make", "kind-up", f"KUBERNETES={chosen}", KIND_NODE_REPOSITORY="mirror.example.com/node")
    (call,) = host.calls("kind create")
    assert f"--image mirror.example.com/node:{OLDEST}@{NODES[OLDEST]} " in call


def test_a_version_without_a_node_image_is_refused_with_those_that_have_one(host: Host) -> None:
    done = host.run(KIND / "up.sh", check=False, KUBERNETES="1.3")
    assert done.returncode == 1
    assert f"has no node image of Kubernetes 1.3; it has {NEWEST.removeprefix('v')}" in done.stderr
    assert host.calls("kind create") == []


def test_a_cluster_that_exists_is_kept_and_its_kubeconfig_is_written_again(host: Host) -> None:
    host.run(KIND / "up.sh", KUBERNETES="1.36")
    host.forget()
    assert host.run(KIND / "up.sh").stdout == f"{host.kubeconfig}\n"
    assert host.calls("kind create") == []
    assert host.calls("kind export") == [f"kind export kubeconfig --name swarmgame --kubeconfig {host.kubeconfig}"]
    refused = host.run(KIND / "up.sh", check=False, KUBERNETES="1.34")
    assert refused.returncode == 1
    assert f"the cluster swarmgame runs kindest/node:v1.36.4@{NODES['v1.36.4']}, not kindest/node" in refused.stderr


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"DAEMON": "no"}, "no Docker daemon answers"),
        ({"CGROUP": "1"}, "does not run on cgroup v1, which Docker has here: make kind-up KUBERNETES=1.34"),
    ],
)
def test_a_host_that_cannot_run_the_cluster_is_told_why(host: Host, variables: Mapping[str, str], reason: str) -> None:
    done = host.run(KIND / "up.sh", check=False, **variables)
    assert done.returncode == 1
    assert reason in done.stderr
    assert host.calls("kind create") == []


def test_without_kind_and_go_the_release_to_install_is_named(host: Host) -> None:
    (host.folder / "bin" / "kind").unlink()
    done = host.run(KIND / "up.sh", check=False)
    assert done.returncode == 1
    assert "there is no kind: install v0.33.0" in done.stderr


def test_another_release_of_kind_is_noted(host: Host) -> None:
    assert (
        "note: this is kind v0.32.0; the node images are of v0.33.0"
        in host.run(KIND / "up.sh", KIND_VERSION="v0.32.0").stderr
    )
    assert "note:" not in host.run(KIND / "up.sh", KIND_CLUSTER_NAME="another").stderr


def test_certificates_and_a_mirror_of_the_host_reach_the_node(host: Host) -> None:
    authority = host.folder / "ca.pem"
    authority.write_text("certificate")
    host.run(KIND / "up.sh", SSL_CERT_FILE=str(authority), REGISTRY_MIRROR="https://mirror.example.com")
    node = "swarmgame-control-plane"
    assert host.calls("docker cp") == [f"docker cp {authority} {node}:/usr/local/share/ca-certificates/host.crt"]
    folder = "/etc/containerd/certs.d/docker.io"
    trusted = "/etc/swarmgame-host.crt"
    assert host.calls("docker exec") == [
        f"docker exec --interactive {node} cmp --silent - {trusted}",
        f"docker exec {node} update-ca-certificates",
        f"docker exec {node} systemctl restart containerd",
        f"docker exec {node} cp /usr/local/share/ca-certificates/host.crt {trusted}",
        f"docker exec {node} mkdir -p {folder}",
        f"docker exec --interactive {node} cp /dev/stdin {folder}/hosts.toml",
    ]
    hosts = (host.folder / "state" / node / "hosts.toml").read_text()
    assert hosts == '[host."https://mirror.example.com"]\n  capabilities = ["pull", "resolve"]\n'


def test_certificates_reach_the_node_at_the_second_try_and_only_once(host: Host) -> None:
    authority = host.folder / "ca.pem"
    authority.write_text("certificate")
    variables = {"SSL_CERT_FILE": str(authority), "REGISTRY_MIRROR": "https://mirror.example.com"}
    broken = host.run(KIND / "up.sh", check=False, BROKEN="yes", **variables)
    assert broken.returncode != 0
    assert len(host.calls("kind create")) == 1
    for expected in (1, 0):
        host.forget()
        assert host.run(KIND / "up.sh", **variables).stdout == f"{host.kubeconfig}\n"
        calls = host.calls("docker exec")
        assert sum(line.endswith("restart containerd") for line in calls) == expected
        assert sum(line.endswith("hosts.toml") for line in calls) == 1


@pytest.mark.parametrize(("major", "architecture"), [("29", "arm64"), ("28", "amd64")])
def test_images_are_loaded_as_archives_of_the_nodes_platform_and_only_once(
    host: Host, major: str, architecture: str
) -> None:
    variables = {"DOCKER_MAJOR": major, "ARCH": architecture}
    host.run("make", "kind-up", "kind-load", **variables)
    builds = host.calls("docker build ")
    assert lines_of(builds) == ["operator", "worker", "chain"]
    saves = host.calls("docker save --platform")
    assert [line.split()[-1] for line in saves] == IMAGES
    assert {line.partition(" --output ")[0] for line in saves} == {f"docker save --platform linux/{architecture}"}
    loads = host.calls("kind load")
    assert len(loads) == 3
    for save, load in zip(saves, loads, strict=True):
        archive = save.split()[-2]
        assert load == (f"kind load image-archive --name swarmgame --nodes swarmgame-control-plane {archive}")
        assert not Path(archive).exists()
    host.forget()
    assert host.run("make", "kind-load", **variables).stderr.count("is present") == 3
    assert host.calls("kind load") == []


def test_a_docker_before_28_saves_without_a_platform(host: Host) -> None:
    host.run("make", "kind-up", "kind-load", DOCKER_MAJOR="27")
    assert host.calls("docker save --platform") == []
    assert len(host.calls("docker save --output")) == 3


def test_loading_without_a_cluster_is_refused_with_the_command_that_makes_one(host: Host) -> None:
    done = host.run(KIND / "load.sh", check=False)
    assert done.returncode == 1
    assert "there is no kind cluster swarmgame: make kind-up" in done.stderr
    assert host.calls("docker build ") == []


def test_down_removes_the_cluster_and_its_kubeconfig(host: Host) -> None:
    host.run(KIND / "up.sh")
    host.kubeconfig.touch()
    host.run("make", "kind-down")
    assert host.calls("kind delete") == [f"kind delete cluster --name swarmgame --kubeconfig {host.kubeconfig}"]
    assert not host.kubeconfig.exists()


def test_the_cluster_tests_on_kind_need_no_go_and_say_what_was_not_run(host: Host) -> None:
    planned = host.run("make", "-n", "e2e", "E2E=kind").stdout
    assert "--cluster=kind" in planned
    assert "native_cluster tools" not in planned
    assert "Not run: api (Go is missing" in planned
    program(host.folder / "bin" / "go", "exit 0")
    assert "native_cluster tools api" in host.run("make", "-n", "e2e", "E2E=kind").stdout


@pytest.mark.parametrize(("desktop", "address"), [("", "172.18.0.1"), ("192.168.65.254", "192.168.65.254")])
def test_the_tests_reach_kind_by_its_mapped_ports_and_pods_reach_this_host_as_kinds_entry_point_does(
    host: Host, monkeypatch: pytest.MonkeyPatch, desktop: str, address: str
) -> None:
    for name, value in (host.variables | {"DESKTOP": desktop}).items():
        monkeypatch.setenv(name, value)
    for name in ("XDG_CACHE_HOME", "SWARMGAME_TEST_CACHE", "KIND_CLUSTER_NAME", "KUBERNETES"):
        monkeypatch.delenv(name, raising=False)
    cluster = clusters._kind()
    assert (cluster.kubeconfig, cluster.address, cluster.host) == (host.kubeconfig, "127.0.0.1", address)
    assert list(cluster.images.values()) == IMAGES
    assert len(host.calls("kind load")) == 3


def test_a_build_gets_this_hosts_settings_as_secrets_and_proxies(host: Host) -> None:
    files = {name: host.folder / name for name in ("pip.conf", "npmrc", "ca.pem")}
    for file in files.values():
        file.touch()
    host.run(
        ROOT / "hack/images.sh",
        "build",
        "worker",
        PIP_CONFIG_FILE=str(files["pip.conf"]),
        NPM_CONFIG_USERCONFIG=str(files["npmrc"]),
        SSL_CERT_FILE=str(files["ca.pem"]),
        HTTPS_PROXY="http://proxy.example.com:3128",
        BASE_IMAGE="mirror.example.com/python:3.11",
    )
    (call,) = host.calls("docker build ")
    for part in (
        f"--secret id=pip,src={files['pip.conf']}",
        f"--secret id=npm,src={files['npmrc']}",
        f"--secret id=ca,src={files['ca.pem']}",
        "--build-arg HTTPS_PROXY=http://proxy.example.com:3128",
        "--build-arg BASE_IMAGE=mirror.example.com/python:3.11",
    ):
        assert part in call
    assert call.endswith(f" {ROOT}")


def test_the_chains_program_comes_from_npm_or_from_a_folder(host: Host) -> None:
    host.run(ROOT / "hack/images.sh", "build", "chain")
    (folder := host.folder / "anvil" / "bin").mkdir(parents=True)
    (folder / "anvil").touch()
    host.run(ROOT / "hack/images.sh", "build", "chain", ANVIL=str(folder.parent))
    from_npm, from_folder = host.calls("docker build ")
    assert "ANVIL" not in from_npm
    assert from_npm.endswith(f" {ROOT}")
    assert from_folder.endswith(f"--build-arg ANVIL=folder {folder.parent}")


def test_a_docker_without_buildkit_is_refused(host: Host) -> None:
    done = host.run(ROOT / "hack/images.sh", "build", check=False, BUILDX="no")
    assert done.returncode == 1
    assert "install the plugin docker-buildx" in done.stderr
    assert host.run(ROOT / "hack/images.sh", "build", "chain", BUILDX="no", DOCKER_MAJOR="20").returncode == 0


@pytest.mark.parametrize("platforms", ["", "linux/amd64,linux/arm64"])
def test_pushed_images_are_named_by_digest_in_values_for_helm(host: Host, platforms: str) -> None:
    copy = host.folder / "project"
    for name in ("hack/images.sh", "pyproject.toml"):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    registry = "registry.example.com/team"
    host.run(copy / "hack/images.sh", "push", f"{registry}/", **({"PLATFORMS": platforms} if platforms else {}))
    pushed = host.calls("docker buildx build") if platforms else host.calls("docker push")
    assert len(pushed) == 3
    assert all(f"{registry}/" in line for line in pushed)
    assert all(f"--platform {platforms} --push" in line for line in pushed if platforms)
    values = yaml.safe_load((copy / "images.yaml").read_text())
    assert values == {
        "image": {"repository": f"{registry}/operator", "digest": DIGEST},
        "games": {
            f"{name}Image": {"repository": f"{registry}/{name}", "digest": DIGEST} for name in ("worker", "chain")
        },
    }


def test_a_push_without_a_registry_is_refused(host: Host) -> None:
    done = host.run("make", "images-push", check=False)
    assert done.returncode != 0
    assert "push needs a registry: make images-push REGISTRY=" in done.stderr


def test_the_node_images_are_of_the_release_that_go_builds() -> None:
    (release,) = re.findall(r"kind's release (v[\d.]+),", (KIND / "nodes.txt").read_text())
    assert f"sigs.k8s.io/kind {release}" in (ROOT / "hack/native-cluster/tools/kind/go.mod").read_text()
    assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", digest) for digest in NODES.values())


def test_the_ports_of_the_cluster_tests_are_mapped_and_each_services_node_port_equals_its_host_port() -> None:
    (node,) = yaml.safe_load((KIND / "cluster.yaml").read_text())["nodes"]
    mapped = {each["containerPort"]: each["hostPort"] for each in node["extraPortMappings"]}
    assert mapped == {port: port for port in (clusters.WEB_PORT, clusters.P2P_PORT)}


def test_the_scripts_pass_shellcheck() -> None:
    scripts = [path for path in (ROOT / "hack").rglob("*.sh") if ".venv" not in path.parts]
    command = [str(Path(sys.executable).parent / "shellcheck"), "--external-sources", "--source-path=SCRIPTDIR"]
    done = subprocess.run([*command, *map(str, scripts)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
