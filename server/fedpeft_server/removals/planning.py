"""What a removal would do, from what is recorded: pure functions, which change nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from fedpeft.errors import ConfigError
from fedpeft.settings import validate
from fedpeft.unlearning.config import UnlearningConfig
from fedpeft.unlearning.gate.config import PRECISIONS, GateConfig
from fedpeft.unlearning.plan import CLAIM_OF, Claim, Guarantee, RemovalPlan
from fedpeft.unlearning.private_config import PrivateConfig
from fedpeft.wire.catalogue import Refused
from fedpeft_server.records import (
    AdapterRecord,
    AliasRecord,
    JsonValue,
    RemovalRecord,
    RemovalState,
    RunRecord,
)
from fedpeft_server.removals.family import Family
from fedpeft_server.run_context import UNDER_WAY
from fedpeft_server.state import State

RETRAIN = "retrain"
_PRIVATE_METHOD = "loku"
_SETTINGS = ("unlearning", "gate", "private", "precisions")


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What is asked for, in the right form.

    Attributes:
        client_id: Whose data it is.
        asked_by: Name in the certificate of whoever asks.
        place: Where the job runs.
        num_records: To be forgotten.
        settings: Of the method and the gate, as they came.
        void_guarantee: The adapter's privacy guarantee may be given up.
        private_job: The job is to be private and charged to the client's ledger.
    """

    client_id: str
    asked_by: str
    place: Literal["server", "client"]
    method: str
    num_records: int
    settings: Mapping[str, JsonValue] = field(default_factory=dict)
    void_guarantee: bool = False
    private_job: bool = False


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is recorded, as far as a plan depends on it.

    Attributes:
        versions: All there are, oldest first.
        aliases: All there are.
        runs: By id.
        num_examples: Run → rows that the client said it has, where it was planned.
        removals: Of the client's data.
    """

    versions: Sequence[AdapterRecord]
    aliases: Sequence[AliasRecord]
    runs: Mapping[str, RunRecord]
    num_examples: Mapping[str, int]
    removals: Sequence[RemovalRecord] = ()


def known_of(state: State, client_id: str) -> Known:
    """Reads what a plan for a client's data depends on."""
    versions = state.adapters()
    took_part = {v.run_id for v in versions if client_id in v.participants}
    plans = {run_id: state.plan(run_id) for run_id in took_part}
    return Known(
        versions=versions,
        aliases=state.aliases(),
        runs={run.run_id: run for run in state.runs()},
        num_examples={
            run_id: participant.num_examples
            for run_id, plan in plans.items()
            for participant in (plan.participants if plan else ())
            if participant.client_id == client_id
        },
        removals=state.removals(client_id),
    )


def plan_removal(wish: Wish, named: AdapterRecord, known: Known) -> RemovalPlan:
    """Returns what the removal will do.

    Args:
        wish: What is asked for.
        named: The version that the job would start from.
        known: What is recorded.

    Raises:
        RemoteError: `withdrawn`, `never-trained`, `guarantee`, or `invalid` for what cannot be
            done: an unknown method, a setting that does not exist, no rows, all rows.
    """
    if named.status == "withdrawn":
        raise Refused.WITHDRAWN.error(named.digest)
    claim = claim_of(wish.method)
    gate = checked_settings(wish.method, wish.settings, private=wish.private_job)
    family = Family(known.versions)
    touched = family.touched(named, wish.client_id)
    _check_trained(wish, named, known, touched)
    trained = training_run(named, known)
    _check_place(wish, named, trained)
    _check_exact(wish, named, known, family, trained)
    affected = [version for version in touched if version.status == "published"]
    digests = tuple(dict.fromkeys(version.digest for version in affected))
    aliases = tuple(sorted(alias.name for alias in known.aliases if alias.digest in digests))
    clean = family.clean_ancestor(named, wish.client_id)
    guarantee = _guarantee(wish, named)
    return RemovalPlan(
        adapter=named.digest,
        affected=digests,
        aliases=aliases,
        method=wish.method,
        claim=claim,
        clean_ancestor=clean.digest if clean else None,
        guarantee=guarantee,
        notes=(
            *_notes_of_method(wish, claim, clean),
            *_notes_of_guarantee(wish, guarantee),
            *_notes_of_marks(wish, training_run(named, known)),
            *_notes_of_versions(wish, named, affected, aliases, known, family),
        ),
        gate=gate,
    )


def needs_records(wish: Wish, named: AdapterRecord, known: Known) -> bool:
    """Returns whether the rows have to be sent to the server before anything can begin.

    Retraining does without where each client holds its own rows: its tombstones keep them out.
    """
    if wish.place == "client":
        return False
    trained = training_run(named, known)
    return wish.method != RETRAIN or trained is None or trained.clients == "simulated"


def training_run(named: AdapterRecord, known: Known) -> RunRecord | None:
    """Returns the run whose rounds a version comes from, whatever removals were between.

    Returns:
        None where it was made elsewhere and imported.
    """
    for version in Family(known.versions).line(named):
        run = known.runs.get(version.run_id)
        if run is not None and run.clients in ("remote", "simulated"):
            return run
    return None


def claim_of(method: str) -> Claim:
    """Returns what a receipt may say of a method.

    Raises:
        RemoteError: `invalid`, if it is none that can be asked for.
    """
    if method not in CLAIM_OF:
        raise Refused.INVALID.error(
            f"a method is one of {', '.join(CLAIM_OF)}; got {method[:40]!r}"
        )
    return CLAIM_OF[method]


def checked_settings(
    method: str, settings: Mapping[str, JsonValue], *, private: bool = False
) -> dict[str, Any]:
    """Checks the settings of a request, and returns the gate's with every default written out.

    Raises:
        RemoteError: `invalid`, if a key does not exist or a value is wrong.
    """
    unknown = set(settings) - set(_SETTINGS)
    if unknown:
        raise Refused.INVALID.error(
            f"settings are an object of {', '.join(_SETTINGS)}; got {min(unknown)[:40]!r}"
        )
    unlearning, gate = _section(settings, "unlearning"), _section(settings, "gate")
    if method == RETRAIN and unlearning:
        raise Refused.INVALID.error("retraining has no settings: those of the run hold")
    if private and unlearning:
        raise Refused.INVALID.error(
            "a private job has the settings of section 'private', not those of 'unlearning'"
        )
    if "private" in settings and not private:
        raise Refused.INVALID.error("only a private job has settings of section 'private'")
    precisions = settings.get("precisions", PRECISIONS)
    if (
        isinstance(precisions, str)
        or not isinstance(precisions, list | tuple)
        or not precisions
        or not all(name in PRECISIONS for name in precisions)
    ):
        raise Refused.INVALID.error(f"precisions are some of {', '.join(PRECISIONS)}")
    try:
        if method != RETRAIN:
            validate(UnlearningConfig, {"method": method} | unlearning, "settings of the method")
        validate(PrivateConfig, _section(settings, "private"), "settings of the job")
        config = validate(GateConfig, gate, "settings of the gate")
    except ConfigError as error:
        raise Refused.INVALID.error(str(error)) from error
    if unlearning.get("method", method) != method:
        raise Refused.INVALID.error(
            f"the request's method is {method}, and its settings are those of another"
        )
    return config.model_dump(mode="json")


def _section(settings: Mapping[str, JsonValue], name: str) -> dict[str, JsonValue]:
    section = settings.get(name, {})
    if not isinstance(section, Mapping):
        raise Refused.INVALID.error(f"settings: {name!r} must be an object")
    return dict(section)


def _check_trained(
    wish: Wish,
    named: AdapterRecord,
    known: Known,
    touched: Sequence[AdapterRecord],
) -> None:
    if not touched:
        raise Refused.NEVER_TRAINED.error(
            f"no round of adapter {named.digest} or of those that it was made from had an update "
            f"of client {wish.client_id}"
        )
    if wish.num_records < 1:
        raise Refused.INVALID.error("there are no records to be forgotten; name at least one")
    runs = {version.run_id for version in touched}
    had = max((known.num_examples[run] for run in runs if run in known.num_examples), default=None)
    if had is not None and wish.num_records > had:
        raise Refused.NEVER_TRAINED.error(
            f"client {wish.client_id} took part with {had} rows, and {wish.num_records} are to be "
            "forgotten; name rows that were trained on"
        )
    if wish.num_records == had:
        raise Refused.INVALID.error(
            f"all {had} rows of client {wish.client_id} are to be forgotten, and a removal keeps "
            "some; submit a new run without this client instead"
        )


def already_removed(records_digest: str, named: AdapterRecord, known: Known) -> str | None:
    """Returns the request that removed the same records on the way to this version, if any."""
    line = {version.digest for version in Family(known.versions).line(named)}
    for removal in known.removals:
        if (
            removal.state is RemovalState.PUBLISHED
            and removal.records_digest == records_digest
            and removal.successor in line
        ):
            return removal.request_id
    return None


def _check_place(wish: Wish, named: AdapterRecord, trained: RunRecord | None) -> None:
    if wish.method == RETRAIN and trained is None:
        raise Refused.INVALID.error(
            f"adapter {named.digest} was made elsewhere, so there are no rounds to go through "
            "again; choose another method"
        )
    if wish.method == RETRAIN and _is_unmarked(wish, trained):
        raise Refused.INVALID.error(
            f"only {wish.client_id} itself can mark its records as removed, and retraining is "
            "exact by that alone; it asks for this itself, or you choose another method"
        )
    simulated = trained is not None and trained.clients == "simulated"
    if wish.place == "client" and simulated:
        raise Refused.INVALID.error(
            "the clients of this run were simulated at the server, which holds their rows; send "
            "the records to it"
        )
    if wish.private_job and wish.place != "client":
        raise Refused.INVALID.error(
            "a private job is charged to the client's own ledger, so it runs at the client"
        )
    if wish.private_job and wish.method != _PRIVATE_METHOD:
        raise Refused.INVALID.error(f"only {_PRIVATE_METHOD} can be private, not {wish.method}")
    if wish.private_job and wish.void_guarantee:
        raise Refused.INVALID.error(
            "a private job keeps the guarantee, so it cannot be void too; leave one out"
        )
    if wish.private_job and not named.epsilon:
        raise Refused.INVALID.error(
            f"adapter {named.digest} has no privacy guarantee that a private job could keep"
        )


def _check_exact(
    wish: Wish, named: AdapterRecord, known: Known, family: Family, trained: RunRecord | None
) -> None:
    """Refuses a retraining that would bring back what an earlier removal took out."""
    if wish.method != RETRAIN or trained is None:
        return
    earlier = [
        known.runs[version.run_id]
        for version in family.line(named)
        if version.run_id in known.runs and known.runs[version.run_id].clients == "removal"
    ]
    # Rows that their owner asked about are marked at its client; nobody else's are.
    unmarked = [
        run
        for run in earlier
        if trained.clients == "simulated" or run.submitted_by not in named.participants
    ]
    if unmarked:
        raise Refused.INVALID.error(
            f"removal {unmarked[0].run_id} took other rows out of adapter {named.digest} before, "
            "and training the rounds again would bring them back; choose another method, or submit "
            "a new run on rows without them"
        )


def _is_unmarked(wish: Wish, trained: RunRecord | None) -> bool:
    """Whether the records lie with a client that has not been asked to leave them out."""
    held_by_client = trained is not None and trained.clients == "remote"
    return held_by_client and wish.asked_by != wish.client_id


def _guarantee(wish: Wish, named: AdapterRecord) -> Guarantee:
    if not named.epsilon:
        return "none"
    if wish.private_job or wish.method == RETRAIN:
        return "charged"
    if wish.void_guarantee:
        return "void"
    raise Refused.GUARANTEE.error(
        f"adapter {named.digest} has a privacy guarantee, and {wish.method} would end it: run the "
        "job at the client and have it charged (--here --private), retrain, or have an operator "
        "give the guarantee up (--void-guarantee)"
    )


def _notes_of_method(wish: Wish, claim: Claim, clean: AdapterRecord | None) -> list[str]:
    if wish.private_job:
        return [
            "approximate: noise limits what the job can take away, and no figure is stated of it; "
            "epsilon is what stands for the records"
        ]
    if claim == "approximate":
        return [
            "approximate: the gate measures that the successor forgot; nothing proves it",
            *(
                ["the job runs at the client: what the receipt says of it the client measured"]
                if wish.place == "client"
                else []
            ),
        ]
    start = "from nothing" if clean is None else f"from version {clean.digest[:12]}"
    return [
        f"exact: the rounds are trained again {start}, without the records; that they are left "
        f"out rests on {wish.client_id}, which has marked them as removed"
    ]


def _notes_of_guarantee(wish: Wish, guarantee: Guarantee) -> list[str]:
    if guarantee == "void":
        return [
            f"the privacy guarantee for {wish.client_id} is void after the job; that for the other "
            "clients stays, as long as the job sees no rows of theirs"
        ]
    if guarantee == "charged":
        who = "every client that trains again" if wish.method == RETRAIN else wish.client_id
        return [f"the job is private; {who} is charged for it in its own ledger"]
    return []


def _notes_of_marks(wish: Wish, trained: RunRecord | None) -> list[str]:
    if not _is_unmarked(wish, trained):
        return []
    return [
        f"{wish.client_id} has not marked the records as removed: its next rounds train on them "
        "until it asks for the removal itself"
    ]


def _notes_of_versions(
    wish: Wish,
    named: AdapterRecord,
    affected: Sequence[AdapterRecord],
    aliases: Sequence[str],
    known: Known,
    family: Family,
) -> list[str]:
    notes = []
    later = [v for v in family.with_descendants([named])[1:] if v in affected]
    if later:
        notes.append(
            f"{len(later)} later versions are withdrawn too, and what they learned beyond "
            f"{named.digest[:12]} is lost; name {later[-1].digest[:12]} to keep it"
        )
    if not aliases:
        notes.append("no alias points at an affected version: the successor is deployed nowhere")
    runs = {version.run_id for version in affected}
    under_way = sorted(
        run for run in runs if run in known.runs and known.runs[run].status in UNDER_WAY
    )
    notes += [
        f"run {run} is under way: what it makes after the removal has the records' trace too; "
        "stop it first"
        for run in under_way
    ]
    elsewhere = sorted(
        {
            version.run_id
            for version in known.versions
            if wish.client_id in version.participants
            and version.status == "published"
            and version.run_id not in runs
        }
    )
    if elsewhere:
        notes.append(
            f"{wish.client_id} took part in other runs, which stay as they are: "
            f"{', '.join(elsewhere)}"
        )
    return notes
