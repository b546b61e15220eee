"""Token ids of prompts and chats, as adapters were trained on them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedpeft.serving.config import ChatFormat
from fedpeft.serving.openai_requests import Message, Prompt
from fedpeft.serving.refusals import Refused

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Prompts:
    """Makes token ids of what requests say."""

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        num_tokens: int,
        longest: int,
        chat_format: ChatFormat = "auto",
    ) -> None:
        """Prepares it.

        Args:
            tokenizer: Of the base model.
            num_tokens: That the base model knows.
            longest: Tokens of a prompt and its answer together, at most.
            chat_format: "template" is the tokenizer's own; "question-answer" what rows with
                question and answer columns are trained as, for one question at a time; "auto" the
                template where there is one.
        """
        self._tokenizer = tokenizer
        self._num_tokens, self._longest = num_tokens, longest
        has_template = bool(getattr(tokenizer, "chat_template", None))
        self.by_template = has_template if chat_format == "auto" else chat_format == "template"

    def of_prompt(self, prompt: Prompt) -> list[int]:
        """Returns a text's tokens after that of a beginning, or token ids as they are.

        Raises:
            RemoteError: If they are too many, none, or none of the model's.
        """
        return self._checked(self._beginning(prompt) if isinstance(prompt, str) else list(prompt))

    def of_chat(self, messages: Sequence[Message]) -> list[int]:
        """Returns the tokens after which the next answer begins.

        Raises:
            RemoteError: If the format does not take such messages, or they are too long.
        """
        if self.by_template:
            return self._checked(self._templated(messages))
        if len(messages) != 1 or messages[0].role != "user":
            raise Refused.INVALID.error(
                "this model was trained on single questions: send one message of the user alone"
            )
        return self._checked(self._beginning(f"Question: {messages[0].content}\nAnswer:"))

    def of_text(self, text: str, max_length: int) -> list[int]:
        """Returns what a classifier gets: cut where its rows were cut in training."""
        most = min(self._longest, max_length)
        ids: list[int] = self._tokenizer(text, truncation=True, max_length=most)["input_ids"]
        return ids or [self._tokenizer.pad_token_id or 0]

    def _beginning(self, text: str) -> list[int]:
        first = self._tokenizer.bos_token_id
        plain: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return plain if first is None else [int(first), *plain]

    def _templated(self, messages: Sequence[Message]) -> list[int]:
        from jinja2 import TemplateError

        try:
            text: str = self._tokenizer.apply_chat_template(
                [{"role": message.role, "content": message.content} for message in messages],
                add_generation_prompt=True,
                tokenize=False,
            )
        except (TemplateError, ValueError) as error:
            raise Refused.INVALID.error(f"the chat template refuses this: {error}") from error
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _checked(self, ids: list[int]) -> list[int]:
        if not ids:
            raise Refused.INVALID.error("the prompt is empty; send a token or more")
        if len(ids) >= self._longest:
            raise Refused.TOO_LONG.error(
                f"prompt and answer have room for {self._longest} tokens, the prompt alone has "
                f"{len(ids)}; shorten it"
            )
        if not all(0 <= token < self._num_tokens for token in ids):
            raise Refused.INVALID.error(f"token ids lie between 0 and {self._num_tokens - 1}")
        return ids
