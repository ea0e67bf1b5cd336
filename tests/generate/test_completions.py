"""Answers in text: put together from the engine's tokens, ended by strings, slid along a full context."""

from __future__ import annotations

from maxlm.generate.completions import Completions
from maxlm.generate.request import Finish, Request, Token
from tests.generate.models import CONTEXT, GREEDY, engine_of, likeliest, prompts_of


class Letters:
    """A tokenizer of one character a token, as the small models' 97 tokens have it."""

    def decode_bytes(self, ids):
        return "".join(chr(32 + i) for i in ids).encode()


def text_of(ids):
    return "".join(chr(32 + i) for i in ids)


class Scripted:
    """An engine that answers with these letters."""

    context_length = 8

    def __init__(self, *texts):
        self.texts, self.asked, self.cancelled, self.left = list(texts), [], [], {}

    def submit(self, request):
        self.asked.append(request)
        self.left[len(self.asked)] = request.max_tokens
        return len(self.asked)

    def cancel(self, number):
        self.cancelled.append(number)

    def step(self):
        tokens = []
        for number, text in enumerate(self.texts, start=1):
            if text and number <= len(self.asked) and number not in self.cancelled:
                letter, self.texts[number - 1] = text[0], text[1:]
                left, self.left[number] = self.left[number], self.left[number] - 1
                finish = None if text[1:] else Finish.CONTEXT if left > 1 else Finish.LENGTH
                tokens.append(Token(number, ord(letter) - 32, finish))
        return tokens


def run(engine, count, stop=(), most=20, **options):
    completions = Completions(engine, Letters())
    for index in range(count):
        completions.add(index, Request([1, 2], most, GREEDY), stop, **options)
    shown, answers = [""] * count, {}
    for piece in completions.pieces():
        shown[piece.index] += piece.text
        answers[piece.index] = piece.answer
    return shown, [answers[i] for i in range(count)]


def test_a_stop_string_ends_one_answer_and_not_the_others():
    engine = Scripted("ab;cd", "abcd;", "xyz")
    shown, answers = run(engine, 3, [";"])
    assert shown == ["ab", "abcd", "xyz"] == [a.text for a in answers]
    assert [a.finish for a in answers] == [Finish.STOP, Finish.STOP, Finish.CONTEXT]
    assert 1 in engine.cancelled and 3 not in engine.cancelled


def test_text_that_only_might_have_been_a_stop_string_is_shown_at_the_end():
    shown, (answer,) = run(Scripted("ab;"), 1, [";;"])
    assert shown == ["ab;"] and answer.finish is Finish.CONTEXT


def test_a_full_context_slides_to_its_newer_half_when_asked():
    engine = Scripted("abcdef", "ghij")
    shown, (answer,) = run(engine, 1, most=10, slide=True)
    assert shown == ["abcdefghij"] and answer.finish is Finish.LENGTH
    assert engine.asked[1].prompt == [ord(c) - 32 for c in "cdef"]  # half of 8
    assert engine.asked[1].max_tokens == 10 - 6
    assert engine.asked[1].options.seed != engine.asked[0].options.seed
    assert answer.tokens == [ord(c) - 32 for c in "abcdefghij"]


def test_of_a_real_engine():
    prompts = prompts_of(4, 9)
    completions = Completions(engine_of("grouped queries"), Letters())
    for index, prompt in enumerate(prompts):
        completions.add(index, Request(prompt, 8, GREEDY))
    answers = {piece.index: piece.answer for piece in completions.pieces()}
    for index, prompt in enumerate(prompts):
        wanted = likeliest("grouped queries", prompt, 8)
        assert answers[index].tokens == wanted and answers[index].text == text_of(wanted)
        assert answers[index].finish is Finish.LENGTH
    assert CONTEXT > 8
