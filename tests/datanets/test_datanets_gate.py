"""The gate's checks, and its precision and recall on real documentation strings."""

import pickle
import random
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import pytest
from datanet_samples import ANSWERS, Copier, module_drafts, sample_drafts

from openledger.core.hashing import canonical_json
from openledger.core.values import RowDraft, Verdict
from openledger.datanets.dedupe import MAX_CANDIDATES, DuplicateIndex
from openledger.datanets.gate import Rules, has_personal_data, is_repetitive, judge, text_reasons
from openledger.datanets.row_schema import Column, RowSchema

HONEST = (
    "asyncio", "email", "http", "logging", "xml", "importlib", "inspect", "tarfile", "numpy.lib", "numpy.ma",
    "numpy.polynomial", "numpy._core", "pandas.io", "pyarrow", "torch.optim", "torch.ao", "torch.distributions",
    "transformers.generation", "ray.train", "ray.tune",
)  # fmt: skip
QUESTION = "What does the function archive.members do?"


def row(completion: str, prompt: str = QUESTION) -> RowDraft:
    return RowDraft(prompt=prompt, completion=completion)


def verdicts(*drafts: RowDraft) -> list[Verdict]:
    return judge(drafts, [f"row_{number}" for number in range(len(drafts))], DuplicateIndex())


class TestText:
    @pytest.mark.parametrize(
        ("completion", "reason"),
        [
            ("", "empty"),
            (" \n\t", "empty"),
            ("\u200b\u200d", "empty"),
            ("Yes, it.", "too_short"),
            ("word " * 1_501, "too_long"),
            ("Return the \x00 members of it.", "invalid_text"),
            ("Return the \x1b[31m members of it.", "invalid_text"),
            ("Return the \ud800 members of it.", "invalid_text"),
            ("#$%& ((( 1234 )))) 99 ===== %% the end", "noise"),
            ("xkcdq vbnrt plmkz wrtsd qqzxw", "noise"),
            ("spam spam spam spam spam spam eggs", "repetition"),
            ("buy it now " * 8, "repetition"),
            ("Return the members!!!!!!!!!!!!!!!!", "repetition"),
            ("b4r82bv 9lp9jzl fx4x7x% 0zt0rzm jj02vf5 zt2&$6d", "noise"),
            ("Lorem ipsum dolor sit amet, consectetur.", "placeholder"),
            ("TODO: write this one", "placeholder"),
        ],
    )
    def test_a_bad_completion_is_rejected_with_its_reason(self, completion: str, reason: str) -> None:
        assert reason in text_reasons(row(completion))

    @pytest.mark.parametrize("prompt", ["", "  "])
    def test_an_empty_prompt_is_rejected(self, prompt: str) -> None:
        assert text_reasons(row(ANSWERS[0], prompt)) == ("empty",)

    @pytest.mark.parametrize(
        "completion",
        [
            *ANSWERS,
            "Gibt die Liste aller Dateien zurück, die sich zwischen Anfang und Schluss befinden.",
            "Geeft een lijst van alle belangrijke bestanden terug zodra het mogelijk is.",
            "Zwraca wszystkie pliki archiwum, przez które przechodzi strumień danych wejściowych.",
            "Palauttaa luettelon kaikista arkiston tiedostoista siinä järjestyksessä kuin ne kirjoitettiin.",
            "返回归档中的成员列表。",
            "Возвращает список членов архива.",
            "First line.\n\tSecond, indented line.",
            "Convert RGB to HSV via OpenCV.",
            "Simple matting head, with conv3x3 and conv1x1 layers of float8_e4m3fn on sm100.",
            "Digest with sha256 or blake2b, as in utf8 or base64url of http2.",
            "To do this, open the archive first and read on.",
        ],
    )
    def test_good_text_passes(self, completion: str) -> None:
        assert text_reasons(row(completion)) == ()

    def test_every_reason_that_holds_is_given(self) -> None:
        assert text_reasons(row("9 8\x00")) == ("too_short", "invalid_text", "noise")

    def test_a_row_with_one_repeated_phrase_is_not_repetition(self) -> None:
        assert not is_repetitive("A list of the files, or None where the list of the files is not known.")

    def test_spam_of_random_letters_is_rejected(self) -> None:
        dice = random.Random(5)
        spam = [
            " ".join("".join(dice.choices(string.ascii_lowercase, k=dice.randint(4, 9))) for _ in range(8))
            for _ in range(200)
        ]
        assert sum("noise" in text_reasons(row(text)) for text in spam) >= 0.8 * len(spam)

    def test_spam_of_random_characters_is_rejected(self) -> None:
        dice = random.Random(6)
        spam = ["".join(dice.choices(string.digits + string.punctuation + "abc ", k=60)) for _ in range(200)]
        assert sum("noise" in text_reasons(row(text)) for text in spam) >= 0.95 * len(spam)

    def test_words_with_digits_and_signs_do_not_hide_noise(self) -> None:
        """The noise of the red team, which gate/1 let pass nine times in ten."""
        dice = random.Random(7)
        letters = "bcdfghjklmnpqrstvwxz0123456789#$%&"
        spam = [" ".join("".join(dice.choices(letters, k=7)) for _ in range(10)) for _ in range(300)]
        assert sum("noise" in text_reasons(row(text)) for text in spam) >= 0.99 * len(spam)
        assert "noise" in text_reasons(row(ANSWERS[0], prompt=spam[0]))


class TestDetectors:
    def test_what_a_detector_finds_goes_to_review_with_its_reason(self) -> None:
        detectors = {"toxic": lambda draft: "hate" in draft.completion, "advert": lambda draft: False}
        drafts = [row("I hate this archive and its members."), row(ANSWERS[0])]
        found = judge(drafts, ["row_0", "row_1"], DuplicateIndex(), detectors)
        assert [(verdict.outcome, verdict.reasons) for verdict in found] == [("review", ("toxic",)), ("accept", ())]

    def test_its_reason_stands_beside_the_gates_own(self) -> None:
        draft = row("Write to jane.doe@mail.org about the hate.")
        (verdict,) = judge([draft], ["row_0"], DuplicateIndex(), {"toxic": lambda draft: True})
        assert verdict.reasons == ("personal_data", "toxic")


class TestColumns:
    @pytest.mark.parametrize(
        ("note", "outcome", "reasons"),
        [
            ("call jane.roe@mail.net", "review", ("personal_data",)),
            ("her card is 4111 1111 1111 1111", "review", ("personal_data",)),
            ("SSN 123-45-6789", "review", ("personal_data",)),
            ("one \x00 byte", "reject", ("invalid_text",)),
            ("xkcdq wrtzpl bvnmkj qwrtz", "reject", ("noise",)),
            ("b4r82bv x7k2q9z m3n8v5t", "reject", ("noise",)),
            ("2024-01-05", "accept", ()),
            ("B-17/4", "accept", ()),
            ("", "accept", ()),
        ],
    )
    def test_strings_are_looked_at_as_the_text_is(self, note: str, outcome: str, reasons: tuple[str, ...]) -> None:
        rules = Rules(schema=RowSchema(columns=(Column(name="note", type="string"), Column(name="n", type="int64"))))
        draft = replace(row(ANSWERS[0]), extra=canonical_json({"n": 7, "note": note}).decode())
        (verdict,) = judge([draft], ["row_1"], DuplicateIndex(), rules=rules)
        assert (verdict.outcome, verdict.reasons) == (outcome, reasons)

    def test_a_number_is_no_text(self) -> None:
        rules = Rules(schema=RowSchema(columns=(Column(name="x", type="float64"),)))
        draft = replace(row(ANSWERS[0]), extra=canonical_json({"x": "4111111111111111"}).decode())
        (verdict,) = judge([draft], ["row_1"], DuplicateIndex(), rules=rules)
        assert verdict.outcome == "accept"


class TestPersonalData:
    @pytest.mark.parametrize(
        "text",
        [
            "Write to jane.doe@mail.org for the key.",
            "Call +49 30 1234567 to reach the desk.",
            "Call (415) 555-2671 to reach the desk.",
            "Charge 4111 1111 1111 1111 when it ships.",
            "Charge the card 5500-0000-0000-0004 when the parcel is on its way.",
            "Please pay the rent into the account DE89 3704 0044 0532 0130 00 until Monday.",
            "Pay into GB82WEST12345698765432 until Monday.",
            "The number 123-45-6789 stands in the form.",
        ],
    )
    def test_personal_data_goes_to_review(self, text: str) -> None:
        (verdict,) = verdicts(row(text))
        assert (verdict.outcome, verdict.reasons) == ("review", ("personal_data",))

    @pytest.mark.parametrize(
        "text",
        [
            "Write to user@example.com for the key.",
            "Charge 4111 1111 1111 1112 when it ships.",
            "Pay into GB82WEST12345698765433 until Monday.",
            "The parts 000-12-3456 and 123-00-4567 are in stock.",
            "Since version 1.12.345, the default is 2,147,483,647 bytes.",
            "The matrix 0.123456789012345 and 10-20-30 stay.",
            "Apply the decorator @torch.no_grad to it.",
        ],
    )
    def test_numbers_and_documentation_addresses_pass(self, text: str) -> None:
        assert not has_personal_data(text)


class TestDuplicates:
    def test_the_first_row_keeps_the_credit(self) -> None:
        first, second = verdicts(row(ANSWERS[0]), row(ANSWERS[0]))
        assert first.outcome == "accept"
        assert (second.outcome, second.reasons, second.duplicate_of) == ("reject", ("exact_duplicate",), "row_0")

    def test_case_width_and_blanks_do_not_hide_a_repetition(self) -> None:
        hidden = ANSWERS[0].upper().replace(" ", "\u3000 ").replace("A", "Ａ")
        assert verdicts(row(ANSWERS[0]), row(hidden))[1].reasons == ("exact_duplicate",)

    def test_a_long_answer_to_another_question_is_a_repetition(self) -> None:
        assert verdicts(row(ANSWERS[0]), row(ANSWERS[0], "Why is the sky blue?"))[1].reasons == ("exact_duplicate",)

    def test_a_short_formula_may_answer_many_questions(self) -> None:
        formula = "Return a string representation of it."
        found = verdicts(*[row(formula, draft.prompt) for draft in sample_drafts(20)])
        assert [verdict.outcome for verdict in found] == ["accept"] * 20

    def test_rows_of_one_template_about_other_things_pass(self) -> None:
        rows = [
            row(f"Return the {kind} of the archive.", f"What does the method archive.Archive.{kind}(index) do?")
            for kind in ("size", "name", "owner", "mode", "parent", "checksum", "comment", "version")
        ]
        assert [verdict.outcome for verdict in verdicts(*rows)] == ["accept"] * len(rows)

    def test_questions_that_share_all_but_their_subject_are_not_one(self) -> None:
        rows = [
            row(f"{dose} mg every six hours, for adults at most {dose * 8} mg a day.", f"What dose of {name} is usual?")
            for name, dose in (("ibuprofen", 400), ("paracetamol", 500), ("naproxen", 250))
        ]
        assert [verdict.outcome for verdict in verdicts(*rows)] == ["accept"] * 3

    def test_what_is_said_of_one_thing_may_be_said_of_its_neighbour(self) -> None:
        template = "Applies an average pooling over a {} signal which is made of several planes of input values."
        rows = [row(template.format(size), f"What does nn.pool{size}(planes) do?") for size in ("1d", "2d", "3d")]
        assert [verdict.outcome for verdict in verdicts(*rows)] == ["accept"] * 3

    def test_a_long_answer_is_a_copy_under_any_question(self) -> None:
        words = " ".join(draft.completion for draft in sample_drafts(6)).split()
        edited = [word if place % 20 else "other" for place, word in enumerate(words)]
        first, second = verdicts(row(" ".join(words)), row(" ".join(edited), "Why is the sky blue?"))
        assert (first.outcome, second.reasons) == ("accept", ("near_duplicate",))

    def test_a_rejected_row_is_no_original(self) -> None:
        bad, good = verdicts(row(f"{ANSWERS[0]}\x00"), row(ANSWERS[0]))
        assert (bad.outcome, good.outcome) == ("reject", "accept")

    def test_an_overlay_leaves_the_index_below_as_it_was(self) -> None:
        index = DuplicateIndex()
        judge([row(ANSWERS[0])], ["row_0"], index.overlay())
        assert len(index) == 0
        assert judge([row(ANSWERS[0])], ["row_1"], index.overlay())[0].outcome == "accept"

    def test_a_row_that_is_forgotten_leaves_no_word_no_digest_and_no_band(self) -> None:
        secret = row("Quuxonymous archives are opened by whoever holds the xylophonesecret of their keeper.", "Whose?")
        index, without = DuplicateIndex(), DuplicateIndex()
        judge([row(ANSWERS[0]), secret, row(ANSWERS[1])], ["row_0", "row_1", "row_2"], index)
        judge([row(ANSWERS[0]), row(ANSWERS[1])], ["row_0", "row_2"], without)
        assert b"xylophonesecret" in pickle.dumps(index)
        index.discard({"row_1"})
        assert b"xylophonesecret" not in pickle.dumps(index)
        assert b"quuxonymous" not in pickle.dumps(index)
        assert index.question_counts(["whose", "what"]) == without.question_counts(["whose", "what"])
        edited = replace(secret, completion=secret.completion.replace("archives", "libraries"))
        found = judge([edited, secret, row(ANSWERS[0])], ["row_3", "row_4", "row_5"], index.overlay())
        assert [one.duplicate_of for one in found] == [None, "row_3", "row_0"]

    def test_words_that_another_row_has_stay(self) -> None:
        index = DuplicateIndex()
        judge([row(ANSWERS[0]), row(ANSWERS[1])], ["row_0", "row_1"], index)
        index.discard({"row_1"})
        words = ANSWERS[0].split()
        (found,) = judge([row(" ".join([*words[:-1], "wrought"]))], ["row_2"], index.overlay())
        assert (found.reasons, found.duplicate_of) == (("near_duplicate",), "row_0")

    def test_an_absorbed_overlay_is_found_as_if_added_at_once(self) -> None:
        index, overlay = DuplicateIndex(), None
        for number, answer in enumerate(ANSWERS[:3]):
            overlay = index.overlay()
            judge([row(answer, f"What does {number} do?")], [f"row_{number}"], overlay)
            index.absorb(overlay)
        (verdict,) = judge([row(ANSWERS[1])], ["row_9"], index.overlay())
        assert (len(index), verdict.duplicate_of) == (3, "row_1")

    def test_equal_rows_against_an_equal_index_get_equal_verdicts(self) -> None:
        drafts = [*sample_drafts(30), *sample_drafts(10)]
        assert verdicts(*drafts) == verdicts(*drafts)


class TestRealRows:
    """Bars for rows of the demonstration's contributors, each row judged after all rows before it.

    The formulaic ones (numpy.polynomial, torch.ao) are among them.
    """

    def test_at_most_two_honest_rows_in_a_thousand_are_called_edited(self) -> None:
        """Of these formulaic ones; of all rows of the installed packages it is fewer than one (docs/concepts)."""
        assert _honest()[0]["near_duplicate"] <= 0.002 * _honest()[0].total()

    def test_the_text_checks_reject_fewer_than_three_honest_rows_in_a_thousand(self) -> None:
        reasons = _honest()[0]
        assert sum(reasons[code] for code in ("noise", "repetition", "too_short")) < 0.003 * reasons.total()

    @pytest.mark.parametrize("method", ["copy", "rephrase"])
    def test_more_than_nine_edited_copies_in_ten_are_caught_and_their_original_named(self, method: str) -> None:
        _, accepted, index = _honest()
        copier = Copier(7, [word for _, draft in accepted[:500] for word in draft.completion.split()])
        sample = random.Random(8).sample(accepted, 600)
        named = 0
        for row_id, draft in sample:
            (verdict,) = judge([getattr(copier, method)(draft)], ["copy"], index.overlay())
            named += verdict.duplicate_of == row_id
        assert named >= 0.9 * len(sample)

    def test_of_500_originals_with_a_tenth_of_their_words_edited_95_in_100_are_named(self) -> None:
        """Recall, of real rows; precision besides: no edit is named as a copy of another row."""
        _, accepted, index = _honest()
        dice, found = random.Random(9), []
        vocabulary = [word for _, draft in accepted[:500] for word in draft.completion.split()]
        for row_id, draft in dice.sample(accepted, 500):
            (verdict,) = judge([tenth_edited(draft, vocabulary, dice)], ["copy"], index.overlay())
            found.append((verdict.duplicate_of, row_id))
        assert sum(named == row_id for named, row_id in found) >= 0.95 * len(found)
        assert sum(named not in (None, row_id) for named, row_id in found) <= 0.01 * len(found)

    def test_unrelated_rows_are_not_called_copies(self) -> None:
        """The control: against the same index, rows about other things pass."""
        index = _honest()[2]
        found = judge(sample_drafts(200), [str(number) for number in range(200)], index.overlay())
        assert sum(verdict.outcome == "accept" for verdict in found) >= 198


class TestMadeRows:
    """The issue's bars on rows with known truth: words that rows share in Zipf's proportions, as a language's."""

    def test_95_in_100_edited_copies_are_named_and_at_most_one_honest_row_in_a_thousand(self) -> None:
        dice = random.Random(10)
        vocabulary = ["".join(dice.choices("bcdfgklmnprstaeiou", k=dice.randint(2, 9))) for _ in range(5_000)]
        originals, honest = made_rows(500, vocabulary, dice), made_rows(2_000, vocabulary, dice)
        index = DuplicateIndex()
        assert {one.outcome for one in judge(originals, [f"row_{n}" for n in range(500)], index)} == {"accept"}
        edited = [tenth_edited(draft, vocabulary, dice) for draft in originals]
        found = [judge([one], ["copy"], index.overlay())[0].duplicate_of for one in edited]
        assert sum(named == f"row_{n}" for n, named in enumerate(found)) >= 0.95 * len(found)
        accused = judge(honest, [f"honest_{n}" for n in range(2_000)], index)
        assert sum(one.duplicate_of is not None for one in accused) <= 0.001 * len(honest)

    def test_rows_of_one_formula_are_not_called_copies(self) -> None:
        found = judge(formula_rows(500, random.Random(11)), [f"row_{n}" for n in range(500)], DuplicateIndex())
        assert sum(one.outcome != "accept" for one in found) <= 0.001 * len(found)

    def test_edited_copies_of_rows_of_one_formula_are_named_where_no_more_rows_are_alike_than_are_compared(
        self,
    ) -> None:
        dice, index = random.Random(11), DuplicateIndex()
        rows = formula_rows(MAX_CANDIDATES, dice)
        judge(rows, [f"row_{n}" for n in range(len(rows))], index)
        edited = [tenth_edited(draft, made_words(50, dice), dice) for draft in rows]
        named = [judge([one], ["copy"], index.overlay())[0].duplicate_of for one in edited]
        assert sum(one == f"row_{n}" for n, one in enumerate(named)) >= 0.95 * len(rows)


def formula_rows(number: int, dice: random.Random) -> list[RowDraft]:
    """As a table becomes: names and values alone are another in each row."""
    return [
        RowDraft(
            prompt=f"What does the setting {name} do?",
            completion=f"The setting {name} says how many parts the {place} keeps before it asks for more. It is"
            f" {dice.randrange(10_000)} unless a file says otherwise, and at most {dice.randrange(10**6)}.",
        )
        for name, place in zip(made_words(number, dice), made_words(number, dice), strict=True)
    ]


def tenth_edited(draft: RowDraft, vocabulary: Sequence[str], dice: random.Random) -> RowDraft:
    words = draft.completion.split()
    for place in dice.sample(range(len(words)), max(1, len(words) // 10)):
        words[place] = dice.choice(vocabulary)
    return RowDraft(prompt=draft.prompt, completion=" ".join(words))


def made_words(number: int, dice: random.Random) -> list[str]:
    return ["".join(dice.choice("bdfgklmnprst") + dice.choice("aeiou") for _ in range(4)) for _ in range(number)]


def made_rows(number: int, vocabulary: Sequence[str], dice: random.Random) -> list[RowDraft]:
    weights = [1 / (place + 1) for place in range(len(vocabulary))]
    every = [dice.choices(vocabulary, weights, k=75) for _ in range(number)]
    return [RowDraft(prompt=" ".join(words[:12]), completion=" ".join(words[12:])) for words in every]


@cache
def _honest() -> tuple[Counter[str], list[tuple[str, RowDraft]], DuplicateIndex]:
    index, reasons, accepted = DuplicateIndex(), Counter[str](), []
    for drafts in map(module_drafts, HONEST):
        found = judge(drafts, [draft.source for draft in drafts], index)
        reasons.update((verdict.reasons or ("accept",))[0] for verdict in found)
        accepted += [(d.source, d) for d, verdict in zip(drafts, found, strict=True) if verdict.outcome == "accept"]
    return reasons, accepted, index
