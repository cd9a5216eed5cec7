"""`sprat render …`: a cluster YAML as a Serve config, a RayService or a launcher's cluster."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import click

from cluster.config import ClusterConfig, load_config
from deployments.render import kuberay as kuberay_file
from deployments.render import launcher as launcher_file
from deployments.render import serve as serve_file
from deployments.render.kuberay import KubeRayOptions
from deployments.render.launcher import LauncherOptions
from deployments.render.machines import Machine, Provider, parse_machine
from deployments.render.text import as_text

Command = Callable[..., None]


def _of_every_verb(command: Command) -> Command:
    for decorate in (
        click.option("--json", "as_json", is_flag=True, help="One JSON object: the documents of the file."),
        click.option(
            "-o", "--output", type=click.Path(path_type=Path), help="A file instead of standard output."
        ),
        click.argument("config", type=click.Path(path_type=Path)),
    ):
        command = decorate(command)
    return command


def _of_images(command: Command) -> Command:
    for decorate in (
        click.option(
            "--gpu-image", default="sprat:cuda", show_default=True, help="Image of nodes with cards."
        ),
        click.option("--image", default="sprat:cpu", show_default=True, help="Image of all other nodes."),
    ):
        command = decorate(command)
    return command


@click.group()
def render() -> None:
    """Write what others deploy from. Nothing is started, and no secret is written."""


@render.command()
@_of_every_verb
def serve(config: Path, *, output: Path | None, as_json: bool) -> None:
    """Ray Serve config, for `serve deploy`."""
    loaded = load_config(config, os.environ)
    header = serve_file.HEADER.format(name=loaded.name)
    _write(header, [serve_file.serve_config(loaded)], output, as_json=as_json)


@render.command()
@_of_every_verb
@_of_images
@click.option(
    "--secret", default="sprat", show_default=True, help="Kubernetes secret with the four variables."
)
def kuberay(
    config: Path, *, output: Path | None, as_json: bool, image: str, gpu_image: str, secret: str
) -> None:
    """RayService of KubeRay, and the Service of its gateways."""
    loaded = load_config(config, os.environ)
    documents = kuberay_file.ray_service(loaded, KubeRayOptions(image, gpu_image, secret))
    header = kuberay_file.header(loaded, KubeRayOptions(image, gpu_image, secret))
    _write(header, documents, output, as_json=as_json)


@render.command()
@_of_every_verb
@_of_images
@click.option("--provider", type=click.Choice(get_args(Provider)), default="aws", show_default=True)
@click.option("--region", default="", help="Default: us-west-2 on AWS, us-west1 on Google Cloud.")
@click.option("--zone", default="", help="Availability zone; several with commas on AWS.")
@click.option("--project", default="", help="Project of Google Cloud.")
@click.option(
    "--machine",
    "machines",
    multiple=True,
    metavar="CLASS=TYPE:CPUS:GPUS:MEMORY_GIB",
    help="Instance type of a node class, where the one for its accelerator is not wanted.",
)
def launcher(
    config: Path,
    *,
    output: Path | None,
    as_json: bool,
    image: str,
    gpu_image: str,
    provider: Provider,
    region: str,
    zone: str,
    project: str,
    machines: tuple[str, ...],
) -> None:
    """Cluster of Ray's launcher, for `ray up`."""
    loaded = load_config(config, os.environ)
    options = LauncherOptions(provider, region, zone, project, image, gpu_image, _machines(loaded, machines))
    header = launcher_file.HEADER.format(
        name=loaded.name, image=image, gpu_image=gpu_image, port=loaded.gateway.port
    )
    _write(header, [launcher_file.launcher_cluster(loaded, options)], output, as_json=as_json)


def _machines(config: ClusterConfig, texts: tuple[str, ...]) -> dict[str, Machine]:
    try:
        machines = dict(map(parse_machine, texts))
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    for node_class in machines:
        if node_class not in config.node_classes:
            raise click.UsageError(
                f"there is no node class {node_class!r}; there are {', '.join(config.node_classes)}"
            )
    return machines


def _write(header: str, documents: list[dict[str, Any]], output: Path | None, *, as_json: bool) -> None:
    text = json.dumps({"documents": documents}) + "\n" if as_json else as_text(header, documents)
    if output is None:
        click.echo(text, nl=False)
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise click.UsageError(f"{output} cannot be written: {error.strerror}") from error
