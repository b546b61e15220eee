"""What a client's owner allows, in a file on the client's own machine.

A coordinator proposes; this decides. Nothing that comes from a coordinator is read here but to be
compared, so that no term and no plan can widen what stands in the file. The place that a base model
is loaded from is the file's alone: a coordinator names a digest, never a path.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from fedpeft.errors import PolicyError
from fedpeft.federated.messages import RoundPlan
from fedpeft.federated.terms import RunTerms
from fedpeft.models.model_config import ModelConfig
from fedpeft.settings import read_toml, validate
from fedpeft.unlearning.private_config import PrivateConfig

_Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
_FORM = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class AllowedModel(BaseModel):
    """Where a base model is loaded from; its digest says that it is the right one."""

    model_config = _FORM

    name: str = Field(
        min_length=1,
        description="A folder, 'package:<distribution>', or a hub id.",
    )
    revision: str | None = Field(default=None, description="Of a hub id.")


class ClientPolicy(BaseModel):
    """The file `policy.toml`."""

    model_config = _FORM

    min_noise_multiplier: float = Field(
        default=0.3,
        gt=0,
        description="Least noise in each step, over the sensitivity. Below 0.3 a single step tells "
        "one row from none nearly always. The budget is checked besides.",
    )
    max_target_epsilon: float | None = Field(
        default=None,
        gt=0,
        description="Largest target_epsilon of a run to take part in, and epsilon of a private "
        "removal job; whatever these say, the "
        "budget in the ledger is the limit. Left out: any.",
    )
    max_rounds: int = Field(
        default=100, ge=1, description="Rounds of a run, so the most that one run can release."
    )
    max_local_steps: int = Field(
        default=100, ge=1, description="Local steps of a round: time, and privacy."
    )
    max_l2_clip_norm: float = Field(
        default=100.0,
        gt=0,
        description="Largest clip norm. It is no matter of privacy, since the noise grows with it: "
        "it keeps a run from asking for updates that are nothing but noise.",
    )
    allow_without_privacy: bool = Field(
        default=False,
        description="Take part in runs without clipping and noise. They have no guarantee at all, "
        "and whoever sees an update can read rows out of it.",
    )
    allow_bfloat16: bool = Field(
        default=False,
        description="Train in bfloat16. Rows of a batch touch each other by rounding there, which "
        "more noise allows for by measurement and not by proof.",
    )
    max_adapter_bytes: int = Field(
        default=256 * 2**20, ge=1, description="Largest adapter that is taken from a server."
    )
    max_tokens_per_batch: int = Field(
        default=4096,
        ge=1,
        description="Largest physical batch, padding included: memory only. Runs may ask for less.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="Where to train.")
    task_deadline_s: float = Field(
        default=3600.0,
        gt=0,
        description="Seconds after which a round that is not done is given up; its charge stays, "
        "and asked again it begins again under the same charge.",
    )
    bundles: tuple[_Digest, ...] = Field(
        default=(),
        strict=False,  # a list in TOML
        description="SHA-256 of the app bundles that messages may come from. No code of a bundle "
        "runs here. Empty: the one of the server at enrolment.",
    )
    base_models: Mapping[_Digest, AllowedModel] = Field(
        default_factory=dict,
        description="Digest of a base model's tensors → where it is. A run on another is refused. "
        "`fedpeft model digest NAME` prints a digest; --allow-model adds an entry.",
    )

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads the file.

        Raises:
            ConfigError: If it is missing, no TOML, or a key or value is wrong: a client whose
                owner's word cannot be read does nothing.
        """
        return validate(cls, read_toml(path), str(path))

    def check_terms(self, terms: RunTerms) -> None:
        """Refuses a run that the owner does not want to take part in.

        Raises:
            PolicyError: With what was asked and what is allowed.
        """
        privacy, federation = terms.privacy, terms.federation
        if federation.clients != "remote":
            raise PolicyError("the terms are not of a run for remote clients")
        if not privacy.enabled:
            if not self.allow_without_privacy:
                raise PolicyError(
                    "the run has no privacy (privacy.enabled = false); the policy does not allow "
                    "that (allow_without_privacy)"
                )
        elif privacy.mechanism != "dp-sgd" or privacy.insecure_seeded_noise:
            raise PolicyError(
                f"the run asks for the mechanism {privacy.mechanism!r} with insecure_seeded_noise "
                f"= {privacy.insecure_seeded_noise}; a client adds its own secret noise: 'dp-sgd' "
                "and false"
            )
        elif self.max_target_epsilon is not None:
            _check_most("privacy.target_epsilon", privacy.target_epsilon, self.max_target_epsilon)
        _check_most("privacy.l2_clip_norm", privacy.l2_clip_norm, self.max_l2_clip_norm)
        _check_most("federation.num_rounds", federation.num_rounds, self.max_rounds)
        _check_most("federation.local_steps", federation.local_steps, self.max_local_steps)
        if terms.model.precision != "float32" and not self.allow_bfloat16:
            raise PolicyError(
                f"the run trains in {terms.model.precision}; the policy allows float32 alone "
                "(allow_bfloat16)"
            )
        self.model_config_of(terms)

    def check_removal(self, model: ModelConfig, *, private: bool) -> None:
        """Refuses a removal job that the owner does not want to be done on its rows.

        Raises:
            PolicyError: With what was asked and what is allowed.
        """
        if not private and not self.allow_without_privacy:
            raise PolicyError(
                "the job would look at the rows without noise, and the policy does not allow that "
                "(allow_without_privacy); ask for a private one (--private), or retrain"
            )
        if model.precision != "float32" and not self.allow_bfloat16:
            raise PolicyError(
                f"the adapter's run is in {model.precision}; the policy allows float32 alone "
                "(allow_bfloat16)"
            )

    def check_private_job(self, asked: PrivateConfig, noise_multiplier: float) -> None:
        """Refuses a private removal job with less noise or more steps than the owner wants.

        Raises:
            PolicyError: With what was asked and what is allowed.
        """
        if self.max_target_epsilon is not None:
            _check_most("private.epsilon", asked.epsilon, self.max_target_epsilon)
        _check_most("private.l2_clip_norm", asked.l2_clip_norm, self.max_l2_clip_norm)
        _check_most("private.num_steps", asked.num_steps, self.max_local_steps)
        if not noise_multiplier >= self.min_noise_multiplier:
            raise PolicyError(
                f"epsilon {asked.epsilon:g} over {asked.num_steps} steps needs a noise multiplier "
                f"of {noise_multiplier:.3g} only; the policy asks for at least "
                f"{self.min_noise_multiplier:g} (min_noise_multiplier): lower private.epsilon, or "
                "ask for more steps"
            )

    def check_plan(self, plan: RoundPlan) -> None:
        """Refuses a round that the owner does not want to be trained, for itself or its run.

        Raises:
            PolicyError: With what was asked and what is allowed.
        """
        self.check_terms(plan.terms)
        _check_most("the round's number", plan.round, self.max_rounds)
        _check_most("the number of planned rounds", plan.num_rounds, self.max_rounds)
        noise = plan.noise_multiplier
        if noise is None:
            if plan.terms.privacy.enabled or not self.allow_without_privacy:
                raise PolicyError("the plan has no noise; the policy does not allow that")
        elif not noise >= self.min_noise_multiplier:
            raise PolicyError(
                f"the plan has the noise multiplier {noise:g}; the policy asks for at least "
                f"{self.min_noise_multiplier:g} (min_noise_multiplier)"
            )

    def model_config_of(self, terms: RunTerms) -> ModelConfig:
        """Returns the run's model section with this machine's own place, device and batch size.

        Raises:
            PolicyError: If the base model is not allowed.
        """
        return self.model_here(terms.model, terms.base_digest)

    def model_here(self, model: ModelConfig, base_digest: str) -> ModelConfig:
        """Returns a model section with this machine's own place, device and batch size.

        Raises:
            PolicyError: If the base model is not allowed.
        """
        allowed = self.base_models.get(base_digest)
        if allowed is None:
            raise PolicyError(
                f"the run's base model has the digest {base_digest}, which is none of the "
                f"{len(self.base_models)} that the policy allows; if you have it and trust it, "
                "join with --allow-model NAME"
            )
        return model.model_copy(
            update={
                "name": allowed.name,
                "revision": allowed.revision,
                "device": self.device,
                "max_tokens_per_batch": min(model.max_tokens_per_batch, self.max_tokens_per_batch),
                "compile": False,  # a compiler would run on a coordinator's word
            }
        )

    def check_bundle(self, digest: str, enrolled: str) -> None:
        """Refuses a message of an app bundle that is not allowed.

        Args:
            digest: Of the message's.
            enrolled: What the server said when the client enrolled.

        Raises:
            PolicyError: If it is another one.
        """
        allowed = self.bundles or (enrolled,)
        if digest not in allowed:
            raise PolicyError(
                f"the message comes from the app bundle {digest!r}; allowed are "
                f"{', '.join(allowed)} (bundles)"
            )


def _check_most(what: str, asked: float, most: float) -> None:
    if not asked <= most:
        raise PolicyError(f"{what} is {asked:g}; the policy allows at most {most:g}")
