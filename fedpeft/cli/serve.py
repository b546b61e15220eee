"""`fedpeft serve`: answer over HTTP with deployed adapters."""

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from fedpeft.cli.adapter_files import AuthorityOption, KeyOption
from fedpeft.cli.remote_options import IdentityOption, ServerOption
from fedpeft.errors import InputError


def serve(
    model: Annotated[
        str,
        typer.Option(
            "--model",
            metavar="NAME",
            help="The base model on this machine: a folder, package:NAME or a hub id. Its digest "
            "must be that in the adapters' manifests.",
        ),
    ],
    alias: Annotated[
        list[str] | None,
        typer.Option("--alias", metavar="NAME", help="Follow an alias of the server. Repeatable."),
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            "--adapter", metavar="DIGEST", help="Serve one version of the server. Repeatable."
        ),
    ] = None,
    folder: Annotated[
        list[str] | None,
        typer.Option(
            "--folder",
            metavar="[NAME=]FOLDER",
            help="Serve what `fedpeft adapter export` wrote, without a server: that it is "
            "withdrawn will not be heard of. Repeatable.",
        ),
    ] = None,
    server: ServerOption = None,
    identity: IdentityOption = None,
    authority: AuthorityOption = None,
    key: KeyOption = None,
    revision: Annotated[str | None, typer.Option(help="Of a hub id.")] = None,
    task: Annotated[
        Literal["causal-lm", "classification"] | None,
        typer.Option(help="Default: that of the first version.", show_default=False),
    ] = None,
    precision: Annotated[
        Literal["float32", "bfloat16", "int8", "int4"],
        typer.Option(help="Of the base model's weights; int8 and int4 are rounded, not packed."),
    ] = "float32",
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to run.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="Default: all.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8080,
    tls_certificate: Annotated[
        Path | None, typer.Option("--tls-certificate", help="PEM. Default: plain HTTP.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option("--tls-key", help="Of the certificate.")] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option("--api-key-file", help="Callers must send the key that is in this file."),
    ] = None,
    max_rows: Annotated[int, typer.Option(min=1, help="Requests answered at once.")] = 32,
    max_waiting: Annotated[int, typer.Option(min=1, help="Requests that may wait.")] = 1024,
    max_length: Annotated[
        int, typer.Option(min=2, help="Tokens of a prompt and its answer.")
    ] = 2048,
    chat_format: Annotated[
        Literal["auto", "template", "question-answer"],
        typer.Option(
            "--chat-format",
            help="How chats become prompts: the tokenizer's template, or 'Question: … Answer:' as "
            "in training on questions and answers. auto: the template where there is one.",
        ),
    ] = "auto",
    poll: Annotated[
        float, typer.Option(min=0.05, help="Seconds between two questions to the server.")
    ] = 1.0,
    as_line: Annotated[
        bool, typer.Option("--json", help="Say where it listens as one line of JSON.")
    ] = False,
    ready_file: Annotated[
        Path | None, typer.Option("--ready-file", help="Written with that line once it listens.")
    ] = None,
) -> None:
    """Answer completions, chats or classifications, in OpenAI's format, with many adapters at once.

    The model named in a request is an alias or a version's digest. When an alias moves, its new
    version is loaded, checked and swapped in while requests are answered.
    """
    import logging
    import signal
    import threading

    from fedpeft.cli.adapter_files import trust as trust_of
    from fedpeft.files import write_text
    from fedpeft.identity.credentials import Credentials
    from fedpeft.registry.trust import RegistryTrust
    from fedpeft.serving.config import AppConfig, ServeConfig

    if (alias or adapter) and (server is None or identity is None):
        raise InputError("aliases and versions are a server's: name --server and --identity")
    config = ServeConfig(
        model=model,
        revision=revision,
        task=task,
        precision=precision,
        device=device,
        aliases=tuple(alias or ()),
        adapters=tuple(adapter or ()),
        folders=tuple(_named(text) for text in folder or ()),
        longest=max_length,
        max_rows=max_rows,
        max_waiting=max_waiting,
        num_threads=threads,
        poll_s=poll,
        host=host,
        port=port,
        certificate=tls_certificate,
        key=tls_key,
        app=AppConfig(
            api_key=None if api_key_file is None else _secret(api_key_file),
            chat_format=chat_format,
        ),
    )
    if authority is None and key is None and identity is not None:
        trust = RegistryTrust.of_authority(Credentials.in_folder(identity).authority)
    else:
        trust = trust_of(authority, key)
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(name)s: %(message)s"
    )
    logging.getLogger("fedpeft.serving").setLevel(logging.INFO)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())

    def announce(bound: int) -> None:
        scheme = "http" if tls_certificate is None else "https"
        url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{bound}"
        line = json.dumps({"url": url, "port": bound})
        typer.echo(line if as_line else f"serving at {url}/v1")
        if ready_file is not None:
            write_text(ready_file, line + "\n")

    from fedpeft.serving.main import serve as run

    connection = None
    if alias or adapter:
        from fedpeft.cli.remote_options import connect

        connection = connect(server, identity, patience_s=3.0)
    try:
        run(config, connection, trust, announce=announce, stop=stop)
    finally:
        if connection is not None:
            connection.close()
        if ready_file is not None:
            ready_file.unlink(missing_ok=True)


def _named(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    return (name, Path(path)) if equals else (Path(text).resolve().name, Path(text))


def _secret(path: Path) -> str:
    try:
        found = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error})") from error
    if not found:
        raise InputError(f"{path} is empty; put a key into it")
    return found
