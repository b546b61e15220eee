"""`fedpeft adapter`: versions of an adapter, on a server and as folders."""

import typer

from fedpeft.cli import adapter_files, adapter_lineage, adapter_versions, adapter_vllm

app = typer.Typer(no_args_is_help=True, help="See, deploy, export and check adapter versions.")
app.command("list")(adapter_versions.list_)
app.command("show")(adapter_versions.show)
app.command("lineage")(adapter_lineage.lineage)
app.command("deploy")(adapter_versions.deploy)
app.command("withdraw")(adapter_versions.withdraw)
app.command("aliases")(adapter_versions.aliases)
app.command("replicas")(adapter_versions.replicas)
app.command("export")(adapter_files.export)
app.command("import")(adapter_files.import_)
app.command("verify")(adapter_files.verify)
app.command("diff")(adapter_files.diff)
app.command("push-vllm")(adapter_vllm.push_vllm)
