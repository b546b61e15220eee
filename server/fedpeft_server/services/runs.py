"""Runs: submitted, listed, watched, stopped and resumed."""

from collections import Counter
from collections.abc import Iterator

from fedpeft.errors import ConfigError, RemoteError
from fedpeft.wire.catalogue import Refused
from fedpeft.wire.v1 import runs_pb2, runs_pb2_grpc
from fedpeft_server.access.call import Call
from fedpeft_server.ports import RunEngine
from fedpeft_server.records import RunRecord, RunStatus
from fedpeft_server.services import fields, translate
from fedpeft_server.state import NotFoundError, State, WrongStateError
from fedpeft_server.submission import Submissions
from fedpeft_server.watching import watch


class RunsService(runs_pb2_grpc.RunsServicer):
    """See protos/fedpeft/wire/v1/runs.proto."""

    def __init__(
        self, state: State, submissions: Submissions, engine: RunEngine, *, max_held_out_bytes: int
    ) -> None:
        """Takes where runs are recorded, what takes them in, and what brings them forward."""
        self._state, self._submissions, self._engine = state, submissions, engine
        self._max_held_out_bytes = max_held_out_bytes

    def SubmitRun(self, request: runs_pb2.SubmitRunRequest, call: Call) -> runs_pb2.Run:
        """Stores a run and begins it."""
        if len(request.held_out) > self._max_held_out_bytes:
            raise Refused.TOO_LARGE.error(
                f"held-out rows of {len(request.held_out)} bytes, where {self._max_held_out_bytes} "
                "are allowed"
            )
        try:
            run = self._submissions.submit(
                request.config_json,
                held_out=request.held_out,
                held_out_suffix=fields.suffix(request.held_out_suffix),
                start_from=fields.version(request.start_from) if request.start_from else "",
                idempotency_key=fields.text(
                    "idempotency_key", request.idempotency_key, required=True
                ),
                submitter=call.caller.name,
            )
        except ConfigError as error:
            raise Refused.INVALID.error(str(error)) from error
        call.about(run.run_id, run_id=run.run_id)
        self._engine.start(run.run_id)
        return self._shown(run)

    def ListRuns(self, request: runs_pb2.ListRunsRequest, call: Call) -> runs_pb2.ListRunsResponse:
        """Returns every run, oldest first."""
        return runs_pb2.ListRunsResponse(runs=[self._shown(run) for run in self._state.runs()])

    def GetRun(self, request: runs_pb2.GetRunRequest, call: Call) -> runs_pb2.RunDetails:
        """Returns one run, and of its participants those that the caller may see."""
        run = self._found(request.run_id, call)
        rounds = self._state.rounds(run.run_id)
        plan = self._state.plan(run.run_id)
        newest = self._state.newest_adapter(run.run_id)
        num_updates = Counter(client for entry in rounds for client in entry.cohort)
        return runs_pb2.RunDetails(
            run=translate.run(run, newest),
            config_json=run.config_json,
            rounds=[translate.finished_round(entry) for entry in rounds],
            participants=[
                runs_pb2.Participant(
                    client_id=planned.client_id,
                    num_examples=planned.num_examples,
                    noise_multiplier=planned.noise_multiplier,
                    num_rounds_planned=planned.num_rounds_planned,
                    num_updates=num_updates[planned.client_id],
                    epsilon_spent=newest.epsilon.get(planned.client_id) if newest else None,
                )
                for planned in (plan.participants if plan else ())
                if call.may_see(planned.client_id)
            ],
        )

    def WatchRun(
        self, request: runs_pb2.WatchRunRequest, call: Call
    ) -> Iterator[runs_pb2.RunEvent]:
        """Yields past events, then new ones, until the run has ended."""
        run = self._found(request.run_id, call)
        for event in watch(self._state, run.run_id, fields.position(request.after), call):
            if event.client_id is None or call.may_see(event.client_id):
                yield translate.event(event)

    def StopRun(self, request: runs_pb2.StopRunRequest, call: Call) -> runs_pb2.Run:
        """Stops a run; where it was stopped before, nothing changes."""
        run = self._found(request.run_id, call)
        reason = fields.text("reason", request.reason) or f"stopped by {call.caller.name}"
        if run.status is RunStatus.STOPPED:
            return self._shown(run)
        try:
            return self._shown(self._engine.stop(run.run_id, reason))
        except WrongStateError as error:
            raise self._wrong_state(run.run_id, "one that is under way can be stopped") from error

    def ResumeRun(self, request: runs_pb2.ResumeRunRequest, call: Call) -> runs_pb2.Run:
        """Goes on with a run."""
        run = self._found(request.run_id, call)
        try:
            return self._shown(self._engine.resume(run.run_id))
        except WrongStateError as error:
            allowed = "one that was stopped or failed can be resumed"
            raise self._wrong_state(run.run_id, allowed) from error

    def _found(self, run_id: str, call: Call) -> RunRecord:
        name = fields.run_id(run_id)
        call.about(name, run_id=name)
        try:
            return self._state.run(name)
        except NotFoundError as error:
            raise Refused.NO_SUCH_RUN.error(name) from error

    def _wrong_state(self, run_id: str, allowed: str) -> RemoteError:
        status = self._state.run(run_id).status
        return Refused.WRONG_STATE.error(f"run {run_id} is {status}; only {allowed}")

    def _shown(self, run: RunRecord) -> runs_pb2.Run:
        return translate.run(run, self._state.newest_adapter(run.run_id))
