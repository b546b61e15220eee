"""`fedpeft adapter push-vllm`: an exported version into a vLLM server."""

import json
from pathlib import Path
from typing import Annotated

import typer

from fedpeft.cli.adapter_files import AuthorityOption, KeyOption
from fedpeft.cli.adapter_files import trust as trust_of
from fedpeft.cli.remote_options import JsonOption
from fedpeft.errors import InputError


def push_vllm(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="What `fedpeft adapter export` wrote.")
    ],
    url: Annotated[str, typer.Option("--url", help="Of the vLLM server, without /v1.")],
    alias: Annotated[str, typer.Option("--alias", help="Begins the name that callers ask for.")],
    model: Annotated[
        str, typer.Option("--model", metavar="NAME", help="The base model, on this machine.")
    ],
    path: Annotated[
        str | None,
        typer.Option(help="The folder as vLLM sees it. Default: as here.", show_default=False),
    ] = None,
    in_place: Annotated[
        bool,
        typer.Option(
            "--in-place",
            help="Under the alias itself, instead of a name for each version. vLLM needs "
            "VLLM_SERVER_DEV_MODE=1, so that its prefix cache can be emptied.",
        ),
    ] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the versions before it loaded.")
    ] = False,
    tolerance: Annotated[
        float, typer.Option(min=0, help="Nats between vLLM's outputs and those computed here.")
    ] = 0.05,
    api_key: Annotated[
        str | None, typer.Option(envvar="VLLM_API_KEY", help="That vLLM asks for.")
    ] = None,
    authority: AuthorityOption = None,
    key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Swap a signed version into a vLLM server, and compare its outputs with those computed here.

    Callers ask for the name that is printed: vLLM's prefix cache goes by names, so that under one
    name the version before could still be heard.
    """
    from fedpeft.registry.fingerprint import probe_rows
    from fedpeft.serving.served import fingerprint_of_files
    from fedpeft.serving.served_model import ServedModel
    from fedpeft.serving.trusted import read_trusted
    from fedpeft.serving.vllm import VllmServer
    from fedpeft.serving.vllm_swap import swap_beside, swap_in_place

    if in_place and keep:
        raise InputError("--keep is for names of their own; in place nothing is left")
    trust = trust_of(authority, key)
    loaded = ServedModel(model, "causal-lm", device="cpu")
    files = read_trusted(folder, trust, base_digest=loaded.digest)
    expected = fingerprint_of_files(loaded, files)
    rows = probe_rows(loaded.tokenizer, causal=True)
    seen = path or str(folder.resolve())
    with VllmServer(url, api_key=api_key) as server:
        done = (
            swap_in_place(server, alias, seen, rows, expected=expected, tolerance=tolerance)
            if in_place
            else swap_beside(
                server,
                alias,
                files.digest,
                seen,
                rows,
                expected=expected,
                tolerance=tolerance,
                keep=keep,
            )
        )
    apart = done.fingerprint.distance(expected)
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "name": done.name,
                    "adapter": files.digest,
                    "unloaded": list(done.unloaded),
                    "distance": apart,
                },
                indent=2,
            )
        )
        return
    typer.echo(f"{done.name} answers with version {files.digest[:12]}, {apart:.2g} nats from here")
    for name in done.unloaded:
        typer.echo(f"{name} was unloaded")
