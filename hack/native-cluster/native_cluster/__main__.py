"""Commands of the native cluster, which the Makefile calls: `python -m native_cluster tools|images|load|up|down`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from native_cluster import cluster, daemons, docker, network, policies, tools


def main() -> int:
    parser = argparse.ArgumentParser(prog="native_cluster", description="A Kubernetes cluster on this host.")
    commands = parser.add_subparsers(dest="command", required=True)
    building = commands.add_parser("tools", help="build missing tools into the cache")
    building.add_argument("names", nargs="*", help=f"of: {' '.join(tools.TOOLS)}; or api, node, charts; default: all")
    commands.add_parser("up", help="start the cluster unless it runs; prints a line for the shell that selects it")
    commands.add_parser("down", help="stop it, whatever its state")
    building = commands.add_parser("images", help="build the project's images")
    building.add_argument("names", nargs="*", choices=[*docker.IMAGES, []], help="default: all")
    loading = commands.add_parser("load", help="build the project's images and load them into the cluster")
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
        policies.PoliciesFailed,
    ) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _environment(kubeconfig: Path) -> str:
    """Return a line for the shell that selects this cluster and its programs."""
    built = [name for name in ("kubectl", "helm") if not tools.missing([name])]
    folders = ":".join(dict.fromkeys(str(tools.tool(name).parent) for name in built))
    return f'export KUBECONFIG="{kubeconfig}" PATH="{folders}:$PATH"'


def _tools(names: list[str]) -> None:
    groups = {"api": tools.API_SERVER, "node": tools.NODE, "charts": tools.CHARTS}
    chosen = [each for name in names for each in groups.get(name, (name,))] or list(tools.TOOLS)
    unknown = sorted(set(chosen) - set(tools.TOOLS))
    if unknown:
        raise tools.NotBuilt(
            f"there is no tool named {', '.join(unknown)}; "
            f"known are {', '.join(tools.TOOLS)}, and the groups {', '.join(groups)}"
        )
    tools.build(chosen)


if __name__ == "__main__":
    sys.exit(main())
