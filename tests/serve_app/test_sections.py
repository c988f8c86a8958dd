"""Parts of a page that a command writes."""

import pytest

from policies.core.errors import ConfigError
from serve_app.profiler import shipped
from serve_app.sections import read_section, require_section, write_section

PAGE = "before\n<!-- t:begin -->\nold\n<!-- t:end -->\nafter <!-- u:begin --><!-- u:end -->\n"


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "page.md"
    path.write_text(PAGE, encoding="utf-8")
    return path


def test_the_rest_of_the_page_stays(page):
    write_section(page, "t", "new\n\nlines")
    assert read_section(page, "t") == "new\n\nlines"
    assert page.read_text() == PAGE.replace("old", "new\n\nlines")
    write_section(page, "t", "old")
    assert page.read_text() == PAGE


@pytest.mark.parametrize(
    "text",
    ["", "<!-- t:begin -->", "<!-- t:end --><!-- t:begin -->", PAGE + PAGE],
)
def test_a_page_without_the_place_is_refused_and_kept(page, text):
    page.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="expected <!-- t:begin --> and, after it"):
        write_section(page, "t", "new")
    assert page.read_text() == text
    with pytest.raises(ConfigError, match=r"page\.md"):
        require_section(page, "t")


def test_a_page_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.md: No such file"):
        read_section(tmp_path / "nowhere.md", "t")


def test_the_readme_shows_every_shipped_profile():
    text = read_section(shipped.README, shipped.SECTION)
    names = [path.stem for path in shipped.PROFILES.glob("*.yaml")]
    assert len(names) > 5
    assert all(f"| {name} |" in text for name in names)


def test_a_table_out_of_date_is_found_and_written_anew(page, monkeypatch, capsys):
    page.write_text(PAGE.replace("<!-- t:", "<!-- profiles:"), encoding="utf-8")
    monkeypatch.setattr(shipped, "README", page)
    monkeypatch.setattr("sys.argv", ["shipped", "--check"])
    assert shipped.main() == 1
    assert "run `make docs`" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["shipped"])
    assert shipped.main() == 0
    monkeypatch.setattr("sys.argv", ["shipped", "--check"])
    assert shipped.main() == 0
