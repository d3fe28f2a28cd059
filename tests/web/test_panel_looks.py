"""What the panel looks like, over a made-up run: nothing cut off, nothing too pale, all of it by the keyboard.

The README's pictures come from here. On purpose changed? Delete them in assets/, run this test once, and look at both.
"""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from tests.support.devkit import paths

pytestmark = pytest.mark.web

PICTURES = {"panel-cut": "panel.png", "node-cut": "node.png"}
PICTURE_MAX_BYTES = 150_000
FLIGHT, USE, STALL = "47,168,138", "242,177,52", "229,72,77"


@pytest.mark.parametrize(
    ("theme", "vue", "width", "locale"),
    [("dark", False, 1600, "en"), ("light", True, 1600, "zh"), ("light", False, 700, "en"), ("dark", True, 1600, "ja")],
)
def test_looks(play, theme, vue, width, locale):
    settings = {"Comfy.ColorPalette": theme, "Comfy.Locale": locale}
    name = f"panel-{theme}-{'vue' if vue else 'canvas'}-{width}-{locale}"
    played = play("panel_looks.mjs", name, vueNodes=vue, width=width, settings=settings)

    judge(played, locale)
    if (theme, vue, width) == ("dark", False, 1600):
        keep_pictures(Path(played["screenshot"]))


def judge(played: dict, locale: str):
    assert played["found"] == [], "\n".join(played["found"])
    assert set(played["states"]) == {"resident", "arriving", "in_use", "in_flight", "used", "offloaded"}
    assert {FLIGHT, USE, STALL} <= set(played["drawn"]), "copies, compute or stalls are not drawn"
    assert played["keyboard"]["tab"] == "lwo-tab-overview" and played["keyboard"]["view"]
    assert "double_blocks.1 " in played["keyboard"]["readout"] and played["keyboard"]["outline"] == "solid"
    assert played["keyboard"]["movedPx"] == 0, "the row under the pointer moves"
    assert "text_encoder" in played["focusedNumbers"] and "3.2 %" in played["focusedNumbers"]
    table = json.loads((paths.ROOT / "web" / "words" / f"{locale}.json").read_text(encoding="utf-8"))
    assert played["onNode"] == table["node.not_run"]
    share = table["memory.share"].format(held="1.23 GB", limit="3.20 GB")
    assert table["setting.workflow_budget_bytes"] in played["shares"] and share in played["shares"].splitlines()
    lights = [lightness(colour) for colour, _ in played["shades"]]
    for one, next_one in zip(lights, [*lights[1:], lights[0]]):
        assert max(one, next_one) + 0.05 >= 1.7 * (min(one, next_one) + 0.05), played["shades"]
    assert all("inset" in edge for _, edge in played["shades"]), "no edge between neighbours"
    reasons_are_in(locale, played["reasons"], table)
    stored = table["explain.stored"].format(size="3.98 GB", device="cuda:1")
    early = table["explain.early"].format(early=12, copies=1216)
    times = (table["explain.measured"], table["explain.assumed"].format(count=24))
    assert played["quiet"] == [line for of_times in times for line in (of_times, stored, early)]
    assert [line.split(" ")[0] for line in played["resolved"]] == ["dit", "text_encoder", "vae"]
    assert "auto → layerwise" in played["resolved"][0] and played["resolved"][0].endswith("5.93 GB")
    assert table["node.used_of"].format(used="1.33 GB", budget="1.40 GB") in played["resolved"][1]
    assert len(played["toasts"]) == 1, played["toasts"]
    toast = played["toasts"][0]
    assert "close other programs" in toast and "set less" in toast, "what there is to do, in one message"
    assert "less than planned" not in toast, "a warning without a remedy is on the node only"
    assert played["errors"] == [] and played["external"] == []


def lightness(colour: str) -> float:
    """Of `rgb(…)` or `color(srgb …)`: the relative luminance of WCAG 2."""
    most = 1 if colour.startswith("color(") else 255
    parts = [float(part) / most for part in re.findall(r"[\d.]+", colour)[:3]]
    red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def reasons_are_in(locale: str, reasons: list[str], table: dict[str, str]):
    """Reasons, a warning with what to do, and why a component is left to the app: all in the language of the page."""
    assert len(reasons) == 7
    for code in ("planner_decides_ring", "do_free_memory", "source_node"):
        assert any(table[f"why.{code}"] in text for text in reasons), code
    for text in reasons:
        words = set(re.findall("[A-Za-z]{3,}", text)) - {"ComfyUI"}
        assert bool(words) == (locale == "en"), text


def keep_pictures(screenshot: Path):
    missing = {cut: asset for cut, asset in PICTURES.items() if not (paths.ROOT / "assets" / asset).is_file()}
    for cut, asset in missing.items():
        picture = Image.open(screenshot.with_name(f"{screenshot.stem}-{cut}.png")).convert("RGB")
        (paths.ROOT / "assets").mkdir(exist_ok=True)
        picture.quantize(96, dither=Image.Dither.NONE).save(paths.ROOT / "assets" / asset, optimize=True)
    assert not missing, f"{', '.join(missing.values())} in assets/ was missing; made anew: look at it and check it in"


def test_pictures_of_the_readme_are_small_and_there():
    readme = (paths.ROOT / "README.md").read_text(encoding="utf-8")
    for asset in PICTURES.values():
        assert f"assets/{asset}" in readme
        assert (paths.ROOT / "assets" / asset).stat().st_size <= PICTURE_MAX_BYTES
