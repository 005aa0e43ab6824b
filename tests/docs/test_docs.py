"""README and docs/: names and commands exist, quoted outputs are real, both languages have the same contents."""
import contextlib
import functools
import importlib
import io
import re
import shlex
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path

import pytest
from conftest import ROOT

from utils.common.errors import SettingsParser
from utils.training.settings import check_args, make_parser

ENGLISH = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
CHINESE = ["README.zh-CN.md", *(f"docs/zh-CN/{Path(page).name}" for page in ENGLISH[1:])]
PAGES = [*ENGLISH, *CHINESE, "CONTRIBUTING.md"]
SCRIPTS = ["txt_annotation.py", "train.py", "eval_LFW.py", "predict.py",
           *(f"benchmarks/{path.name}" for path in sorted((ROOT / "benchmarks").glob("*.py"))
             if "__main__" in path.read_text(encoding="utf-8"))]
# Files that the user brings or a command writes.
MADE = {
    "cls_train.txt", "cls_classes.txt", "datasets/", "lfw/", "people/", "people/.embeddings.npz", "photographs/",
    "datasets_alignment.csv", "best.pth", "best.json", "last.pt", "log.csv", "loss.png", "accuracy.png", "batch.png",
    "settings.json", "model_data/roc_test.png", "model_data/face_detection_yunet_2026may.onnx", "train.rec",
    "train.idx", "agedb_30.bin", "cfp_fp.bin", "calfw.bin", "cplfw.bin", "vgg2_fp.bin", "lfw.bin", "nets/tinynet.py"}

FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^(#+) (.+)$", re.MULTILINE)
INLINE = re.compile(r"`([^`\n]+)`")
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e-?\d+)?")
COMMENT = re.compile(r"(?:^| )\s*#.*$", re.MULTILINE)


def read(page):
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page):
    """Return the fenced blocks as [(language, text)]."""
    return FENCE.findall(read(page))


def prose(page):
    return FENCE.sub("", read(page))


def sections(page):
    """Return the prose under each heading, without tables, addresses and images."""
    text = re.sub(r"^\|.*$", "", prose(page), flags=re.MULTILINE)
    text = re.sub(r"\]\([^)]*\)|https?://[^\s)）]+", "]", text)
    return HEADING.split(text)[::3]


def tables(page):
    """Return the tables, each a list of rows, each a list of cells."""
    found = re.findall(r"(?:^\|.*\n)+", prose(page), flags=re.MULTILINE)
    return [[row.strip("|\n ").split("|") for row in table.splitlines()] for table in found]


def numbers(text):
    return [number.rstrip(",") for number in NUMBER.findall(text)]


def commands(page):
    """Return the commands in blocks and inline code, each a list of words."""
    lines = []
    for language, text in blocks(page):
        if language == "console":
            lines += re.findall(r"^\$ (.*)$", text, re.MULTILINE)
        elif language == "bash":
            lines += COMMENT.sub("", text.replace("\\\n", " ")).splitlines()
    lines += [re.sub(r"[][]", "", code) for code in INLINE.findall(prose(page))
              if re.match(r"(time )?(python|pip|torchrun|\w+\.py) ", code)]
    return [shlex.split(part.strip().removeprefix("time ")) for line in lines for part in line.split("&&")
            if part.strip()]


def parse(script, arguments):
    """Parse the arguments as the script does and return what it prints. Raises AssertionError if they are rejected."""
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(output), contextlib.redirect_stdout(output):
        patch.setattr(sys, "argv", [script, *arguments])
        patch.syspath_prepend(str((ROOT / script).parent))  # as if the script were run
        module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
        try:
            if script == "train.py":  # its parse_args() would read the run of --resume
                parser = make_parser()
                args = parser.parse_args()
                bundled = str(ROOT / "model_data/arcface_mobilefacenet.pth")
                args.model_path, args.teacher = args.model_path and bundled, [bundled for _ in args.teacher]
                check_args(args, parser)
            else:
                if not hasattr(module, "parse_args"):  # main() itself parses: end it there
                    patch.setattr(SettingsParser, "parse_args",
                                  lambda self: (ArgumentParser.parse_args(self), sys.exit(0)))
                getattr(module, "parse_args", module.main)()
        except SystemExit as end:
            if end.code:
                raise AssertionError(f"{shlex.join([script, *arguments])}: {output.getvalue()}") from None
    return output.getvalue()


@functools.cache
def flags(script):
    found = re.findall(r"^  (?:-h, )?(--[\w-]+)(?: [A-Z]+)?(?:, (--[\w-]+))?", parse(script, ["--help"]), re.MULTILINE)
    return {flag for pair in found for flag in pair if flag}


def slugs(page):
    """Return the anchors that GitHub derives from the headings."""
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for _, title in HEADING.findall(prose(page))}


def outline(page):
    """Return what a translation keeps: heading levels, code, and the numbers and links of each section."""
    code = [(language, [line.rstrip() for line in COMMENT.sub("", text).splitlines() if line.strip()])
            for language, text in blocks(page)]
    return {"headings": [len(level) for level, _ in HEADING.findall(prose(page))],
            "tables": [[[numbers(cell) for cell in row] for row in table] for table in tables(page)],
            "blocks": code,
            "sections": [(sorted(INLINE.findall(section)), section.count("]"),
                          sorted(numbers(INLINE.sub("", section)))) for section in sections(page)]}


def sentences(page):
    for section in sections(page):
        for sentence in re.split(r"(?<=[.:;!?])\s|(?<=[。：；！？])", section):
            yield re.sub(r"\s+", " ", sentence).strip(" \n*-")


@pytest.mark.parametrize("page", ["README.md", "README.zh-CN.md"])
def test_readme_has_at_most_200_lines(page):
    assert len(read(page).splitlines()) <= 200


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_accepted(page):
    for program, *arguments in commands(page):
        if program == "torchrun":
            at = next(place for place, word in enumerate(arguments) if word.endswith(".py"))
            program, arguments = arguments[at], arguments[at + 1:]
        elif program == "python":
            program, *arguments = arguments
        if program == "pip":
            assert arguments[:2] == ["install", "-r"] and (ROOT / arguments[2]).is_file(), arguments
        elif program.endswith(".py"):
            assert program in SCRIPTS, program
            parse(program, arguments)
            for word in arguments:
                assert not word.startswith(("img/", "nets/", "utils/")) or (ROOT / word).exists(), word
        else:
            assert program in ("-m", "-c", ".", "ruff", "mkdir", "cp"), program


@pytest.mark.parametrize("page", PAGES)
def test_flags_and_files_exist(page):
    known = set().union(*map(flags, SCRIPTS)) | {"--no-"}
    for code in INLINE.findall(prose(page)):
        for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*", code):
            assert flag in known, f"{page}: {code}"
        if re.fullmatch(r"[\w./-]+(/|\.(py|md|txt|png|jpg|json|csv|pth|pt|onnx|npz|bin|rec|idx))", code):
            assert code in MADE or (ROOT / code).exists() or code.startswith("."), f"{page}: {code}"


@pytest.mark.parametrize("page", PAGES)
def test_links_have_targets(page):
    for target in re.findall(r"\]\(([^)]+)\)", prose(page)):
        if not target.startswith("http"):
            path, _, anchor = target.partition("#")
            there = (ROOT / page).parent / path if path else ROOT / page
            assert there.exists(), f"{page}: {target}"
            assert not anchor or anchor in slugs(there.resolve().relative_to(ROOT)), f"{page}: {target}"


@pytest.mark.parametrize("pages", [ENGLISH, CHINESE], ids=["English", "Chinese"])
def test_every_page_is_linked(pages):
    linked = {((ROOT / page).parent / target).resolve() for page in pages
              for target in re.findall(r"\]\(([^)#]+\.md)", read(page))}
    assert {ROOT / page for page in pages[1:]} - linked == set()


@pytest.mark.parametrize("page, other", zip(ENGLISH, CHINESE), ids=ENGLISH)
def test_both_languages_have_the_same_contents(page, other):
    assert outline(page) == outline(other)


@pytest.mark.parametrize("pages, length", [(ENGLISH, 40), (CHINESE, 16)], ids=["English", "Chinese"])
def test_no_sentence_is_repeated(pages, length):
    seen = {}
    for page in pages:
        for sentence in sentences(page):
            if len(sentence) >= length:
                assert sentence not in seen, f"{page} and {seen[sentence]}: {sentence}"
                seen[sentence] = page


def test_architecture_names_code_that_exists():
    source = "\n".join(path.read_text(encoding="utf-8") for pattern in ("*.py", "nets/*.py", "utils/*/*.py")
                       for path in ROOT.glob(pattern))
    codes = INLINE.findall(prose("docs/architecture.md"))
    names = [code.removesuffix("()").split(".")[-1] for code in codes
             if re.fullmatch(r"[\w.]+\(\)|[A-Z]\w+|[A-Z]\w+\.\w+", code)]
    assert len(names) > 20
    assert [name for name in names if not re.search(rf"^ *(def|class) {name}\b|^{name} = ", source, re.MULTILINE)] == []


def assert_shown(printed, shown):
    """Compare line by line, except for the device; numbers may differ by 0.01."""
    printed, shown = (re.sub(r" on .*threads?\)", "", text).strip().splitlines() for text in (printed, shown))
    assert len(printed) == len(shown), "\n".join(printed)
    for real, line in zip(printed, shown):
        assert NUMBER.sub("N", real).split() == NUMBER.sub("N", line).split()
        assert [float(number) for number in NUMBER.findall(real)] == pytest.approx(
            [float(number) for number in NUMBER.findall(line)], abs=0.01), f"{real}\n{line}"


@pytest.mark.parametrize("page", ["README.md", "docs/predicting.md"])
def test_quoted_output_is_real(call_script, face_model, tmp_path, page):
    (tmp_path / "img").symlink_to(ROOT / "img")
    for path in (ROOT / "model_data").glob("arcface_mobilefacenet.*"):
        (tmp_path / "model_data" / path.name).symlink_to(path)
    ran = 0
    for language, text in blocks(page):
        for command, shown in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", text, re.MULTILINE):
            if command.startswith("python "):
                result = call_script(*shlex.split(command)[1:])
                assert result.returncode == 0, result.stderr
                assert_shown(result.stdout, shown)
            else:
                subprocess.run(command, shell=True, check=True)
            ran += 1
        if language == "python":
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                exec(text, {})
            if page == "README.md":  # the comments on its first and last print are what they print
                printed, comments = output.getvalue().splitlines(), re.findall(r"^print.*  # (.*)$", text, re.MULTILINE)
                assert_shown(f"{printed[0]}\n{printed[-1]}", f"{comments[0].replace(',', '')}\n{comments[-1]}")
            ran += 1
    assert ran
