"""The Python face: `maxlm.load("runs/books")`, or a Hugging Face folder, and what a model is used for.

model = maxlm.load("runs/books@8000")
model.generate("Once upon a time", max_tokens=50).text
model.generate(["Once", "Then"], temperature=0.7, top_p=0.9, seed=3)
model.score("It was a dark and stormy night.").bits_per_byte
model.logits("It was")  # [tokens, vocabulary]
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np

from maxlm import storage
from maxlm.config.choices import Quantization
from maxlm.config.derive_model import longest_length
from maxlm.config.schema import RunConfig
from maxlm.data.tokenizers import Tokenizer
from maxlm.data.tokenizers.huggingface import HuggingFaceTokenizer
from maxlm.errors import CheckpointError, ConfigError, did_you_mean
from maxlm.generate.beam import BeamOptions, BeamSearch, Hypothesis
from maxlm.generate.beam_text import Asked, search_texts
from maxlm.generate.chat import ChatTemplate, Message
from maxlm.generate.completions import Completion, Completions
from maxlm.generate.engine import MAX_ROWS, Engine
from maxlm.generate.prompts import encode_prompts, end_tokens
from maxlm.generate.request import Request
from maxlm.generate.sampling import SamplingOptions
from maxlm.generate.scoring import Score, Scorer
from maxlm.generate.text import check_stop
from maxlm.interop.folder import CONFIG
from maxlm.model.definition import Params
from maxlm.model.inference import for_inference
from maxlm.train.importing import load_huggingface
from maxlm.train.loading import TrainedModel
from maxlm.train.loading import load as load_run
from maxlm.train.run_folder import RunFolder, parse_run

GENERATION_CONFIG = "generation_config.json"


def load(
    reference: str,
    overrides: list[str] | None = None,
    *,
    quantization: str | None = None,
    max_rows: int = MAX_ROWS,
) -> LanguageModel:
    """Load a model to use it.

    Args:
        reference: a run (`RUN` or `RUN@STEP`, local or gs://), or a Hugging Face folder.
        overrides: `key=value` on its config, such as `parallel.tensor=8`.
        quantization: `int8` or `fp8` for weights of 8 bits, `int8_matmul` or `fp8_matmul` for
            activations too; None: the type that the config computes in.
        max_rows: requests that are answered at once.

    Raises:
        CheckpointError: there is no such run or checkpoint, or it is damaged.
        ConfigError: a folder's config.json says what is not supported, or there is no such
            quantization.
        ParallelError: the overrides ask for a mesh that does not fit.
    """
    kind = quantization_of(quantization)
    path, _ = parse_run(reference)
    run = RunFolder(path)
    is_run = storage.exists(run.config) or storage.exists(run.checkpoints)
    if not is_run and storage.exists(storage.join(path, CONFIG)):
        trained, files = load_huggingface(path, overrides), path
    else:
        trained, files = load_run(reference, overrides), run.huggingface
    return LanguageModel(trained, files, quantization=kind, max_rows=max_rows)


def quantization_of(name: str | None) -> Quantization | None:
    """The quantization of this name. Raises ConfigError."""
    if name is None:
        return None
    try:
        return Quantization(name)
    except ValueError as error:
        known = [kind.value for kind in Quantization]
        raise ConfigError(
            f"there is no quantization '{name}'{did_you_mean(name, known)}: use {', '.join(known)}"
        ) from error


class LanguageModel:
    """A trained model, ready to be used.

    Attributes:
        config: of its run.
        step: of the checkpoint.
        tokenizer: its own.
        context_length: tokens that it sees at once.
        chat_template: how it reads conversations; None: it was taught none.
        stop: token ids that end an answer.
        engine: what answers requests.
    """

    def __init__(
        self,
        trained: TrainedModel,
        files: str,
        *,
        quantization: Quantization | None = None,
        max_rows: int = MAX_ROWS,
    ):
        """Prepare a model.

        Args:
            trained: the model; its weights are not held beyond what generation needs.
            files: folder of the small files that came with it, if it has any.
            quantization: of its linear maps.
            max_rows: requests that are answered at once.
        """
        self.config: RunConfig = trained.config
        self.step = trained.step
        self.tokenizer: Tokenizer = trained.tokenizer
        self.context_length = longest_length(trained.config.data)
        self.chat_template = ChatTemplate.of_folder(files)
        self.stop = _stop_tokens(trained.tokenizer, files)
        model, params = for_inference(trained.model, trained.params, quantization)
        self.engine = Engine.of(
            model, params, context_length=self.context_length, max_rows=max_rows
        )
        # One for all that is asked, so that calls which overlap each get what is theirs.
        self._completions = Completions(self.engine, self.tokenizer)
        self._numbers = itertools.count()
        self._scorer = Scorer(model)
        self._beams = BeamSearch(model, self.context_length)

    @property
    def params(self) -> Params:
        """The weights as generation reads them."""
        return self.engine.params

    @overload
    def generate(self, prompt: str, **options: Any) -> Completion: ...
    @overload
    def generate(self, prompt: list[str], **options: Any) -> list[Completion]: ...
    def generate(
        self,
        prompt: str | list[str],
        *,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        **sampling: Any,
    ) -> Completion | list[Completion]:
        """Continue one text, or several at once.

        Args:
            prompt: text or texts.
            max_tokens: most tokens of each answer; None: up to the context.
            stop: strings that end an answer, which they are no part of.
            **sampling: as `SamplingOptions` has them: temperature, top_p, seed, …

        Raises:
            ConfigError: a prompt is empty or longer than the context, or an option is wrong.
        """
        texts = [prompt] if isinstance(prompt, str) else list(prompt)
        options = SamplingOptions(**sampling)
        requests = [self.request(text, max_tokens, options) for text in texts]
        answers = self._answered(requests, stop)
        return answers[0] if isinstance(prompt, str) else answers

    def stream(
        self,
        prompt: str,
        *,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        **sampling: Any,
    ) -> Iterator[str]:
        """Like `generate` for one text, piece by piece; an iterator that is dropped gives up."""
        request = self.request(prompt, max_tokens, SamplingOptions(**sampling))
        number = next(self._numbers)
        self._completions.add(number, request, stop)
        with contextlib.closing(self._completions.follow([number])) as pieces:
            for piece in pieces:
                if piece.text:
                    yield piece.text

    @overload
    def beams(self, prompt: str, **options: Any) -> list[Hypothesis]: ...
    @overload
    def beams(self, prompt: list[str], **options: Any) -> list[list[Hypothesis]]: ...
    def beams(
        self,
        prompt: str | list[str],
        *,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        **options: Any,
    ) -> list[Hypothesis] | list[list[Hypothesis]]:
        """The most likely continuations that beam search finds, of each text the best first.

        Args:
            prompt: text or texts.
            max_tokens: most tokens of each; None: up to the context.
            stop: strings that end an answer, which they are no part of.
            **options: as `BeamOptions` has them.

        Raises:
            ConfigError: a prompt is empty or longer than the context, or an option is wrong.
        """
        texts = [prompt] if isinstance(prompt, str) else list(prompt)
        how = BeamOptions(**options)
        asked = [(self.request(text, max_tokens, SamplingOptions()), stop) for text in texts]
        found = list(self.search(asked, how))
        return found[0] if isinstance(prompt, str) else found

    def search(self, asked: Sequence[Asked], options: BeamOptions) -> Iterator[list[Hypothesis]]:
        """Beam search for requests with their stop strings, as many at once as there are rows for."""
        rows = self.engine.max_rows
        return search_texts(self._beams, self.params, self.tokenizer, asked, options, max_rows=rows)

    def chat(self, messages: Sequence[Message], **options: Any) -> Completion:
        """The assistant's next answer; options as `generate` has them."""
        stop, most = options.pop("stop", ()), options.pop("max_tokens", None)
        request = self.chat_request(messages, most, SamplingOptions(**options))
        (answer,) = self._answered([request], stop)
        return answer

    def score(self, text: str) -> Score:
        """How likely the model finds a text. Raises ConfigError: it is longer than the context."""
        tokens = self._encoded(text)
        sizes = self.tokenizer.token_bytes()[np.asarray(tokens[1:], np.int64)]
        return Score(tokens, self._scorer.logprobs(self.params, tokens), int(sizes.sum()))

    def logits(self, text: str) -> np.ndarray:
        """`[T, V]` float32 logits of the token after each of the text's T, `bos` included."""
        return self._scorer.logits(self.params, self._encoded(text))

    def request(self, prompt: str, max_tokens: int | None, options: SamplingOptions) -> Request:
        """A text as a request to the engine."""
        (tokens,) = encode_prompts(self.tokenizer, [prompt], self.config.data)
        return Request(tokens, max_tokens, options, self.stop)

    def chat_request(
        self, messages: Sequence[Message], max_tokens: int | None, options: SamplingOptions
    ) -> Request:
        """A conversation as a request for the assistant's next answer.

        Raises ConfigError: the model has no chat template, or the template refuses the messages.
        """
        if self.chat_template is None or not isinstance(self.tokenizer, HuggingFaceTokenizer):
            raise ConfigError(
                "this model has no chat template (chat_template.jinja or tokenizer_config.json of a "
                "Hugging Face folder): it was not taught to chat; give it a prompt to continue"
            )
        tokens = self.tokenizer.encode_markup(self.chat_template.render(messages))
        return Request(tokens, max_tokens, options, self.stop)

    def _answered(self, requests: list[Request], stop: Sequence[str]) -> list[Completion]:
        check_stop(stop)
        for request in requests:  # before any is asked for
            request.check(self.context_length, self.engine.programs.vocab_size)
        numbers = [next(self._numbers) for _ in requests]
        for number, request in zip(numbers, requests, strict=True):
            self._completions.add(number, request, stop)
        answers = {p.index: p.answer for p in self._completions.follow(numbers)}
        return [answers[number] for number in numbers]

    def _encoded(self, text: str) -> list[int]:
        request = self.request(text, None, SamplingOptions())
        request.check(self.context_length, self.engine.programs.vocab_size)
        return list(request.prompt)


def _stop_tokens(tokenizer: Tokenizer, files: str) -> frozenset[int]:
    """The end of a document, and what a model's generation_config.json ends answers with."""
    stop = end_tokens(tokenizer)
    path = storage.join(files, GENERATION_CONFIG)
    if storage.exists(path):
        try:
            ends = json.loads(storage.read_bytes(path)).get("eos_token_id")
        except ValueError as error:
            raise CheckpointError(f"{path}: not JSON: {error}") from error
        stop |= {ends} if isinstance(ends, int) else set(ends or ())
    return stop
