"""The explorer page: what it carries (read back in Python), and what it does (driven in a headless browser)."""

from __future__ import annotations

import base64
import html
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_array

from shared.config import UserError
from word_factors.embedding import Embedding
from word_factors.explore import PageContent, page_content, write_page

HOSTILE = (
    "</script>",
    "<b>",
    '"quoted"',
    "it's",
    "<!--",
    "&amp;",
    "naïve",
    "日本",
    "__proto__",
    "{{content}}",
    "\\u003c",
)
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def embedding_of(words: tuple[str, ...], counts: np.ndarray | None = None, dim: int = 4) -> Embedding:
    vectors = np.random.default_rng(0).standard_normal((len(words), dim)).astype(np.float32)
    zipf = 1e4 / (np.arange(len(words), dtype=np.float64) + 1)
    return Embedding(words, vectors, zipf if counts is None else counts, "corpus", "toy")


def unit_columns(dim: int, factors: int) -> np.ndarray:
    phi = np.random.default_rng(1).standard_normal((dim, factors))
    return phi / np.linalg.norm(phi, axis=0)


def embedded(page: Path) -> dict[str, Any]:
    """The page's data, as a browser would read it: the first script element that holds JSON."""

    class Reader(HTMLParser):
        found, inside = "", False

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.inside = tag == "script" and ("type", "application/json") in attrs

        def handle_endtag(self, tag: str) -> None:
            self.inside = False

        def handle_data(self, data: str) -> None:
            self.found += data if self.inside else ""

    reader = Reader()
    reader.feed(page.read_text(encoding="utf-8"))
    return json.loads(reader.found)


def array(text: str, kind: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype=kind)


def decoded(page: Path) -> tuple[list[str], csr_array, np.ndarray, np.ndarray]:
    """(words, codes, weights, residual) of a page."""
    data = embedded(page)

    def log_scale(part: dict[str, Any]) -> np.ndarray:
        return part["low"] * np.exp(array(part["data"], "<u2") * part["step"])

    indices = array(data["indices"], "<u2")
    shape = (len(data["words"]), len(data["names"]))
    codes = csr_array((log_scale(data["values"]), indices, array(data["indptr"], "<u4")), shape=shape)
    return data["words"], codes, log_scale(data["weights"]), array(data["residual"], "<u2") / 65535


# -- what the page carries --------------------------------------------------------------------------------------------


def test_words_codes_and_residuals_come_back_from_the_page(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    size, factors = 300, 700
    codes = csr_array(np.zeros((size, factors)) + rng.binomial(1, 0.02, (size, factors)))
    codes.data = np.exp(rng.uniform(np.log(1e-6), np.log(3.0), codes.nnz))  # six orders of magnitude
    residual = rng.uniform(0, 1, size)
    embedding = embedding_of(tuple(f"word{number}" for number in range(size)))
    content = page_content(embedding, unit_columns(4, factors), codes, residual=residual)
    write_page(tmp_path / "page.html", content)
    words, found, weights, left = decoded(tmp_path / "page.html")
    assert tuple(words) == embedding.words
    assert np.array_equal(found.indptr, codes.indptr)
    assert np.array_equal(found.indices, codes.indices)
    np.testing.assert_allclose(found.data, codes.data, rtol=2e-4)
    np.testing.assert_allclose(weights, np.sqrt(embedding.counts), rtol=2e-4)
    np.testing.assert_allclose(left, residual, atol=1e-5)


def test_page_of_8000_words_with_12_factors_is_below_one_and_a_half_megabytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    size, factors = 8000, 1000
    columns = np.concatenate([rng.choice(factors, 12, replace=False) for _ in range(size)])
    codes = csr_array((rng.exponential(0.1, 12 * size), columns, np.arange(size + 1) * 12), shape=(size, factors))
    embedding = embedding_of(tuple(f"longish{number}" for number in range(size)))
    content = page_content(
        embedding, unit_columns(4, factors), codes, residual=np.full(size, 0.4),
        labels=np.arange(factors) % 175, reliability=rng.uniform(0, 1, factors),
    )  # fmt: skip
    written = write_page(tmp_path / "page.html", content)
    assert written == (tmp_path / "page.html").stat().st_size < 1.5e6


def test_hostile_words_names_and_titles_stay_text(tmp_path: Path) -> None:
    embedding = embedding_of(HOSTILE)
    codes = csr_array(np.eye(len(HOSTILE)))
    title = "</title><script>alert(1)</script>{{content}}"
    content = page_content(
        embedding, unit_columns(4, len(HOSTILE)), codes, residual=np.zeros(len(HOSTILE)), names=HOSTILE,
        title=title, details={"<i>": "</script>"},
    )  # fmt: skip
    write_page(tmp_path / "page.html", content)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    data = embedded(tmp_path / "page.html")
    assert data["words"] == data["names"] == list(HOSTILE)
    assert data["title"] == title
    assert data["details"] == [["<i>", "</script>"]]
    assert page.count("</script>") == 2  # the data and the program, each closed once
    assert "<" not in page.split('id="content">')[1].split("</script>")[0]
    assert "<b>" not in page
    assert "innerHTML" not in page
    assert f"<title>{html.escape(title)}</title>" in page


def test_half_a_surrogate_pair_does_not_break_the_page(tmp_path: Path) -> None:
    words = ("good", "bad\udc80")
    content = page_content(embedding_of(words), unit_columns(4, 2), csr_array(np.eye(2)), residual=np.zeros(2))
    write_page(tmp_path / "page.html", content)
    assert decoded(tmp_path / "page.html")[0] == ["good", "bad\\udc80"]


def test_page_is_one_file_without_any_outside_reference(tmp_path: Path) -> None:
    content = page_content(embedding_of(("a", "b")), unit_columns(4, 2), csr_array(np.eye(2)), residual=np.zeros(2))
    write_page(tmp_path / "deep" / "page.html", content)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["page.html"]
    page = (tmp_path / "deep" / "page.html").read_text(encoding="utf-8")
    page = re.sub(r'(id="content">).*?(</script>)', r"\1\2", page)  # base64 may hold any letters
    for outside in (
        r"https?:",
        r"\bsrc=",
        r"href=\"(?!#)",
        r"@import",
        r"url\(",
        r"\bfetch\(",
        r"XMLHttpRequest",
        r"<link",
    ):
        assert not re.search(outside, page), outside
    assert not re.search(r"[\"'(=]\s*//\w", page)  # addresses that take their scheme from the page
    assert "default-src 'none'" in page


def test_words_are_in_order_of_frequency_and_max_words_keeps_the_most_frequent() -> None:
    words, counts = ("rare", "common", "middle"), np.array([1.0, 100.0, 10.0])
    codes = csr_array(np.array([[3.0, 0.0], [1.0, 0.0], [0.0, 2.0]]))
    content = page_content(
        embedding_of(words, counts), unit_columns(4, 2), codes, residual=np.array([0.1, 0.2, 0.3]), max_words=2
    )
    assert content.words == ("common", "middle")
    assert content.codes.toarray().tolist() == [[1.0, 0.0], [0.0, 2.0]]
    assert content.residual.tolist() == [0.2, 0.3]
    # Names and use are of the whole vocabulary: the rare word is not on the page, and still the factor's first.
    assert content.names == ("rare, common", "middle")
    assert content.use.tolist() == [2 / 3, 1 / 3]


def test_names_are_three_top_words_with_ties_broken_by_frequency() -> None:
    words, counts = ("w0", "w1", "w2", "w3"), np.array([1.0, 4.0, 3.0, 2.0])
    codes = csr_array(np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [2.0, 0.0]]))
    content = page_content(embedding_of(words, counts), unit_columns(4, 2), codes, residual=np.zeros(4))
    assert content.names == ("w3, w1, w2", "never active")


def test_neighbours_are_the_largest_cosines_between_columns() -> None:
    phi = unit_columns(4, 9)
    content = page_content(embedding_of(("a",)), phi, csr_array((1, 9)), residual=np.ones(1))
    for factor in range(9):
        cosines = phi.T @ phi[:, factor]
        others = sorted((other for other in range(9) if other != factor), key=lambda other: -cosines[other])
        assert content.neighbours[factor].tolist() == others[:6]
        np.testing.assert_allclose(content.cosines[factor], cosines[others[:6]])


def test_codes_that_are_all_zero_still_make_a_page(tmp_path: Path) -> None:
    content = page_content(embedding_of(("a", "b")), unit_columns(4, 3), csr_array((2, 3)), residual=np.ones(2))
    write_page(tmp_path / "page.html", content)
    assert decoded(tmp_path / "page.html")[1].nnz == 0


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"codes": csr_array((3, 2))}, "codes"),
        ({"codes": csr_array(np.array([[1.0, -1.0], [0.0, 1.0]]))}, "codes"),
        ({"codes": csr_array(np.array([[1.0, np.nan], [0.0, 1.0]]))}, "codes"),
        ({"codes": csr_array((2, 65_537))}, "codes"),
        ({"phi": unit_columns(4, 3)}, "phi"),
        ({"phi": unit_columns(5, 2)}, "phi"),
        ({"residual": np.zeros(3)}, "residual"),
        ({"residual": np.array([0.0, -0.1])}, "residual"),
        ({"names": ["one"]}, "names"),
        ({"labels": [0]}, "labels"),
        ({"labels": [0, -1]}, "labels"),
        ({"reliability": [0.5, 0.5, 0.5]}, "reliability"),
        ({"top": 0}, "top"),
        ({"max_words": 0}, "max_words"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused_by_name(changed: dict[str, Any], field: str) -> None:
    arguments: dict[str, Any] = {"phi": unit_columns(4, 2), "codes": csr_array(np.eye(2)), "residual": np.zeros(2)}
    with pytest.raises(UserError, match=field):
        page_content(embedding_of(("a", "b")), **{**arguments, **changed})


def test_a_folder_as_page_is_refused(tmp_path: Path) -> None:
    content = page_content(embedding_of(("a",)), unit_columns(4, 1), csr_array(np.eye(1)), residual=np.zeros(1))
    with pytest.raises(UserError, match="--out"):
        write_page(tmp_path, content)


# -- what the page does, in a browser ---------------------------------------------------------------------------------

WORDS = ("king", "queen", "King", "kingdom", "Viking", "woman", "banana", "</script>", "<b>", "ban,ana", "lonely")
CODES = np.zeros((len(WORDS), 6))
CODES[0, [0, 2, 4]] = 0.5, 0.25, 0.06  # king
CODES[1, [0, 1]] = 0.3, 0.6  # queen
CODES[2, 0] = 0.1  # King
CODES[3, [0, 3]] = 0.4, 0.1  # kingdom
CODES[4, 3] = 0.2  # Viking
CODES[5, 1] = 0.7  # woman
CODES[6, 5] = 0.9  # banana
CODES[7, [2, 5]] = 0.2, 0.9  # </script>
CODES[8, 2] = 0.15  # <b>
CODES[9, 5] = 0.1  # ban,ana
RESIDUAL = np.linspace(0.2, 0.8, len(WORDS))
LABELS = np.array([0, 0, 1, 1, 0, 2])
RELIABILITY = np.array([0.97, 0.41, np.nan, 0.8, 0.7, 0.6])

# Runs in the page after it. `steps` gets helpers, and what it returns is left in the page for the test to read.
DRIVER = """
<script>
(async () => {
  const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];
  const texts = (selector, inside) => all(selector, inside).map(element => element.textContent);
  const settled = () => new Promise(done => setTimeout(done, 60));
  const box = document.querySelector("#query");
  const type = async text => {
    box.focus(); box.value = text;
    box.dispatchEvent(new Event("input", { bubbles: true }));
    await settled();
  };
  const key = async name => {
    const event = new KeyboardEvent("keydown", { key: name, bubbles: true, cancelable: true });
    // As in a browser: an Enter that nobody takes submits the form.
    if (box.dispatchEvent(event) && name === "Enter") document.querySelector("#search").requestSubmit();
    await settled();
  };
  const click = async element => { element.click(); await settled(); };
  const named = (selector, text, inside) => all(selector, inside).find(element => element.textContent === text);
  const report = {};
  try { await (async () => { STEPS })(); } catch (error) { report.thrown = String(error.stack || error); }
  report.errors = window.caught;
  const out = document.createElement("pre");
  out.id = "report"; out.textContent = JSON.stringify(report);
  document.body.append(out);
})();
</script>
"""
CATCHER = """<script>
window.caught = [];
addEventListener("error", event => window.caught.push(event.message));
addEventListener("securitypolicyviolation", event => window.caught.push("policy: " + event.violatedDirective));
console.error = (...parts) => window.caught.push(parts.join(" "));
</script>"""


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that prints a page, given its address, as the page's scripts leave it."""
    chosen = os.environ.get("CHROME") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if chosen:
        command = [chosen, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-extensions"]
        profile = tmp_path_factory.mktemp("profile")
        return [*command, f"--user-data-dir={profile}", "--virtual-time-budget=20000", "--dump-dom"]
    command = [sys.executable, str(Path(__file__).parent / "chromium.py")]
    # Its wheel is for common systems only, and wants libraries of the desktop (libnss3, libegl1).
    trial = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=60)
    if trial.returncode:
        reason = trial.stderr.strip().rpartition("\n")[2]
        pytest.skip(
            f"needs Chrome or Chromium (on PATH or in CHROME), or PySide6-WebEngine, which fails here: {reason}"
        )
    return command


def toy_content(**changed: Any) -> PageContent:
    arguments: dict[str, Any] = {"residual": RESIDUAL, "labels": LABELS, "reliability": RELIABILITY, "title": "Toy"}
    return page_content(embedding_of(WORDS), unit_columns(4, 6), csr_array(CODES), **{**arguments, **changed})


def drive(browser: list[str], folder: Path, content: PageContent, fragment: str, steps: str) -> dict[str, Any]:
    """Open the page at `fragment`, run `steps` in it, and return what they put into `report`."""
    page = folder / "page.html"
    write_page(page, content)
    text = page.read_text(encoding="utf-8").replace("<title>", CATCHER + "<title>", 1)
    head, tail = text.rsplit("</body>", 1)
    page.write_text(head + DRIVER.replace("STEPS", steps) + "</body>" + tail, encoding="utf-8")
    done = subprocess.run([*browser, page.as_uri() + fragment], capture_output=True, text=True, timeout=60)
    found = re.search(r'<pre id="report">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, f"the page left no report\n{done.stderr[-2000:]}\n{done.stdout[-500:]}"
    report = json.loads(html.unescape(found[1]))
    assert "thrown" not in report, report["thrown"]
    assert report["errors"] == []
    return report


def test_bars_of_a_word_are_its_code_in_order_with_shares_and_residual(browser: list[str], tmp_path: Path) -> None:
    report = drive(
        browser, tmp_path, toy_content(), "#word=king,queen,QUEEN,kinh,%3C%2Fscript%3E,lonely",
        """
        report.cards = all(".card").map(card => ({
          head: card.querySelector("h2").textContent, unknown: card.classList.contains("unknown-word"),
          names: texts(".part .factor", card), alpha: texts(".part .alpha", card), share: texts(".part .share", card),
          shared: all(".part", card).map(part => part.classList.contains("shared")), marks: texts(".part .r", card),
          faded: all(".part .r", card).map(mark => mark.classList.contains("unknown")),
          widths: all(".part .fill", card).map(fill => parseFloat(fill.style.width)),
          left: texts(".left .share", card),
          leftWidth: all(".left .fill", card).map(fill => parseFloat(fill.style.width)),
          near: texts(".nearest .word", card), spellings: texts(".chips .word", card),
        }));
        report.box = box.value; report.title = document.title;
        await click(named(".unknown-word .word", "king")); report.corrected = decodeURIComponent(location.hash);
        """,
    )  # fmt: skip
    king, queen, upper, unknown, script, lonely = report["cards"]
    names = toy_content().names
    assert king["names"] == [names[0], names[2], names[4]]
    assert king["alpha"] == ["0.500", "0.250", "0.0600"]
    assert king["share"] == ["61.7 %", "30.9 %", "7.41 %"]
    # Factor 2 is active in </script> as well, factor 4 in king only.
    assert king["shared"] == [True, True, False]
    assert queen["names"] == [names[1], names[0]]
    assert queen["share"] == ["66.7 %", "33.3 %"]
    assert queen["shared"] == [False, True]
    # QUEEN is not a word here; the same in another case is.
    assert upper["head"] == "queen"
    # One scale for the bars of all words: a length is proportional to the printed percentage.
    scale = 100 * 0.9 / 1.1  # largest share on view: factor 5 in </script>
    np.testing.assert_allclose(king["widths"], np.array([50, 25, 6]) / 0.81 / scale * 100, atol=0.02)
    np.testing.assert_allclose(king["leftWidth"], [20 / scale * 100], atol=0.02)
    assert [card["left"] for card in (king, queen, lonely)] == [["20.0 %"], ["26.0 %"], ["80.0 %"]]
    assert king["marks"] == ["r 0.97", "r ?", "r 0.70"]
    assert king["faded"] == [False, True, False]
    assert lonely["names"] == []
    # Nearest by cosine of the codes, computed here densely.
    norms = np.linalg.norm(CODES, axis=1)
    cosines = CODES @ CODES[0] / np.where(norms == 0, np.inf, norms) / norms[0]
    expected = sorted((row for row in range(1, len(WORDS)) if cosines[row] > 0), key=lambda row: -cosines[row])
    assert king["near"] == [WORDS[row] for row in expected]
    assert script["head"] == "</script>"
    assert unknown["unknown"]
    assert unknown["spellings"][:2] == ["king", "King"]
    assert report["box"] == "king, queen, QUEEN, kinh, </script>, lonely"
    assert report["title"].endswith("Toy")
    assert report["corrected"] == "#word=king,queen,QUEEN,king,</script>,lonely"


def test_typing_suggests_and_keys_choose(browser: list[str], tmp_path: Path) -> None:
    report = drive(
        browser, tmp_path, toy_content(), "",
        """
        const options = () => texts("#suggestions [role=option]");
        await type("king"); report.king = options(); report.expanded = box.getAttribute("aria-expanded");
        await key("ArrowDown"); await key("ArrowDown"); await key("ArrowDown");
        report.active = document.getElementById(box.getAttribute("aria-activedescendant")).textContent;
        report.selected = texts("#suggestions [aria-selected=true]");
        await key("Enter"); report.chosen = texts("h2"); report.hash = location.hash;
        await type("King"); report.King = options();
        await key("Escape"); report.closed = document.querySelector("#suggestions").hidden;
        await type("king, wo"); report.second = options();
        await key("ArrowDown"); await key("Enter"); report.two = texts("h2"); report.box = box.value;
        await type("zzz"); report.none = options();
        await type("queen woman"); await key("Enter"); report.spaces = texts("h2");
        await type("ban,ana"); await key("Enter"); report.comma = texts("h2");
        await type("banaan"); await key("Enter"); report.misspelt = texts("h2");
        report.spellings = texts(".chips .word");
        await click(named(".chips .word", "banana")); report.mended = texts("h2");
        await type("<b"); report.markup = options();
        await key("ArrowDown"); await key("Enter"); report.bold = texts("h2");
        history.back(); await settled(); report.back = texts("h2"); report.backBox = box.value;
        """,
    )  # fmt: skip
    # Itself, the same in another case, what starts with it, what holds it.
    assert report["king"] == ["king", "King", "kingdom", "Viking"]
    assert report["King"] == ["King", "king", "kingdom", "Viking"]
    assert report["expanded"] == "true"
    assert report["active"] == "kingdom"
    assert report["selected"] == ["kingdom"]
    assert report["chosen"] == ["kingdom"]
    assert report["hash"] == "#word=kingdom"
    assert report["closed"]
    assert report["second"] == ["woman"]
    assert report["two"] == ["king", "woman"]
    assert report["box"] == "king, woman"
    assert report["none"] == []
    assert report["spaces"] == ["queen", "woman"]
    assert report["comma"] == ["ban,ana"]
    assert report["misspelt"] == ["banaan"]
    assert report["spellings"][0] == "banana"
    assert report["mended"] == ["banana"]
    assert report["markup"] == ["<b>"]
    assert report["bold"] == ["<b>"]
    assert report["back"] == ["banana"]
    assert report["backBox"] == "banana"


def test_clicks_lead_from_word_to_factor_to_group_and_back(browser: list[str], tmp_path: Path) -> None:
    report = drive(
        browser, tmp_path, toy_content(top=3), "#word=king",
        """
        await click(all(".part .factor")[0]);
        report.hash = location.hash; report.head = texts("h2"); report.facts = texts("dd");
        const list = () => ({ words: texts(".words .word"), alpha: texts(".words .numbers") });
        report.first = list(); await click(named("button", "more (1)")); report.all = list();
        report.together = texts("#together .line"); report.siblings = texts("#siblings .factor");
        await click(named(".words .word", "queen")); report.word = texts("h2");
        history.back(); await settled(); report.back = location.hash;
        history.back(); await settled(); report.start = texts("h2");
        await click(document.querySelector("#by-groups")); report.groupHash = location.hash;
        report.groups = all(".part").map(part => texts(".group, .alpha, .share", part));
        report.pressed = document.querySelector("#by-groups").getAttribute("aria-pressed");
        await click(all(".part .group")[0]);
        report.group = location.hash; report.groupWords = list(); report.members = texts(".two .factor");
        location.hash = "#factor=5"; await settled(); report.ties = list();
        location.hash = "#factor=99"; await settled(); report.missing = document.querySelector("#view").textContent;
        report.random = [];
        for (let i = 0; i < 7; i++) {
          await click(document.querySelector("#random"));
          report.random.push(Number(location.hash.split("=")[1]));
        }
        """,
    )  # fmt: skip
    names = toy_content().names
    assert report["hash"] == "#factor=0"
    assert report["head"] == [names[0]] == ["king, kingdom, queen"]
    assert report["facts"][:3] == ["0", f"{100 * 4 / 11:.1f} % of words", "r 0.97"]
    assert report["first"] == {"words": ["king", "kingdom", "queen"], "alpha": ["0.500", "0.400", "0.300"]}
    assert report["all"] == {
        "words": ["king", "kingdom", "queen", "King"],
        "alpha": ["0.500", "0.400", "0.300", "0.100"],
    }
    weights = np.sqrt(embedding_of(WORDS).counts)
    together = (CODES * weights[:, None]).T @ CODES
    together /= np.sqrt(np.outer(np.diag(together), np.diag(together)))
    expected = sorted((j for j in range(1, 6) if together[0, j] > 0), key=lambda j: -together[0, j])
    assert len(report["together"]) == len(expected) == 4
    for line, factor in zip(report["together"], expected, strict=True):
        assert line.startswith(names[factor])
        assert line.endswith(f"{together[0, factor]:.2f}")
    # Siblings: the group of factor 0, most used first.
    assert report["siblings"] == [names[1], names[4]]
    assert report["word"] == ["queen"]
    assert report["back"] == "#factor=0"
    assert report["start"] == ["king"]
    # king: group 0 holds 0.5 + 0.06, group 1 holds 0.25.
    assert report["groupHash"] == "#word=king&by=groups"
    assert [part[1:] for part in report["groups"]] == [["0.560", "69.1 %"], ["0.250", "30.9 %"]]
    assert report["groups"][0][0] == "king / woman / king"
    assert report["pressed"] == "true"
    assert report["group"] == "#group=0"
    assert report["groupWords"] == {"words": ["queen", "woman", "king"], "alpha": ["0.900", "0.700", "0.560"]}
    assert report["members"] == [names[0], names[1], names[4]]
    # banana and </script> tie at 0.9: the more frequent first.
    assert report["ties"]["words"] == ["banana", "</script>", "ban,ana"]
    assert "no factor 99" in report["missing"]
    # Random, but the same for every reader, and each factor once before any comes again.
    assert report["random"][:6] == np.random.default_rng(0).permutation(6).tolist()
    assert report["random"][6] == report["random"][0]


def test_table_sorts_and_filters_and_a_page_without_groups_has_no_toggle(browser: list[str], tmp_path: Path) -> None:
    report = drive(
        browser, tmp_path, replace(toy_content(labels=None), details={"dictionary": "<b>bold</b>"}), "#",
        """
        report.start = texts("dd"); report.examples = all(".card h3").length; report.elements = all("main b").length;
        location.hash = "#table"; await settled();
        const ids = () => texts("tbody tr td:first-child").map(Number);
        const sorted = () => all("th").map(head => head.getAttribute("aria-sort")).filter(sort => sort !== "none");
        report.ids = ids();
        await click(all("th button")[2]); report.use = ids(); report.sort = sorted();
        await click(all("th button")[3]); report.reliability = ids();
        await click(all("th button")[3]); report.opposite = ids(); report.opposed = sorted();
        const filter = document.querySelector("#filter");
        filter.value = "WOMAN"; filter.dispatchEvent(new Event("input")); report.filtered = texts("tbody .factor");
        await click(all("tbody .factor")[0]); history.back(); await settled(); report.kept = texts("tbody .factor");
        location.hash = "#word=king&by=groups"; await settled();
        report.toggles = all("#by-groups").length; report.names = texts(".part .factor");
        """,
    )  # fmt: skip
    names = toy_content().names
    assert report["start"] == [str(len(WORDS)), "6", "<b>bold</b>"]
    assert report["examples"] == 6
    assert report["elements"] == 0
    assert report["ids"] == [0, 1, 2, 3, 4, 5]
    use = (CODES > 0).sum(0)
    assert report["use"] == sorted(range(6), key=lambda j: (-use[j], j))
    assert report["sort"] == ["descending"]
    assert report["reliability"] == [0, 3, 4, 5, 1, 2]  # unknown last
    assert report["opposite"] == [2, 1, 5, 4, 3, 0]
    assert report["opposed"] == ["ascending"]
    assert report["filtered"] == report["kept"] == [names[1]]
    assert report["toggles"] == 0
    assert report["names"] == [names[0], names[2], names[4]]
