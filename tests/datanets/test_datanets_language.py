"""Languages that a Datanet takes alone."""

from pathlib import Path

import pytest
from datanet_samples import key_of, open_datanets

from openledger.core.errors import InvalidInput
from openledger.core.values import RowDraft
from openledger.datanets.contribution import sign_contribution
from openledger.datanets.dedupe import DuplicateIndex
from openledger.datanets.gate import Rules, judge
from openledger.datanets.language import KNOWN_LANGUAGES, _identifier, is_in
from openledger.datanets.terms import Terms

ENGLISH = "The older workers of a hive collect nectar during the summer."
SAID = {
    "de": "Die älteren Arbeiterinnen eines Volkes sammeln im Sommer den Nektar.",
    "fr": "Les ouvrières les plus âgées de la ruche récoltent le nectar en été.",
    "es": "Las obreras más viejas de la colmena recogen el néctar durante el verano.",
    "it": "Le operaie più anziane dell'alveare raccolgono il nettare durante l'estate.",
    "pl": "Starsze robotnice z ula zbierają nektar przez całe lato na łące.",
    "ru": "Старшие рабочие пчёлы собирают нектар летом на лугу возле дома.",
}


@pytest.mark.parametrize("language", SAID)
def test_another_language_is_told_from_english_and_its_own_is_taken(language: str) -> None:
    assert not is_in(SAID[language], ("en",))
    assert is_in(SAID[language], (language, "en"))


def test_every_language_that_terms_may_name_is_one_of_the_model() -> None:
    assert set(_identifier().labels) >= KNOWN_LANGUAGES


def test_the_gate_rejects_other_languages_only_where_it_is_asked_to() -> None:
    rows = [
        RowDraft(prompt=f"Who? {n}", completion=text)
        for n, text in enumerate((ENGLISH, SAID["de"], "Ja, das sind sie."))
    ]
    for rules, expected in ((Rules(), [(), (), ()]), (Rules(languages=("en",)), [(), ("wrong_language",), ()])):
        verdicts = judge(rows, ["a", "b", "c"], DuplicateIndex(), rules=rules)
        assert [verdict.reasons for verdict in verdicts] == expected


def test_a_datanet_asks_by_its_terms(tmp_path: Path) -> None:
    datanets = open_datanets(tmp_path)
    row = RowDraft(prompt="Wer sammelt den Nektar?", completion=SAID["de"])
    datanets.set_terms("docs", Terms(languages=("en-GB",), only_languages=True), by="acct_owner")
    contribution = sign_contribution(key_of("ada"), "docs", [row], "1")
    assert datanets.preview(contribution)[0].reasons == ("wrong_language",)
    datanets.set_terms("docs", Terms(languages=("en", "de"), only_languages=True), by="acct_owner")
    assert datanets.preview(contribution)[0].outcome == "accept"
    datanets.close()


@pytest.mark.parametrize("languages", [(), ("tlh",), ("en", "pcm")])
def test_languages_that_the_gate_cannot_tell_apart_are_refused(languages: tuple[str, ...]) -> None:
    with pytest.raises(InvalidInput) as caught:
        Terms(languages=languages, only_languages=True)
    assert (caught.value.code, caught.value.param) == ("invalid_terms", "languages")
