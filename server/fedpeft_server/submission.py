"""A run as it is submitted: checked whole before anything of it is stored."""

import json
import re
import secrets
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from fedpeft.adapters.config import AdapterConfig
from fedpeft.config import RunConfig, validate_config
from fedpeft.dp.config import PrivacyConfig
from fedpeft.errors import ConfigError
from fedpeft.models.sources import unique_keys
from fedpeft.registry.artifacts import ArtifactStore
from fedpeft.wire.catalogue import Refused
from fedpeft_server.records import AdapterRecord, RunRecord, RunStatus
from fedpeft_server.removals.family import Family
from fedpeft_server.state import NotFoundError, State

UPLOADED = "uploaded:"
"""What stands for the place of held-out rows that came with the run, before their file's name."""

_HUB_ID = re.compile(r"(\w[\w.-]*/)?\w[\w.-]*", re.ASCII)
_LARGEST_CONFIG = 2**20
_LONGEST_NAME = 200


class Submissions:
    """Takes runs in."""

    def __init__(self, state: State, artifacts: ArtifactStore, folders: tuple[Path, ...]) -> None:
        """Takes where runs are kept, and the folders that they may name files in."""
        self._state, self._artifacts = state, artifacts
        self._folders = folders

    def submit(
        self,
        config_json: str,
        *,
        held_out: bytes,
        held_out_suffix: str,
        start_from: str = "",
        idempotency_key: str,
        submitter: str,
    ) -> RunRecord:
        """Stores a run as submitted.

        Args:
            config_json: A whole `RunConfig`.
            held_out: Content of the file that data.test names on the submitter's machine; empty
                where there is none.
            held_out_suffix: Its format.
            start_from: The version that it goes on from: an alias, the beginning of a digest, or a
                run's id; empty: none.
            idempotency_key: With the same key the same submitter gets its first run.
            submitter: Who.

        Returns:
            The run; with a key that was used before, the run of then.

        Raises:
            ConfigError: If the configuration is wrong, or names a file that runs may not use.
            RemoteError: `already-exists`, if the key was used for another run; `no-such-adapter`;
                `withdrawn`.
        """
        content = _parse(config_json)
        if held_out:
            _mark_uploaded(content)
        config = validate_config(content, "the run")
        content = self._placed(config)
        start = self._start(start_from, config) if start_from else None
        digest = self._artifacts.put(held_out) if held_out else None
        run = RunRecord(
            run_id=secrets.token_hex(8),
            name=config.output.name,
            config_json=json.dumps(content, sort_keys=True),
            clients=config.federation.clients,
            status=RunStatus.SUBMITTED,
            num_rounds=config.federation.num_rounds,
            submitted_at=datetime.now(UTC),
            submitted_by=submitter,
            held_out=digest,
            held_out_suffix=held_out_suffix if digest else "",
            start_from=start,
        )
        kept = self._state.add_run(run, idempotency_key, submitter)
        asked = (run.config_json, run.held_out, run.start_from)
        if (kept.config_json, kept.held_out, kept.start_from) != asked:
            raise Refused.ALREADY_EXISTS.error("this idempotency key was used for another run")
        return kept

    def _start(self, name: str, config: RunConfig) -> str:
        """The digest of the version to go on from; whether its tensors fit is seen at the start.

        So are the base model, by its tensors, and the labels.
        """
        try:
            named = self._state.named_adapter(name)
        except NotFoundError as error:
            raise Refused.NO_SUCH_ADAPTER.error(name) from error
        if named.status == "withdrawn":
            raise Refused.WITHDRAWN.error(named.digest)
        if config.federation.clients != "remote":
            raise ConfigError("only a run of remote clients goes on from a version")
        self._check_adapter(named, config.adapter)
        if config.privacy.enabled:
            self._check_adds_up(named, config.privacy)
        return named.digest

    def _check_adapter(self, named: AdapterRecord, adapter: AdapterConfig) -> None:
        """Refuses another rank, and another scaling: the same tensors would be another function."""
        content = json.loads(self._state.run(named.run_id).config_json)
        before = AdapterConfig.model_validate(content["adapter"])
        if (before.rank, before.scaling) != (adapter.rank, adapter.scaling):
            raise ConfigError(
                f"adapter {named.digest[:12]} has rank {before.rank} and scaling alpha / rank "
                f"{before.scaling:g}, and the run rank {adapter.rank} and scaling "
                f"{adapter.scaling:g}; use those of the adapter in [adapter]"
            )

    def _check_adds_up(self, named: AdapterRecord, privacy: PrivacyConfig) -> None:
        """Refuses to add to an epsilon that is at another delta, or that others keep count of."""
        for version in Family(self._state.adapters()).line(named):
            run = self._state.run(version.run_id)
            before = PrivacyConfig(**json.loads(run.config_json).get("privacy", {}))
            if run.clients == "import" and version.epsilon:
                raise ConfigError(
                    f"adapter {version.digest[:12]} was imported, and its epsilon was charged "
                    "elsewhere: it cannot be added up here; start a new adapter"
                )
            if version.epsilon and before.enabled and before.delta != privacy.delta:
                raise ConfigError(
                    f"privacy.delta is {privacy.delta:g}, and the epsilon of adapter "
                    f"{version.digest[:12]} is at delta {before.delta:g}; use that"
                )

    def _placed(self, config: RunConfig) -> dict[str, Any]:
        """The configuration with every file of this machine in one of the folders, absolute."""
        if config.output.directory is not None:
            raise ConfigError("output.directory: the server keeps what a run makes; leave it out")
        if len(config.output.name) > _LONGEST_NAME or not config.output.name.isprintable():
            raise ConfigError(f"output.name: at most {_LONGEST_NAME} printable characters")
        # Only what was set: a default that is written out would count as set.
        content: dict[str, Any] = config.model_dump(mode="json", exclude_unset=True)
        data, model, privacy = content["data"], content["model"], content.get("privacy", {})
        for key in ("train", "test", "partition_groups"):
            if data.get(key) is not None:
                data[key] = self._data_place(f"data.{key}", data[key])
        if "client_files" in data:
            data["client_files"] = [
                self._data_place("data.client_files", name) for name in data["client_files"]
            ]
        model["name"] = self._model_place(model["name"])
        if privacy.get("ledger") is not None:
            privacy["ledger"] = str(self._inside("privacy.ledger", privacy["ledger"]))
        return content

    def _data_place(self, key: str, location: str) -> str:
        if location.startswith(("synthetic:", UPLOADED)):
            return location
        return str(self._inside(key, location, there=True))

    def _model_place(self, name: str) -> str:
        """A package or a hub id as it is; a folder only inside."""
        if name.startswith("package:"):
            return name
        # A hub id could also be a folder below the one that the server was started in.
        if _HUB_ID.fullmatch(name) is not None and not Path(name).exists():
            return name
        return str(self._inside("model.name", name, there=True))

    def _inside(self, key: str, location: str, *, there: bool = False) -> Path:
        """The place of a file below one of the folders, links followed.

        Whether there is a file outside of them is never told.
        """
        if "://" in location or "\0" in location:
            raise ConfigError(f"{key}: this server reads no addresses, only files in its folders")
        for folder in self._folders:
            root = folder.resolve()
            path = (root / location).resolve()
            if path.is_relative_to(root) and path != root and (path.exists() or not there):
                return path
        raise ConfigError(
            f"{key}: there is no {location!r} in the folders that runs of this server may use"
        )


def _parse(config_json: str) -> dict[str, Any]:
    if len(config_json) > _LARGEST_CONFIG:
        raise ConfigError(f"a configuration has at most {_LARGEST_CONFIG} characters")
    try:
        content = json.loads(config_json, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise ConfigError("the configuration is no JSON") from error
    if not isinstance(content, dict):
        raise ConfigError("the configuration must be a JSON object of sections")
    return content


def _mark_uploaded(content: dict[str, Any]) -> None:
    """Keeps no path of the submitter's machine, which others can read: only the file's name."""
    data = content.get("data")
    test = data.get("test") if isinstance(data, dict) else None
    if not isinstance(data, dict) or not isinstance(test, str):
        raise ConfigError("data.test: held-out rows came with the run, so it must name their file")
    data["test"] = UPLOADED + PureWindowsPath(PurePosixPath(test).name).name
