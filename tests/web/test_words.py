"""Our words in the app's interface: node texts in each language, and the help page beside the graph."""

import pytest

from tests.support import words

pytestmark = pytest.mark.web

NODE = "LayerwiseOffloadDiffusionModelLoader"


@pytest.mark.parametrize("language", (words.ENGLISH, *words.TRANSLATED))
def test_the_node_and_its_help_page_are_shown_in_the_language(play, language):
    main, settings = (words.load(language, f"{file}.json") for file in ("main", "settings"))
    task = {"settings": {"Comfy.Locale": language}, "type": NODE, "vueNodes": True}
    shown = play("words.mjs", f"words-{language}", category="Layerwise Offload", **task)
    expected = words.load(language, words.NODE_DEFS)[NODE]
    assert shown["node"]["title"] == expected["display_name"]
    assert shown["node"]["inputs"] == {name: entry["name"] for name, entry in expected["inputs"].items()}
    assert expected["inputs"]["placement"]["name"] in shown["page"], "the widget's label is not to be seen"
    assert shown["help"].startswith(expected["display_name"]), "a help page of another language, or none"
    assert all(name in shown["help"] for name in expected["inputs"])
    for said in (*(entry["name"] for entry in settings.values()), *main["settingsCategories"].values()):
        assert said in shown["settings"], f"the settings dialog does not say {said}"
    # the app asks for the page in the language first, also in English, whose page is the one without a language
    assert [error for error in shown["errors"] if not error.endswith(f"{NODE}/en.md")] == []
    assert shown["external"] == []
