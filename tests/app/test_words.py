"""What the app shows in other languages: the locales are served, and English is what the schemas say."""

import pytest

from tests.support import words

pytestmark = pytest.mark.app


def test_english_is_what_the_schemas_say(sim):
    found = words.node_defs(sim.object_info())
    assert words.load(words.ENGLISH, words.NODE_DEFS) == found, "run: python -m tests.support.words"


def test_the_app_serves_every_language(sim):
    served = sim.get("/i18n")
    for language in (words.ENGLISH, *words.TRANSLATED):
        for path, text in words.flat(words.load(language, words.NODE_DEFS)).items():
            place = served[language]["nodeDefs"]
            for key in path:
                place = place[key]
            assert place == text
