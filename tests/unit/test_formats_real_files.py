"""Every real file of ../shared/data/files is found by words taken from it by eye, or refused.

The ranks at which the exported embedder finds the same words stand in docs/decisions/0007.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from tritonrag.chunking import Chunker, ChunkSettings, Passage
from tritonrag.corpus import find_files
from tritonrag.documents import SourceFile, parse_document, read_file
from tritonrag.errors import InvalidRequest

FILES = Path(__file__).parents[3] / "shared/data/files"

PHRASES = {
    "markitdown/RECEIPT-2024-TXN-98765_retail_purchase.pdf": "Wireless Noise-Cancelling Headphones",
    "markitdown/REPAIR-2022-INV-001_multipage.pdf": "Insured name Gabriel Diaz",
    "markitdown/SPARSE-2024-INV-1234_borderless_table.pdf": (
        "The primary variance driver is SKU-4563"
    ),
    "markitdown/equations.docx": "The angle is θ",
    "markitdown/masterformat_partial_numbering.pdf": "qualified Construction Managers",
    "markitdown/movie-theater-booking-2024.pdf": "Holiday Movie Marathon Package",
    "markitdown/rlink.docx": "Testing Linked Images",
    "markitdown/test.docx": "Here is a random table for .docx parsing test purposes",
    "markitdown/test.epub": "This is a test paragraph with some formatting",
    "markitdown/test.json": "key3: list_value1, list_value2",
    "markitdown/test.pdf": "every agent is made conversable – they can receive, react, and respond",
    "markitdown/test.pptx": "This is a nested shape with content in 2 shapes",
    "markitdown/test.rtf": "This is a Sample RTF File",
    "markitdown/test.xls": "Alpha | Beta | Gamma | Delta",
    "markitdown/test.xlsx": "ColA | ColB | ColC | ColD",
    "markitdown/test_blog.html": "the tuned gpt-4 is much more accurate (e.g., 35% vs. 20%)",
    "markitdown/test_mskanji.csv": "三木英子",
    "markitdown/test_notebook.ipynb": "comment in code",
    "markitdown/test_outlook_msg.msg": "This is the body of the test email message",
    "markitdown/test_rss.xml": "Copilot helped Eaton document over 9,000 standard",
    "markitdown/test_serp.html": "Microsoft Corporation is an American multinational",
    "markitdown/test_wikipedia.html": "develop and sell BASIC interpreters for the Altair 8800",
    "markitdown/test_with_comment.docx": "Here is a random table for .docx parsing test purposes",
    "pdf/001-trivial_minimal-document.pdf": "no sea takimata sanctus est Lorem ipsum",
    "pdf/002-trivial-libre-office-writer_002-trivial-libre-office-writer.pdf": (
        "no sea takimata sanctus est Lorem ipsum"
    ),
    "pdf/003-pdflatex-image_pdflatex-image.pdf": "no sea takimata sanctus est Lorem ipsum",
    "pdf/004-pdflatex-4-pages_pdflatex-4-pages.pdf": "Kjift – not at all!",
    "pdf/006-pdflatex-outline_pdflatex-outline.pdf": "Contents 1 Foo 2 2 Bar 2 3 Baz 2",
    "pdf/007-imagemagick-images_imagemagick-images.pdf": "Background",
    "pdf/008-reportlab-inline-image_inline-image.pdf": "Test",
    "pdf/010-pdflatex-forms_pdflatex-forms.pdf": "Name Check Submit",
    "pdf/011-google-doc-document_google-doc-document.pdf": "Beautiful is better than ugly.",
    "pdf/012-libreoffice-form_libreoffice-form.pdf": "Agree to privacy policy",
    "pdf/013-reportlab-overlay_reportlab-overlay.pdf": "Fingerprint: asdfSa2123",
    "pdf/014-outlines_mistitled_outlines_example.pdf": "Contents 1 Foo 2 2 Bar 2 3 Baz 2",
    "pdf/015-arabic_habibi-oneline-cmap.pdf": "حَبيبي",
    "pdf/015-arabic_habibi-rotated.pdf": "حَبيبي",
    "pdf/015-arabic_habibi.pdf": "حَبيبي",
    "pdf/016-libre-office-link_libre-office-link.pdf": "This is a link to an awesome blog.",
    "pdf/020-xmp_output_with_metadata_pymupdf.pdf": "Hello, World!",
    "pdf/021-pdfa_crazyones-pdfa.pdf": "The misfits. The rebels. The troublemakers.",
    "pdf/022-pdfkit_pdfkit.pdf": "Header Foo: bar ABC: DEF",
    "pdf/024-annotations_annotated_pdf.pdf": "Not highlighted",
    "pdf/025-attachment_with-attachment.pdf": "no sea takimata sanctus est Lorem ipsum",
    "pdf/026-latex-multicolumn_multicolumn.pdf": "sample document with two columns filled",
}
REASONS = {
    "markitdown/MEDRPT-2024-PAT-3847_medical_report_scan.pdf": "OCR",
    "pdf/005-libreoffice-writer-password_libreoffice-writer-password.pdf": "needs a password",
    "pdf/007-imagemagick-images_imagemagick-ASCII85Decode.pdf": "OCR",
    "pdf/007-imagemagick-images_imagemagick-CCITTFaxDecode.pdf": "OCR",
    "pdf/007-imagemagick-images_imagemagick-lzw.pdf": "OCR",
    "pdf/019-grayscale-image_grayscale-image.pdf": "OCR",
}

pytestmark = pytest.mark.skipif(not FILES.is_dir(), reason="needs ../shared/data")


def passages(name: str) -> Iterator[Passage]:
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    file = SourceFile(FILES / name, name)
    yield from Chunker(tokenizer, ChunkSettings(), 256).passages(
        parse_document(file, read_file(file))
    )


def squeezed(text: str) -> str:
    return " ".join(text.split())


def test_no_file_is_forgotten() -> None:
    files = find_files([FILES]).files
    assert {file.source for file in files} == PHRASES.keys() | REASONS.keys()


@pytest.mark.parametrize("name", PHRASES)
def test_a_readable_file_has_its_words_in_a_passage(name: str) -> None:
    found = list(passages(name))
    assert any(PHRASES[name] in squeezed(passage.text) for passage in found)
    assert len({passage.id for passage in found}) == len(found)
    paged = name.endswith((".pdf", ".pptx", ".xls", ".xlsx"))
    assert all(bool(passage.place) == paged for passage in found)


@pytest.mark.parametrize("name", REASONS)
def test_an_unreadable_file_is_refused_with_its_reason(name: str) -> None:
    with pytest.raises(InvalidRequest, match=REASONS[name]):
        list(passages(name))
