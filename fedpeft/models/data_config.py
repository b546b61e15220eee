"""The `[data]` section of a run: where rows come from and which client holds which."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class DataConfig(BaseModel):
    """Where the rows come from, which columns matter, how they are split over clients."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    train: str | None = Field(
        default=None,
        description="Training rows: a .jsonl, .csv or .parquet path, an hf:// URL, or "
        "'synthetic:messages/train'. Not used when partition = 'files'.",
    )
    test: str | None = Field(
        default=None,
        description="Held-out rows in the same forms, or give test_fraction. Their labels are the "
        "label space: they are public, while a client's labels are not.",
    )
    test_fraction: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Holds out this share of the training rows, drawn with the run's seed, in "
        "place of a test file.",
    )
    text_column: str = Field(default="text", description="Column with the text.")
    label_column: str = Field(
        default="label", description="Column with the class (classification only)."
    )
    question_column: str | None = Field(
        default=None,
        description="Column with the prompt (causal LM); with answer_column, loss is taken on "
        "the answer only.",
    )
    answer_column: str | None = Field(default=None, description="Column with the answer.")
    partition: Literal["iid", "dirichlet", "column", "files"] = Field(
        default="iid",
        description="How rows are split over clients: 'iid'; 'dirichlet' over the labels; "
        "'column', a client for each value of partition_column; 'files', a client for each "
        "of client_files.",
    )
    dirichlet_alpha: float = Field(
        default=0.5, gt=0, description="Concentration of the Dirichlet split; small is skewed."
    )
    partition_column: str | None = Field(
        default=None, description="Column that names the client (partition = 'column')."
    )
    partition_groups: str | None = Field(
        default=None,
        description="JSON file {client: [values of partition_column]} that merges values into "
        "clients (partition = 'column').",
    )
    client_files: tuple[str, ...] = Field(
        default=(), description="One training file for each client (partition = 'files')."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.test is None) == (self.test_fraction is None):
            raise ValueError("give one of test and test_fraction")
        if self.partition == "files":
            if not self.client_files:
                raise ValueError("partition = 'files' needs client_files")
            if self.train is not None:
                raise ValueError("partition = 'files' takes client_files, not train")
        elif self.client_files:
            raise ValueError(f"client_files goes with partition = 'files', not '{self.partition}'")
        if self.partition == "column" and self.partition_column is None:
            raise ValueError("partition = 'column' needs partition_column")
        if self.partition_groups is not None and self.partition != "column":
            raise ValueError("partition_groups goes with partition = 'column'")
        if (self.question_column is None) != (self.answer_column is None):
            raise ValueError("question_column and answer_column go together")
        return self
