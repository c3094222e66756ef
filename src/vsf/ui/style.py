"""How the page looks: one accent colour, system fonts, light and dark. Nothing is fetched from anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["CSS", "GRID_JS", "HEAD", "HEADER", "RESTORE_JS", "theme"]


def theme() -> Any:
    """The theme: neutral greys, one accent."""
    import gradio as gr

    accent = gr.themes.Color(
        "#eefaf8", "#d3f2ed", "#a9e4dc", "#74cfc4", "#41b3a7", "#1f978c", "#0f766e", "#0e5f59", "#0f4c48", "#103f3c",
        "#052624", name="vsf",
    )  # fmt: skip
    fonts = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
    mono = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "Liberation Mono", "monospace")
    return gr.themes.Base(
        primary_hue=accent,
        secondary_hue=accent,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_md,
        spacing_size=gr.themes.sizes.spacing_md,
        text_size=gr.themes.sizes.text_md,
        font=[gr.themes.Font(name) for name in fonts],
        font_mono=[gr.themes.Font(name) for name in mono],
    ).set(
        body_background_fill="#f5f7f9",
        body_background_fill_dark="#0e1318",
        background_fill_primary="#ffffff",
        background_fill_primary_dark="#161d24",
        block_background_fill="#ffffff",
        block_background_fill_dark="#161d24",
        block_border_width="0px",
        block_shadow="none",
        block_label_background_fill="transparent",
        block_title_text_weight="600",
        block_title_text_size="0.86rem",
        input_background_fill="#ffffff",
        input_background_fill_dark="#0e1318",
        input_border_width="1px",
        input_border_color="#cfd8e0",
        input_border_color_dark="#33404c",
        input_border_color_focus="#0f766e",
        input_border_color_focus_dark="#41b3a7",
        input_shadow_focus="0 0 0 3px rgb(15 118 110 / 18%)",
        border_color_primary="#e1e7ec",
        border_color_primary_dark="#27323c",
        button_primary_background_fill="#0f766e",
        button_primary_background_fill_hover="#0e5f59",
        button_primary_background_fill_dark="#1f978c",
        button_primary_background_fill_hover_dark="#41b3a7",
        button_primary_text_color="#ffffff",
        button_primary_text_color_dark="#04201e",
        slider_color="#0f766e",
        slider_color_dark="#41b3a7",
    )


_MARK = (
    '<svg class=mark viewBox="0 0 32 32" width="30" height="30" aria-hidden="true"><rect width="32" height="32" rx="8" '
    'fill="#0f766e"/><circle cx="12.5" cy="16" r="6" fill="none" stroke="#fff" stroke-width="2.6"/>'
    '<rect x="19" y="14.6" width="8" height="2.9" rx="1.4" fill="#fff"/></svg>'
)


def HEADER(model: str, about: str) -> str:
    """The top of the page; both texts are escaped."""
    from html import escape

    return (
        f"<header class=top>{_MARK}<div><h1>vsf</h1><p>Say what should not be in the picture, and see what happens.</p></div>"
        f'<span class=badge title="{escape(about)}">{escape(model)}</span>'
        '<button type=button id=theme-switch aria-label="Switch between light and dark" title="Light or dark">'
        '<svg viewBox="0 0 24 24" width="18" height="18" aria-hidden="true"><circle cx="12" cy="12" r="8" fill="none" '
        'stroke="currentColor" stroke-width="2"/><path d="M12 4a8 8 0 0 1 0 16z" fill="currentColor"/></svg></button></header>'
    )


#: Clicks inside a block of our HTML, handed to Python as `event.pick`.
GRID_JS = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-cell],[data-card]');
  if (button) trigger('click', {pick: button.dataset.cell ?? button.dataset.card});
});
"""

_HERE = Path(__file__).parent
#: Reads the settings out of a picture that is dropped or chosen, and hands them to Python: no upload.
RESTORE_JS = (_HERE / "restore.js").read_text("utf-8")
HEAD = f"""<meta name="referrer" content="no-referrer"><script>{(_HERE / "page.js").read_text("utf-8")}</script>"""
CSS = (_HERE / "page.css").read_text("utf-8")
