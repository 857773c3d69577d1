"""The public API: ten names, documented, light to import, honest about unknown settings."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import ocr2cli
from ocr2cli.api import make_config
from ocr2cli.config import DecodeConfig, DryConfig, RasterConfig
from ocr2cli.errors import UsageError


def test_the_public_names_are_these_and_no_others() -> None:
    assert sorted(ocr2cli.__all__) == [
        "Box", "Document", "Ocr2Error", "PageError", "PageResult", "Status", "__version__",
        "read", "read_documents", "read_pages", "to_markdown",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["read", "read_documents", "read_pages", "to_markdown"])
def test_every_function_is_documented(name: str) -> None:
    assert len((getattr(ocr2cli, name).__doc__ or "").splitlines()) >= 1


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, ocr2cli\n"
        "print({'torch', 'numpy', 'PIL', 'pymupdf'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_an_unknown_setting_is_named() -> None:
    with pytest.raises(UsageError, match="dpj"):
        list(ocr2cli.read_pages(["a.pdf"], dpj=200))


@pytest.mark.parametrize(
    ("name", "nearest"), [("dpj", "dpi"), ("max_tokens", "max_new_tokens"), ("page", "pages")]
)
def test_of_an_unknown_setting_the_nearest_known_one_is_named(name: str, nearest: str) -> None:
    with pytest.raises(UsageError, match=f"no setting {name!r}. Did you mean {nearest!r}"):
        ocr2cli.read_pages(["a.pdf"], **{name: "1"})


@pytest.mark.parametrize(
    "setting",
    [{"cache": "c"}, {"cache_size": 1}, {"formats": ("md",)}, {"out": "o"}, {"out_url": "s3://b"},
     {"resume": False}, {"retry_failed": True}, {"fail_fast": True}, {"save_tokens": True},
     {"drain": 1.0}, {"min_confidence": 0.5}, {"metrics_file": "m"}, {"inputs": ("b.pdf",)},
     {"raster": RasterConfig()}, {"decode": DecodeConfig()}],
    ids=lambda setting: next(iter(setting)),
)  # fmt: skip
def test_what_reading_would_ignore_is_no_setting(setting) -> None:
    with pytest.raises(UsageError, match=f"no setting {next(iter(setting))!r}"):
        ocr2cli.read_pages(["a.pdf"], **setting)


def test_every_setting_that_is_taken_arrives() -> None:
    settings = {
        "model": "m", "dpi": 200, "max_new_tokens": 5, "pages": "1", "runner": "local",
        "ray_address": "a", "retries": 3, "page_timeout": 9.0, "recover_loops": False,
        "recycle_after": 7, "worker_memory": 8,
    }  # fmt: skip
    cfg = make_config(("a.pdf",), **settings)
    flat = {name: getattr(cfg, name, None) for name in settings}
    flat |= {"model": cfg.engine.model, "dpi": cfg.raster.dpi}
    flat |= {"max_new_tokens": cfg.decode.max_new_tokens}
    assert flat == settings and cfg.inputs == ("a.pdf",)


def test_a_text_layer_used_as_a_draft_is_one_as_on_the_command_line() -> None:
    assert make_config((), text_layer="draft").decode.draft == "text-layer"
    assert make_config((), text_layer="never").decode.draft == "off"


@pytest.mark.parametrize(
    "setting", [{"dtype": "foo"}, {"rotate": "foo"}, {"text_layer": "foo"}, {"draft": "foo"},
                {"mode": "foo"}, {"runner": "foo"}]
)
def test_a_word_that_a_setting_does_not_know_is_refused(setting) -> None:
    with pytest.raises(UsageError, match="choose from"):
        list(ocr2cli.read_pages(["a.pdf"], **setting))


@pytest.mark.parametrize(
    "setting",
    [{"dpi": 0}, {"dpi": 1}, {"dpi": 1201}, {"dpi": "x"}, {"dpi": 144.5}, {"dpi": True},
     {"dpi": None}, {"batch_size": -1}, {"max_new_tokens": -1}, {"kv_tokens": "all"},
     {"retries": 11}, {"page_timeout": 0}, {"page_timeout": float("nan")},
     {"page_timeout": float("inf")}, {"worker_memory": "8G"}, {"server_concurrency": 0},
     {"blank_ink": 2}, {"max_pixels": 0}, {"pages": 3}, {"prompt": None}, {"model": 7},
     {"compile": "no"}, {"recover_loops": 0}, {"dry": 0.8}],
    ids=str,
)  # fmt: skip
def test_a_value_that_no_flag_could_have_is_refused(setting) -> None:
    """dpi=1 made every page blank, which is a good status; batch_size=-1 never ended."""
    (name,) = setting
    with pytest.raises(UsageError, match=f"^{name}"):
        ocr2cli.read_pages(["a.pdf"], **setting)


def test_a_password_of_the_wrong_kind_is_not_shown() -> None:
    with pytest.raises(UsageError, match=r"^password") as refused:
        ocr2cli.read_pages(["a.pdf"], password=b"hunter2")
    assert "hunter2" not in str(refused.value)


def test_values_that_make_sense_are_taken(tmp_path) -> None:
    cfg = make_config((), model=tmp_path, page_timeout=5, dry=DryConfig(), blank_ink=0)
    assert (cfg.engine.model, cfg.page_timeout) == (str(tmp_path), 5)


def test_dry_stands_in_for_the_ngram_rule_unless_that_is_given_too() -> None:
    """As --dry does: both were on."""
    assert make_config((), dry=DryConfig()).decode.no_repeat_ngram == 0
    assert make_config((), dry=DryConfig(), no_repeat_ngram=9).decode.no_repeat_ngram == 9
    assert make_config((), dry=None).decode.no_repeat_ngram == 20


@pytest.mark.parametrize(
    ("dry", "reason"),
    [(DryConfig(multiplier=0), "--no-repeat-ngram 0"), (DryConfig(base=0.5), "BASE"),
     (DryConfig(last_n=0), "LAST_N"), (DryConfig(allowed_length=-1), "LENGTH"),
     (DryConfig(multiplier=float("nan")), "MULTIPLIER")],
    ids=str,
)  # fmt: skip
def test_a_dry_that_would_be_no_rule_is_refused(dry: DryConfig, reason: str) -> None:
    with pytest.raises(UsageError, match=f"^dry.*{reason}"):
        make_config((), dry=dry)


@pytest.mark.parametrize("path", ["", b"a.png", 7, None, [""], [b"a.png"], [None]], ids=str)
@pytest.mark.parametrize("name", ["read", "read_documents", "read_pages"])
def test_what_is_no_path_is_refused(name: str, path) -> None:
    """An empty string was the current folder, and of bytes each number became a document."""
    with pytest.raises(UsageError, match="path"):
        list(getattr(ocr2cli, name)(path))


def test_a_single_path_is_one_path_and_never_its_letters(tmp_path) -> None:
    page = tmp_path / "white.png"
    Image.new("RGB", (120, 80), "white").save(page)
    for given in (str(page), page, [page]):
        assert [result.key.document for result in ocr2cli.read_pages(given)] == ["white"]
    (document,) = ocr2cli.read_documents(str(page))
    assert (document.id, document.path) == ("white", str(page))


def test_read_reads_one_document_and_says_so_of_two(tmp_path) -> None:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (120, 80), "white").save(tmp_path / name)
    with pytest.raises(UsageError, match="holds 2: use read_documents"):
        ocr2cli.read(tmp_path)


def test_a_document_comes_back_whole_with_its_faults(tmp_path) -> None:
    Image.new("RGB", (120, 80), "white").save(tmp_path / "white.png")
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.4 and no more")
    white, broken = ocr2cli.read_documents([tmp_path / "white.png", tmp_path / "broken.pdf"])
    assert white.pages[0].status == "blank" and ocr2cli.to_markdown(white).strip() == ""
    assert broken.pages[0].error is not None


@pytest.mark.skipif(sys.platform != "linux", reason="torch has GNU's OpenMP on Linux alone")
@pytest.mark.parametrize(("before", "said", "spins"), [
    ("", "", "1000"), ("", "77", "77"), ("import torch; ", "", ""),
])  # fmt: skip
def test_threads_of_a_program_that_reads_wait_as_those_of_a_run(
    tmp_path: Path, before: str, said: str, spins: str
) -> None:
    """Spinning ones made a page beside other work six times as slow. GNU's OpenMP says what it has
    taken."""
    env = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    env |= {"OMP_DISPLAY_ENV": "verbose", "GOMP_SPINCOUNT": said}
    if not said:
        del env["GOMP_SPINCOUNT"]
    Image.effect_noise((60, 40), 90).save(tmp_path / "a.png")
    read = f"ocr2cli.read({str(tmp_path / 'a.png')!r}, prompt='ocr', max_new_tokens=2)"
    code = f"{before}import os, ocr2cli; {read}; print(os.environ.get('GOMP_SPINCOUNT', ''))"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if spins:
        assert set(re.findall(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr)) == {spins}
    assert done.stdout.splitlines()[-1] == spins


@pytest.mark.parametrize(("settings", "words"), [
    ({"prompt": "nonsense"}, "your own text with prompt_text"),
    ({"pages": "x"}, "Write for example pages 1-3"),
    ({"engine": "openai"}, "engine openai needs server URL"),
    ({"device": "tpu"}, "device tpu: write cpu"),
])  # fmt: skip
def test_a_program_is_told_of_settings_and_not_of_flags(
    tmp_path: Path, settings: dict[str, str], words: str
) -> None:
    Image.new("RGB", (60, 40), "white").save(tmp_path / "a.png")
    with pytest.raises(UsageError, match=words) as caught:
        list(ocr2cli.read_pages(tmp_path / "a.png", **settings))
    assert "--" not in str(caught.value)


def test_a_page_that_failed_tells_of_settings_and_of_other_programs_flags(tmp_path: Path) -> None:
    import pymupdf

    with pymupdf.open() as pdf:
        pdf.new_page()
        pdf.save(tmp_path / "a.pdf", encryption=pymupdf.PDF_ENCRYPT_AES_256, user_pw="locked")
    (page,) = ocr2cli.read(tmp_path / "a.pdf").pages
    assert page.error is not None and page.error.code == "encrypted"
    assert "Give it with password, or" in page.error.message
    assert "`qpdf --decrypt`" in page.error.message
