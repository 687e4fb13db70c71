"""`python -m native_cluster tools|images|load|up|down`: the cluster's commands, which the Makefile calls."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from native_cluster import cluster, daemons, docker, network, tools


def main() -> int:
    parser = argparse.ArgumentParser(prog="native_cluster", description="A real Kubernetes cluster on this host.")
    commands = parser.add_subparsers(dest="command", required=True)
    building = commands.add_parser("tools", help="build what is missing, into the cache")
    building.add_argument("names", nargs="*", help=f"of: {' '.join(tools.TOOLS)}; or api, node, charts; default: all")
    commands.add_parser("up", help="bring the cluster up, unless it is; prints a line for the shell that leads to it")
    commands.add_parser("down", help="end it, whatever state it is in")
    building = commands.add_parser("images", help="build the project's images, without giving them to the cluster")
    building.add_argument("names", nargs="*", choices=[*docker.IMAGES, []], help="default: all")
    loading = commands.add_parser("load", help="build the project's images and give them to the cluster")
    loading.add_argument("names", nargs="*", choices=[*docker.IMAGES, []], help="default: all")
    arguments = parser.parse_args()
    try:
        if arguments.command == "tools":
            _tools(arguments.names)
        elif arguments.command == "images":
            with docker.engine() as environment:
                docker.build(arguments.names or list(docker.IMAGES), environment)
        elif arguments.command == "load":
            cluster.load(arguments.names or list(docker.IMAGES))
        elif arguments.command == "down":
            cluster.down()
        else:
            print(_environment(cluster.up()))
        return 0
    except (
        tools.NotBuilt,
        cluster.ClusterFailed,
        daemons.DaemonFailed,
        docker.ImageFailed,
        network.NetworkFailed,
    ) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _environment(kubeconfig: Path) -> str:
    """A line for the shell: this cluster, and the programs that go with it."""
    built = [name for name in ("kubectl", "helm") if not tools.missing([name])]
    folders = ":".join(dict.fromkeys(str(tools.tool(name).parent) for name in built))
    return f'export KUBECONFIG="{kubeconfig}" PATH="{folders}:$PATH"'


def _tools(names: list[str]) -> None:
    groups = {"api": tools.API_SERVER, "node": tools.NODE, "charts": tools.CHARTS}
    wanted = [each for name in names for each in groups.get(name, (name,))] or list(tools.TOOLS)
    unknown = sorted(set(wanted) - set(tools.TOOLS))
    if unknown:
        raise tools.NotBuilt(
            f"there is no tool named {', '.join(unknown)}; known are {', '.join(tools.TOOLS)}, and the groups {', '.join(groups)}"
        )
    tools.build(wanted)


if __name__ == "__main__":
    sys.exit(main())
