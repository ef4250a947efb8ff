"""What people read is plain English: some words and phrases must not return, and no sentence is long."""

import io
import json
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# The changelog is not among the pages: it quotes old names.
FOLDERS = ("notebooks", "helpers", "workflow", ".github")
PAGES = [ROOT / "README.md", *(path for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.md")))]
MODULES = [path for folder in ("helpers", "workflow") for path in sorted((ROOT / folder).rglob("*.py"))]
MOST_WORDS = 30

BETTER = {  # what must not return, in any case of letters: what to write instead
    r"(a|one) (row|line|marker?|point|column|panel|file|job|process|bar|curve|figure) an? \w+": "one ... per",
    r"(tells?|told|telling)": "report, show, distinguish",
    r"(method|model|suite|notebook|function|command|table|original|gold)s? (knows?|asks?|wants?|says)": "reports",
    r"asks for": "requires, seeks",
    r"asked to": "expected to",
    r"by heart": "memorise",
    r"doubles? of": "shadow model",
    r"gold unseen": "without access to Gold",
    r"descended": "minimised",
    r"goes on (from|where)": "resumes",
    r"go on (from|where)": "resume",
    r"with the time left \(": "with an estimate of the time left",
    r"there is no error bar": "so no error bars",
    r"made again": "rebuilt",
    r"what pays": "main gains",
    r"what survives what": "failure handling",
    r"stays? behind": "remains",
    r"as it stands": "by default",
    r"the same bits as": "bit-for-bit identical",
    r"comes too late": "cannot repair",
    r"whose features never left": "whose features were never removed",
    r"the pushes": "the ascent steps",
    r"settings, honestly": "fair tuning",
    r"whose luck|luck": "chance, source of variance",
    r"who differs": "significant differences",
    r"the targets out": "split the targets",
    r"ends? no nearer": "is not measurably closer",
    r"(points|apart) off|lie apart": "differ; in points, lower is better",
    r"is told in a line": "is reported",
    r"images seen": "images processed",
    r"likeness": "similarity",
    r"thaw(s|ed|ing)?": "unfreeze",
    r"(?<!--)budgets?": "preset",
    r"trunks?": "backbone",
    r"headlines?": "UA, RA, TA, MIA",
    r"mend(s|ed|ing)?": "repair",
    r"dear": "expensive",
    r"yardsticks?": "reference",
    r"and the like": "name the others",
    r"all but (vanish|gone)\w*": "almost",
    r"now and then": "from time to time",
    r"nothing found is not": "an audit that finds nothing does not prove",
    r"the picture that decides": "gap against cost",
    r"persons": "people",
    r"who is (nearest|in the floor|not different)": "which method is",
    r"nor has it": "and it has no",
    r"whoever": "those who, or name the thing instead",
}


def unwanted(text):
    """What of `BETTER` a text contains, each with the better form."""
    text = " ".join(text.split())
    found = [(re.search(rf"\b(?:{pattern})\b", text, re.I), better) for pattern, better in BETTER.items()]
    return [f"'{match[0]}': {better}" for match, better in found if match]


def words_in_code(source):
    """The comments and strings of Python or of a notebook's cell, docstrings and messages among them."""
    source = re.sub(r"^%.*$", "", source, flags=re.M)
    kinds = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", None)}
    return [token.string for token in tokenize.generate_tokens(io.StringIO(source).readline) if token.type in kinds]


def cells(path, kind):
    """The sources of a notebook's cells of one kind."""
    book = json.loads(path.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == kind]


def texts(path):
    """All that people read in a file."""
    if path.suffix == ".ipynb":
        return cells(path, "markdown") + [word for source in cells(path, "code") for word in words_in_code(source)]
    text = path.read_text(encoding="utf-8")
    return words_in_code(text) if path.suffix == ".py" else [text]


def paragraphs(markdown):
    """The paragraphs and list items of Markdown as plain text: no tables, headings, code blocks or computed parts."""
    text = re.sub(r"```.*?```|<!-- (?!end)\w.*?<!-- end -->", "\n\n", markdown, flags=re.S)
    text = re.sub(r"\$\$.*?\$\$", "\n\n", text, flags=re.S)
    text = re.sub(r"\$[^$]*\$|`[^`]*`", "X", text)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"\*\([^)]*\)\*", "", text)  # the level of an exercise
    text = re.sub(r"<[^>]*>|[*_]{1,2}(?=\S)|(?<=\S)[*_]{1,2}", "", text)
    text = re.sub(r"^(#+ |\|).*$", "", text, flags=re.M)
    text = re.sub(r"^\s*([-*]|\d+\.) ", "\n\n", text, flags=re.M)
    return [" ".join(part.split()) for part in re.split(r"\n\s*\n", text) if part.strip()]


def sentences(markdown):
    """The sentences of Markdown, one string each."""
    for paragraph in paragraphs(markdown):
        paragraph = re.sub(r"\b[A-Z]\. (?=[A-Z]\. [A-Z]|Dhinakaran|Park)", "", paragraph)  # initials of people
        yield from re.split(r"(?<! v)(?<!et al)[.!?][\"')]*\s+(?=[^a-z])", paragraph)


def long_sentences(markdown):
    """The sentences of more than `MOST_WORDS` words."""
    return [s for s in sentences(markdown) if len(re.findall(r"\w[\w'’-]*", s)) > MOST_WORDS]


@pytest.mark.parametrize("path", [*PAGES, *NOTEBOOKS, *MODULES], ids=lambda path: str(path.relative_to(ROOT)))
def test_no_unwanted_word_returns(path):
    """In pages, notebooks, docstrings, comments and messages."""
    assert not [found for text in texts(path) for found in unwanted(text)]


@pytest.mark.parametrize("path", [ROOT / "README.md", *NOTEBOOKS], ids=lambda path: path.name)
def test_no_sentence_is_long(path):
    """A reader whose second language is English reads each sentence once."""
    parts = cells(path, "markdown") if path.suffix == ".ipynb" else texts(path)
    assert not [sentence for part in parts for sentence in long_sentences(part)]


@pytest.mark.parametrize(
    "text",
    [
        "A row a model, a mark a set",
        "it learns its training images by\n    heart",
        "Not told from it by paired tests: none",
        "the same command goes on from here",
        "The budget `quick`",
    ],
)
def test_the_check_finds_unwanted_words(text):
    assert unwanted(text)


def test_the_check_leaves_good_words_alone():
    """Parts of other words, and the better forms."""
    assert not unwanted("One row per model; the untold retold foretells, recommended amendments, a point and a line")


def test_words_in_code_are_comments_and_strings():
    source = '%load_ext autoreload\nluck = 1  # a row a model\ndef f():\n    """By heart."""\n    print("told", luck)\n'
    found = [word for text in words_in_code(source) for word in unwanted(text)]
    assert [word.split("'")[1] for word in found] == ["a row a model", "By heart", "told"]


def test_the_check_finds_long_sentences_and_nothing_else():
    """Tables, headings, code, formulas and computed parts do not count; a list item is a sentence of its own."""
    words = " ".join(["Word"] * MOST_WORDS)
    assert long_sentences(f"Short. One {words}. Short.") == [f"One {words}"]
    assert len(long_sentences(f"- one {words}\n- short\n\n1. two {words}")) == 2
    blocks = (
        f"# one {words}",
        f"| one {words} |",
        f"```\none {words}\n```",
        f"<!-- board x -->\n{words} one\n<!-- end -->",
    )
    for text in (*blocks, f"one `{words}` two", f"One ${words}$ two", f"{words}. {words}", f"one\n\n{words}"):
        assert not long_sentences(text)


def test_a_sentence_ends_before_code_and_after_a_symbol_but_not_in_a_name():
    text = "It ends with R. `x` follows, 3 v. 4 of S. Park and D. D. Dhinakaran (Jia et al., 2023). Yes."
    ends = ["It ends with R", "X follows, 3 v. 4 of Park and Dhinakaran (Jia et al., 2023)", "Yes."]
    assert list(sentences(text)) == ends
